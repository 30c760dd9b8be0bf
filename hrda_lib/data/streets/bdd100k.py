"""BDD100K: street scenes of the United States (Yu et al., CVPR 2020), the 10,000 images with semantic labels."""

from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import check_choice, find
from hrda_lib.data.streets.classes import CITYSCAPES
from hrda_lib.data.streets.train_ids import STORED_TRAIN_IDS

SPLITS = ("train", "val", "test")


class Bdd100k(LabeledFiles):
    """``root/images/10k/SPLIT/*.jpg`` with ``root/labels/sem_seg/masks/SPLIT/*.png``.

    Labels hold train ids as they are. They are opened when they are asked for, never before; those of "test" are not
    published.

    Args:
        root: the folder that holds ``images`` and ``labels``.
        split: "train", "val" or "test".
        max_pixels: as of :class:`~hrda_lib.data.LabeledFiles`.

    Raises:
        ValueError: there is no such split or image; on reading, a file is missing, broken, of another size than its
            image, or holds other ids than 0..18 and 255. The message starts with the file.
    """

    classes = CITYSCAPES

    def __init__(self, root: str | Path, split: str, *, max_pixels: int | None = None) -> None:
        self.root, self.split = Path(root), split
        folder, masks = self.root / "images" / "10k", self.root / "labels" / "sem_seg" / "masks" / split
        check_choice("split", split, SPLITS, folder)
        layout = f"{folder}/{split}/*.jpg with {masks}/*.png"
        images = find(folder / split, "*.jpg", layout)
        names = [file.stem for file in images]
        labels = [masks / f"{name}.png" for name in names]
        super().__init__(
            images,
            labels,
            names,
            read_label=STORED_TRAIN_IDS,
            settings="train ids",
            layout=layout,
            max_pixels=max_pixels,
        )
        self.has_labels = split != "test"
