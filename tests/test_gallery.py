"""The gallery: its blocks run, its pictures are drawn in both themes, and pages and pictures know each other."""

import os
import re
from typing import Any

import numpy as np
import pictures
import pytest
from documents import DOCS
from matplotlib import pyplot as plt
from pictures import PICTURES, THEMES, markdown, names_of_the_gallery, style, thumbnails
from PIL import Image
from step_diagram import step_diagram

from hrda_lib import fuse_scales


@pytest.fixture(scope="module")
def computed() -> dict[str, Any]:
    return names_of_the_gallery()


def test_what_the_gallery_says_of_its_numbers_holds(computed: dict[str, Any]) -> None:
    assert len(computed["windows"]) == 9
    assert (int(computed["coverage"].min()), int(computed["coverage"].max())) == (1, 4)
    coarse = computed["counted"]
    assert (coarse[0.75] & ~coarse[0.25]).sum() == 0
    assert 0 < coarse[0.75].sum() < coarse[0.25].sum()
    matrices = computed["matrices"]
    assert matrices["fused"].mean_iou() > matrices["context"].mean_iou()
    errors = {name: (answer - computed["whole"]).abs().mean() for name, answer in computed["shown"].items()}
    assert errors["gaussian"] < 0.2 * errors["constant"]
    by = {per: weight.mean(dim=(1, 2)).tolist() for per, (_, weight) in computed["answers"].items()}
    assert by["image"] == pytest.approx(by["pixel"])
    assert by["batch"] == pytest.approx([sum(by["image"]) / 2] * 2)


def test_the_fused_picture_is_the_primitives(computed: dict[str, Any]) -> None:
    """Outside the box the context alone; one cell beside it the blend."""
    context = fuse_scales(computed["context_logits"], computed["detail_logits"], 0.0, box=computed["box"])
    top, left, height, width = computed["box"]
    near = np.zeros((48, 96), bool)
    near[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1] = True
    changed = (computed["fused"] != context).any(dim=1)[0].numpy()
    assert changed.any()
    assert not changed[~near].any()


@pytest.mark.parametrize("name", [name for name, picture in PICTURES.items() if picture.draw is not None])
def test_a_picture_can_be_drawn(name: str, computed: dict[str, Any], tmp_path: Any) -> None:
    draw = PICTURES[name].draw
    assert draw is not None
    with plt.rc_context(style("dark")):
        figure = draw(computed)
        figure.savefig(tmp_path / "a.png", dpi=20)
        plt.close(figure)
    with Image.open(tmp_path / "a.png") as image:
        corner, middle = np.array(image)[1, 1, :3], np.array(image)[..., :3]
    assert corner.tolist() == [0x13, 0x14, 0x16]
    assert middle.std() > 5


def test_the_text_of_the_step_diagram_is_text_in_the_colour_of_its_page() -> None:
    for colours in THEMES.values():
        drawn = step_diagram(**colours)
        assert "teacher.update(student)" in drawn
        assert colours["text"] in drawn
        assert colours["page"] in drawn


def test_light_and_dark_are_each_for_their_page() -> None:
    text = markdown("crops", PICTURES["crops"], linked=True)
    order = [text.index(word) for word in ("crops-light.png", "only-light", "crops-dark.png", "only-dark")]
    assert order == sorted(order)
    assert "#gallery-crops" in text
    assert "#gallery-crops" not in markdown("crops", PICTURES["crops"], linked=False)


def test_every_picture_is_in_the_gallery_and_on_a_page_of_the_api() -> None:
    gallery = (DOCS / "gallery.md").read_text(encoding="utf-8")
    api = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    for name in PICTURES:
        assert f"(gallery-{name.replace('_', '-')})=" in gallery
        assert f"{{{{ {name}_here }}}}" in gallery
        assert f"{{{{ {name} }}}}" in api


def test_every_page_of_the_api_has_a_picture_or_a_reason() -> None:
    reasons = (DOCS / "gallery.md").read_text(encoding="utf-8").partition("## Without a picture")[2]
    for page in (DOCS / "api").glob("*.md"):
        if page.stem != "index" and not re.search(r"^\{\{ \w+ \}\}$", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"api/{page.name}" in reasons, page.name


def test_the_index_of_the_api_points_to_every_picture() -> None:
    index = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\(#gallery-([\w-]+)\) \|$", index, re.MULTILINE))
    assert named == {name.replace("_", "-") for name in PICTURES}


def test_the_table_of_changes_names_every_picture() -> None:
    table = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| to change |")[2]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.split("\n\n")[0].splitlines()[2:]]
    named = {name for row in rows for name in row[5].split(", ") if name}
    assert named == {*PICTURES, "its name"}


def test_the_gallery_begins_with_every_picture_small() -> None:
    cards = thumbnails().split(":::{grid-item-card}")[1:]
    gallery = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert gallery.index("{{ thumbnails }}") < gallery.index("{{ crops_here }}")
    assert len(cards) == len(PICTURES)
    for name in PICTURES:
        (card,) = (card for card in cards if f"gallery-{name.replace('_', '-')}\n" in card)
        assert all(f"/_pictures/{pictures.files(name)[theme].name}" in card for theme in THEMES)


def test_captions_are_sentences_and_alternatives_say_what_is_seen() -> None:
    for name, picture in PICTURES.items():
        assert picture.caption.endswith("."), name
        assert len(picture.alt) > 40, name


def test_a_picture_older_than_its_lines_is_drawn_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    assert pictures.stale()
    for name in PICTURES:
        for file in pictures.files(name).values():
            file.touch()
    assert not pictures.stale()
    os.utime(pictures.files("crops")["dark"], (0, 0))
    assert pictures.stale()
