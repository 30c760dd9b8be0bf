"""Cityscapes: street scenes of 50 cities (Cordts et al., CVPR 2016)."""

from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import check_choice, find
from hrda_lib.data.streets.classes import CITYSCAPES
from hrda_lib.data.streets.train_ids import cityscapes_ids

SPLITS = ("train", "val", "test")


class Cityscapes(LabeledFiles):
    """``root/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` with ``root/gtFine/SPLIT/CITY/*_gtFine_labelIds.png``.

    Ids become the train ids of :data:`~hrda_lib.data.CITYSCAPES`, every other id 255. Samples have the name of
    their image without ``_leftImg8bit.png``. Labels are opened when they are asked for, never before:
    ``Cityscapes(root, split).unlabeled()`` is a target, whether ``root/gtFine`` exists or not.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: "train", "val" or "test" (whose published labels are all ignored).
        max_pixels: as of :class:`~hrda_lib.data.LabeledFiles`.

    Raises:
        ValueError: there is no such split or no image; on reading, a file is missing, broken, of another size than its
            image, or not of Cityscapes ids, as far as ids outside 0..33 or the colours of a palette tell. The message
            starts with the file.

    ``margins`` leaves out the bonnet of the car and the borders, as the released code of HRDA does.
    """

    classes = CITYSCAPES
    margins = (30, 240, 30, 30)

    def __init__(self, root: str | Path, split: str, *, max_pixels: int | None = None) -> None:
        self.root, self.split = Path(root), split
        check_choice("split", split, SPLITS, self.root / "leftImg8bit")
        image, label = "_leftImg8bit.png", "_gtFine_labelIds.png"
        layout = f"{self.root}/leftImg8bit/{split}/CITY/*{image} with {self.root}/gtFine/{split}/CITY/*{label}"
        images = find(self.root / "leftImg8bit" / split, f"*/*{image}", layout)
        names = [file.name.removesuffix(image) for file in images]
        cities = [self.root / "gtFine" / split / file.parent.name for file in images]
        labels = [city / f"{name}{label}" for city, name in zip(cities, names, strict=True)]
        read = cityscapes_ids("Cityscapes", 33)
        super().__init__(
            images, labels, names, read_label=read, settings="Cityscapes", layout=layout, max_pixels=max_pixels
        )
