"""Labels of street data sets, read as train ids."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hrda_lib.data.layout import shown
from hrda_lib.data.palettes import Colours
from hrda_lib.data.samples import LabelClass
from hrda_lib.data.stored_ids import StoredIds, ignoring
from hrda_lib.data.streets.classes import CITYSCAPES

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
    return StoredIds(_TRAIN_IDS, partial(_check_ids, kind=kind, highest=highest), official=True)


def is_drawn_officially(colours: Colours) -> bool:
    """Whether a palette gives the ids of the classes their official colours, as far as it goes."""
    known = [entry for entry in CITYSCAPES if entry.id < len(colours)]
    return len(known) > 2 and all(colours[entry.id] == entry.colour for entry in known)


def _check_ids(file: Path, ids: list[int], palette: Colours, *, kind: str, highest: int) -> None:
    expected = f"{kind} ids are expected, from {CITYSCAPES[0].id} for road to {CITYSCAPES[-1].id} for bicycle"
    for index in ids:
        drawn = _BY_COLOUR.get(palette[index]) if index < len(palette) else None
        if drawn and drawn.id != index and (index, drawn.name) not in _SAME_COLOUR:
            raise ValueError(
                f"{shown(file)}: palette index {index} has the colour of {drawn.name}, whose id is {drawn.id}; "
                f"{expected}"
            )
        check_range(file, [index], palette, highest=highest, expected=expected)


def check_range(file: Path, ids: list[int], palette: Colours, *, highest: int, expected: str) -> None:
    """Refuse ids outside 0..``highest`` and 255.

    Raises:
        ValueError: names the file and the id.
    """
    for index in ids:
        if highest < index < 255:
            raise ValueError(
                f"{shown(file)}: label {index} is outside 0..{highest} (and not the ignored 255); {expected}"
            )


STORED_TRAIN_IDS = StoredIds(ignoring(()), partial(check_range, highest=18, expected="train ids are expected"))
"""Reads PNGs that hold train ids as they are; other ids than 0..18 and 255 are refused."""
