"""Our numbers against the authors' code, through the public API: every vector, then four steps of training."""

from fnmatch import fnmatchcase

import pytest
from parity import MEANING, PARTS, Part, build, reference_names
from reference import ENTRIES

from hrda_lib.models import to_reference_state_dict


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.title)
def test_every_number_is_the_authors(part: Part) -> None:
    rows = part.rows()
    assert rows.keys() == {name for name in reference_names() if name.startswith(part.prefix)}
    missed = {name: row for name, row in rows.items() if not row[0] <= row[1]}
    assert not missed


def test_every_number_has_one_row_of_the_table() -> None:
    for name in reference_names():
        assert len([pattern for pattern in MEANING if fnmatchcase(name, pattern)]) == 1, name


def test_every_entry_of_the_file_is_a_name_of_the_model() -> None:
    assert {name: tuple(x.shape) for name, x in to_reference_state_dict(build()).items()} == ENTRIES
