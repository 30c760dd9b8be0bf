"""ACDC: street scenes in fog, at night, in rain and in snow (Sakaridis et al., ICCV 2021)."""

from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import check_choice, find
from hrda_lib.data.streets.classes import CITYSCAPES
from hrda_lib.data.streets.train_ids import STORED_TRAIN_IDS

CONDITIONS = ("fog", "night", "rain", "snow")
SPLITS = ("train", "val", "test")
IMAGE, LABEL = "_rgb_anon.png", "_gt_labelTrainIds.png"


class Acdc(LabeledFiles):
    """``root/rgb_anon/CONDITION/SPLIT/SEQUENCE/*_rgb_anon.png`` with ``root/gt/.../*_gt_labelTrainIds.png``.

    Labels hold train ids as they are. They are opened when they are asked for, never before; those of "test" are not
    published. ``.conditions`` has the condition of each image.

    Args:
        root: the folder that holds ``rgb_anon`` and ``gt``.
        split: "train", "val" or "test".
        condition: "fog", "night", "rain" or "snow"; None: all four.
        max_pixels: as of :class:`~hrda_lib.data.LabeledFiles`.

    Raises:
        ValueError: there is no such split, condition or image; on reading, a file is missing, broken, of another size
            than its image, or holds other ids than 0..18 and 255. The message starts with the file.
    """

    classes = CITYSCAPES

    def __init__(
        self, root: str | Path, split: str, condition: str | None = None, *, max_pixels: int | None = None
    ) -> None:
        self.root, self.split = Path(root), split
        folder = self.root / "rgb_anon"
        chosen = CONDITIONS if condition is None else (condition,)
        check_choice("condition", chosen[0], CONDITIONS, folder)
        check_choice("split", split, SPLITS, folder / chosen[0])
        layout = f"{folder}/CONDITION/{split}/SEQUENCE/*{IMAGE} with {self.root}/gt/CONDITION/{split}/SEQUENCE/*{LABEL}"
        found = {name: find(folder / name / split, f"*/*{IMAGE}", layout) for name in chosen}
        images = [file for files in found.values() for file in files]
        conditions = [name for name, files in found.items() for _ in files]
        names = [file.name.removesuffix(IMAGE) for file in images]
        labels = [
            self.root / "gt" / kind / split / file.parent.name / f"{name}{LABEL}"
            for kind, file, name in zip(conditions, images, names, strict=True)
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
        self.conditions = conditions
        self.has_labels = split != "test"
