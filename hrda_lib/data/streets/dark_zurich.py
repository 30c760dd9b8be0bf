"""Dark Zurich: street scenes at night (Sakaridis et al., ICCV 2019)."""

from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import check_choice, find
from hrda_lib.data.streets.acdc import IMAGE, LABEL, SPLITS
from hrda_lib.data.streets.classes import CITYSCAPES
from hrda_lib.data.streets.train_ids import STORED_TRAIN_IDS


class DarkZurich(LabeledFiles):
    """``root/rgb_anon/SPLIT/night/SEQUENCE/*_rgb_anon.png`` with ``root/gt/SPLIT/night/.../*_gt_labelTrainIds.png``.

    Only "val" has labels, which hold train ids as they are. They are opened when they are asked for, never before:
    ``DarkZurich(root, "train").unlabeled()`` is the target of the papers.

    Args:
        root: the folder that holds ``rgb_anon`` and ``gt``.
        split: "train", "val" or "test".
        max_pixels: as of :class:`~hrda_lib.data.LabeledFiles`.

    Raises:
        ValueError: there is no such split or image; on reading, a file is missing, broken, of another size than its
            image, or holds other ids than 0..18 and 255. The message starts with the file.
    """

    classes = CITYSCAPES

    def __init__(self, root: str | Path, split: str, *, max_pixels: int | None = None) -> None:
        self.root, self.split = Path(root), split
        check_choice("split", split, SPLITS, self.root / "rgb_anon")
        layout = (
            f"{self.root}/rgb_anon/{split}/night/SEQUENCE/*{IMAGE} with {self.root}/gt/{split}/night/SEQUENCE/*{LABEL}"
        )
        images = find(self.root / "rgb_anon" / split / "night", f"*/*{IMAGE}", layout)
        names = [file.name.removesuffix(IMAGE) for file in images]
        labels = [
            self.root / "gt" / split / "night" / file.parent.name / f"{name}{LABEL}"
            for file, name in zip(images, names, strict=True)
        ]
        super().__init__(
            images,
            labels,
            names,
            read_label=STORED_TRAIN_IDS,
            settings="train ids",
            layout=layout,
            max_pixels=max_pixels,
        )
        self.has_labels = split == "val"
