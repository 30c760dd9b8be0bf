"""The drawings of the toy benchmark are frozen: results were measured on exactly these."""

import hashlib

import numpy as np
import pytest

from toy.streets import CITIES, GAME, draw


@pytest.mark.parametrize(
    ("domain", "index", "city", "checksum"),
    [
        ("game", 0, "game", "2d8cdc40685dcd938de069f8019f692c1119ba447b8d3527ef258d69ccbb8276"),
        ("city", 10000, "oldtown", "608101ff2c0d2a7b43ebba4b7d6ff01eef1d0d64f6a42a5262c0e09b70939ed9"),
        ("city", 20001, "hilltown", "73172e13a9deb940369ab18734675222125de118e9937198f6382be0593afca5"),
    ],
)
def test_checksums_of_three_images(domain: str, index: int, city: str, checksum: str) -> None:
    street = draw(domain, 1, index)
    assert street.city == city
    assert hashlib.sha256(street.image.tobytes() + street.label.tobytes()).hexdigest() == checksum


def test_shapes_classes_and_gaps() -> None:
    game, city = ([draw(domain, 3, i) for i in range(12)] for domain in ("game", "city"))
    for street in (*game, *city):
        assert (street.image.shape, street.image.dtype) == ((192, 384, 3), np.uint8)
        assert (street.label.shape, street.label.dtype) == ((192, 384), np.uint8)
        assert set(np.unique(street.label)) <= set(GAME)
    for streets in (game, city):
        assert set(np.unique([street.label for street in streets])) == set(GAME)
    assert {street.city for street in game} == {"game"}
    assert {street.city for street in city} == set(CITIES)
    assert all(0 <= street.gap <= 0.15 for street in game)
    assert all(0.15 <= street.gap <= 0.9 for street in city)


def test_seed_index_and_domain_all_matter() -> None:
    pictures = [draw("game", 0, 0), draw("game", 0, 1), draw("game", 1, 0), draw("city", 0, 0)]
    assert len({street.image.tobytes() for street in pictures}) == 4
    assert draw("game", 0, 0).image.tobytes() == pictures[0].image.tobytes()
