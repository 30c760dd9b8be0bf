"""The 19 classes of Cityscapes, and labels stored by their ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hrda_lib.data.labeled_files import read_ids


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


def read_train_ids(file: Path, *, kind: str, highest: int) -> Tensor:
    """(H, W) uint8 train ids, 255 ignored, of a grey or palette PNG of Cityscapes ids.

    Args:
        file: the PNG.
        kind: whose ids, for messages.
        highest: ids are 0..highest, and 255 for "none".

    Raises:
        ValueError: the file cannot be read as ids, holds one outside the range, or draws one in the colour of another
            class.
    """
    ids, palette = read_ids(file)
    expected = f"{kind} ids are expected, from {CITYSCAPES[0].id} for road to {CITYSCAPES[-1].id} for bicycle"
    for index in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)).tolist():
        drawn = _BY_COLOUR.get(palette[index]) if index < len(palette) else None
        if drawn and drawn.id != index and (index, drawn.name) not in _SAME_COLOUR:
            raise ValueError(
                f"{file}: palette index {index} has the colour of {drawn.name}, whose id is {drawn.id}; {expected}"
            )
        if highest < index < 255:
            raise ValueError(f"{file}: label {index} is outside 0..{highest} (and not the ignored 255); {expected}")
    return torch.from_numpy(_TRAIN_IDS[ids])


def read_stored_train_ids(file: Path) -> Tensor:
    """(H, W) uint8 train ids, 255 ignored, of a PNG that holds them as they are.

    Raises:
        ValueError: the file cannot be read as ids, or holds others than 0..18 and 255.
    """
    ids = read_ids(file)[0]
    outside = ids[(ids >= len(CITYSCAPES)) & (ids < 255)]
    if outside.size:
        raise ValueError(
            f"{file}: label {outside[0]} is outside 0..18 (and not the ignored 255); train ids are expected"
        )
    return torch.from_numpy(ids)
