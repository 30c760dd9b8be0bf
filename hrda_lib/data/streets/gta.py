"""GTA: street scenes from a game (Richter et al., "Playing for Data", ECCV 2016)."""

from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import find
from hrda_lib.data.streets.classes import CITYSCAPES
from hrda_lib.data.streets.train_ids import cityscapes_ids


class Gta(LabeledFiles):
    """``root/images/00001.png`` with ``root/labels/00001.png``, the palette PNGs of ids as downloaded.

    Ids become the train ids of :data:`~hrda_lib.data.CITYSCAPES`, every other id 255. Samples have the name of
    their file without ending. Labels are opened when they are asked for, never before.

    Args:
        root: the folder that holds ``images`` and ``labels``.
        max_pixels: as of :class:`~hrda_lib.data.LabeledFiles`.

    Raises:
        ValueError: there is no image; on reading, a file is missing, broken, of another size than its image, or not of
            GTA's ids, as far as ids outside 0..34 or the colours of its palette tell. The message starts with the file.
    """

    classes = CITYSCAPES

    def __init__(self, root: str | Path, *, max_pixels: int | None = None) -> None:
        self.root = Path(root)
        layout = f"{self.root}/images/00001.png with {self.root}/labels/00001.png"
        images = find(self.root / "images", "*.png", layout)
        labels = [self.root / "labels" / file.name for file in images]
        read = cityscapes_ids("GTA", 34)
        super().__init__(
            images,
            labels,
            [file.stem for file in images],
            read_label=read,
            settings="GTA",
            layout=layout,
            max_pixels=max_pixels,
        )
