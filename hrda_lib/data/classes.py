"""The 19 classes of Cityscapes, and labels stored by their ids."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hrda_lib.data.reading import Palette, StoredIds, ignoring


class LabelClass(NamedTuple):
    """A class: its name, the id that files store, the id to train with, and the (red, green, blue) to draw it in."""

    name: str
    id: int
    train_id: int
    colour: tuple[int, int, int]


CITYSCAPES = (
    LabelClass("road", 7, 0, (128, 64, 128)),
    LabelClass("sidewalk", 8, 1, (244, 35, 232)),
    LabelClass("building", 11, 2, (70, 70, 70)),
    LabelClass("wall", 12, 3, (102, 102, 156)),
    LabelClass("fence", 13, 4, (190, 153, 153)),
    LabelClass("pole", 17, 5, (153, 153, 153)),
    LabelClass("traffic light", 19, 6, (250, 170, 30)),
    LabelClass("traffic sign", 20, 7, (220, 220, 0)),
    LabelClass("vegetation", 21, 8, (107, 142, 35)),
    LabelClass("terrain", 22, 9, (152, 251, 152)),
    LabelClass("sky", 23, 10, (70, 130, 180)),
    LabelClass("person", 24, 11, (220, 20, 60)),
    LabelClass("rider", 25, 12, (255, 0, 0)),
    LabelClass("car", 26, 13, (0, 0, 142)),
    LabelClass("truck", 27, 14, (0, 0, 70)),
    LabelClass("bus", 28, 15, (0, 60, 100)),
    LabelClass("train", 31, 16, (0, 80, 100)),
    LabelClass("motorcycle", 32, 17, (0, 0, 230)),
    LabelClass("bicycle", 33, 18, (119, 11, 32)),
)
"""(name, id, train_id, colour) of each class, by train id."""

_BY_COLOUR: dict[tuple[int, ...], LabelClass] = {entry.colour: entry for entry in CITYSCAPES}
# ignored ids that are officially drawn in the colour of a class: group of poles, licence plate (34 or -1)
_SAME_COLOUR = {(18, "pole"), (34, "car"), (255, "car")}


def train_id_table(train_ids: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    """For each stored id, 0..255, its train id; 255 for those that are not named."""
    table = np.full(256, 255, np.uint8)
    table[list(train_ids)] = list(train_ids.values())
    return table


_TRAIN_IDS = train_id_table({entry.id: entry.train_id for entry in CITYSCAPES})


def cityscapes_ids(kind: str, highest: int) -> StoredIds:
    """Reads PNGs of Cityscapes ids as train ids; others become 255.

    Refused are ids outside 0..``highest`` and 255, and an id drawn in the colour of another class.

    Args:
        kind: whose ids, for messages.
        highest: the largest id.
    """
    return StoredIds(_TRAIN_IDS, partial(_check_ids, kind=kind, highest=highest))


def _check_ids(file: Path, ids: list[int], palette: Palette, *, kind: str, highest: int) -> None:
    expected = f"{kind} ids are expected, from {CITYSCAPES[0].id} for road to {CITYSCAPES[-1].id} for bicycle"
    for index in ids:
        drawn = _BY_COLOUR.get(palette[index]) if index < len(palette) else None
        if drawn and drawn.id != index and (index, drawn.name) not in _SAME_COLOUR:
            raise ValueError(
                f"{file}: palette index {index} has the colour of {drawn.name}, whose id is {drawn.id}; {expected}"
            )
        if highest < index < 255:
            raise ValueError(f"{file}: label {index} is outside 0..{highest} (and not the ignored 255); {expected}")


def check_range(file: Path, ids: list[int], palette: Palette, *, highest: int, expected: str) -> None:
    """Refuse ids outside 0..``highest`` and 255.

    Raises:
        ValueError: names the file and the id.
    """
    for index in ids:
        if highest < index < 255:
            raise ValueError(f"{file}: label {index} is outside 0..{highest} (and not the ignored 255); {expected}")


STORED_TRAIN_IDS = StoredIds(ignoring(()), partial(check_range, highest=18, expected="train ids are expected"))
"""Reads PNGs that hold train ids as they are; other ids than 0..18 and 255 are refused."""
