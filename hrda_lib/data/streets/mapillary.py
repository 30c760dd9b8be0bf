"""Mapillary Vistas 1.2: street scenes of the world (Neuhold et al., ICCV 2017)."""

from functools import partial
from pathlib import Path

from hrda_lib.data.labeled_files import LabeledFiles
from hrda_lib.data.layout import check_choice, find
from hrda_lib.data.stored_ids import StoredIds
from hrda_lib.data.streets.classes import CITYSCAPES
from hrda_lib.data.streets.train_ids import check_range, train_id_table

SPLITS = ("training", "validation", "testing")
# train id -> ids of Vistas 1.2
_IDS = {0: (13, 24, 41), 1: (2, 15), 2: (17,), 3: (6,), 4: (3,), 5: (45, 47), 6: (48,), 7: (50,), 8: (30,), 9: (29,)}
_IDS |= {10: (27,), 11: (19,), 12: (20, 21, 22), 13: (55,), 14: (61,), 15: (54,), 16: (58,), 17: (57,), 18: (52,)}
_READ = StoredIds(
    train_id_table({index: train_id for train_id, ids in _IDS.items() for index in ids}),
    partial(check_range, highest=65, expected="ids of Mapillary Vistas 1.2 are expected"),
)


class Mapillary(LabeledFiles):
    """``root/SPLIT/images/*.jpg`` with ``root/SPLIT/labels/*.png``, palette PNGs of the 66 ids of version 1.2.

    Downloads of version 2.0 hold the same labels in ``root/SPLIT/v1.2/labels``, which is taken where it exists. Ids
    become the train ids of :data:`~hrda_lib.data.CITYSCAPES`, every other id 255. Labels are opened when they
    are asked for, never before; those of "testing" are not published.

    Args:
        root: the folder that holds ``training``, ``validation`` and ``testing``.
        split: one of these three.
        max_pixels: as of :class:`~hrda_lib.data.LabeledFiles`.

    Raises:
        ValueError: there is no such split or image; on reading, a file is missing, broken, of another size than its
            image, or holds an id above 65. The message starts with the file.
    """

    classes = CITYSCAPES

    def __init__(self, root: str | Path, split: str, *, max_pixels: int | None = None) -> None:
        self.root, self.split = Path(root), split
        check_choice("split", split, SPLITS, self.root)
        folder = self.root / split
        masks = folder / "v1.2" / "labels" if (folder / "v1.2").is_dir() else folder / "labels"
        layout = f"{folder}/images/*.jpg with {masks}/*.png"
        images = find(folder / "images", "*.jpg", layout)
        names = [file.stem for file in images]
        labels = [masks / f"{name}.png" for name in names]
        super().__init__(
            images, labels, names, read_label=_READ, settings="Mapillary", layout=layout, max_pixels=max_pixels
        )
        self.has_labels = split != "testing"
