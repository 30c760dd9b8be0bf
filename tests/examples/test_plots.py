"""What the pictures of a run show: read from the figures before they are drawn, and one of them from its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from trees import write

from hrda_lib.data import CITYSCAPES, Folders, ResizedImages
from support import plots
from support.networks import Network, NetworkSpec, heads
from support.plots import (
    display,
    draw_arms,
    draw_classes,
    draw_curves,
    draw_grid,
    draw_panel,
    draw_shares,
    paint,
    palette,
)

NAMES = ("left", "one", "two")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures in the order in which they would be saved."""
    found: list[Any] = []

    def keep(figure: Any, file: Path) -> None:
        found.append(figure)
        plt.close(figure)

    monkeypatch.setattr(plots, "_save", keep)
    return found


def network(model: str = "small", **changes: Any) -> tuple[Network, NetworkSpec]:
    torch.manual_seed(0)
    spec = NetworkSpec(NAMES, (32, 32), model, "mini" if model == "small" else "mit_b0", **changes)
    built = spec.build()
    torch.nn.init.normal_(built.decoder.classifier.weight)
    return built.eval(), spec


def pictures(figure: Any, columns: int) -> list[list[np.ndarray]]:
    """What lies in each cell of a grid, row by row."""
    cells = [axis.images[0].get_array() if axis.images else None for axis in figure.axes]
    return [cells[i : i + columns] for i in range(0, len(cells), columns)]


def titles(figure: Any) -> list[str]:
    return [title for axis in figure.axes if (title := axis.get_title())]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# Colours


def test_official_colours_and_others() -> None:
    names = [entry.name for entry in CITYSCAPES]
    assert palette(names)[:19].tolist() == [list(entry.colour) for entry in CITYSCAPES]
    assert palette(["sky", "road"])[:2].tolist() == [[70, 130, 180], [128, 64, 128]]
    assert not palette(["sky", "road"])[2:].any()  # what is no class is black
    own = palette(["sky", *map(str, range(40))])  # a name that is not Cityscapes' changes all
    assert own[0].tolist() != [70, 130, 180]
    assert len(np.unique(own[:41], axis=0)) == 41
    assert own[:41].any(axis=1).all()
    assert not own[41:].any()
    assert not palette([]).any()
    assert paint(torch.tensor([[1, 255], [0, 1]]), ["sky", "road"]).tolist() == [
        [[128, 64, 128], [0, 0, 0]],
        [[70, 130, 180], [128, 64, 128]],
    ]


def test_display() -> None:
    rgb = torch.randint(256, (3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(display(rgb), rgb.permute(1, 2, 0).numpy())
    bands = torch.linspace(-4, 9000, 4 * 200).view(4, 10, 20)
    shown = display(bands)
    assert (shown.shape, shown.dtype) == ((10, 20, 3), np.uint8)
    assert [(int(shown[..., i].min()), int(shown[..., i].max())) for i in range(3)] == [(0, 255)] * 3
    two = display(bands[:2])
    assert np.array_equal(two[..., 0], shown[..., 0])
    assert np.array_equal(two[..., 0], two[..., 2])
    assert np.unique(display(torch.full((1, 4, 4), 7.0))).tolist() == [0]
    dark = torch.randint(9, (3, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    assert display(dark).max() == 255  # three bands of floats are no picture
    assert display(dark.byte()).max() < 9


# Grids


def test_the_panel_of_a_run(figures: list[Any], tmp_path: Path) -> None:
    model, spec = network(channels=4, mean=(0.5,) * 4, std=(0.25,) * 4)
    images = [torch.rand(4, *size, generator=torch.Generator().manual_seed(0)) for size in ((40, 56), (30, 50))]
    draw_panel(tmp_path / "panel.png", model, spec, iter(images), threshold=0.9)  # type: ignore[arg-type]
    (figure,) = figures
    assert titles(figure) == ["image", "prediction", "context", "detail", "attention", "pseudo label", "weight"]
    assert legend(figure) == list(NAMES)
    rows = pictures(figure, 7)
    assert len(rows) == 2
    for image, row in zip(images, rows, strict=True):
        maps = heads(model, spec.feed(image[None]))
        expected = [paint(maps[head][0].argmax(0), NAMES) for head in ("fused", "context", "detail")]
        for shown, picture in zip(row[:4], [display(image), *expected], strict=True):
            assert np.array_equal(shown, picture)
        assert np.array_equal(row[4], maps["attention"][0, 0])
        assert np.array_equal(row[5], row[1])
        sure = maps["fused"].softmax(1).amax(1)[0] >= 0.9
        assert np.array_equal(row[6], sure.float())
    assert 0 < np.mean(rows[0][6]) < 1


def test_the_panel_of_the_arms(figures: list[Any], tmp_path: Path) -> None:
    data = Folders(write(tmp_path / "data", 7, (40, 56)))
    images = ResizedImages(data.unlabeled(), (20, 28))
    small, single = network(), network("daformer")
    draw_arms(tmp_path / "panel.png", {"one scale": single, "two": small}, data, images)
    draw_arms(tmp_path / "panel.png", {"two": small, "one scale": single}, data, images)
    last_two, last_one = figures
    assert titles(last_two) == ["image", "truth", "one scale", "two", "its context", "its detail", "its attention"]
    assert titles(last_one) == ["image", "truth", "two", "one scale"]
    rows = pictures(last_two, 7)
    assert len(rows) == 3
    for i, row in zip((1, 3, 5), rows, strict=True):  # spread over the images
        assert np.array_equal(row[0], display(images[i].image))
        assert np.array_equal(row[1], paint(data.label(i), NAMES))
        assert row[2].shape == row[3].shape == (40, 56, 3)  # at the size of the truth
        assert row[6].shape == (40, 56)
        for (model, spec), shown in zip((single, small), row[2:4], strict=True):
            said = torch.nn.functional.interpolate(
                heads(model, spec.feed(images[i].image[None]))["fused"], (40, 56), mode="bilinear", align_corners=False
            )
            assert (shown == paint(said[0].argmax(0), NAMES)).mean() > 0.999
    # classes 3 and 5 are in the truth, but have no name
    assert legend(last_two) == ["left", "one"]
    few = Folders(write(tmp_path / "few", 1, (40, 56)))
    draw_arms(tmp_path / "panel.png", {"two": small}, few, few.unlabeled())
    assert len(pictures(figures[2], 6)) == 1
    assert legend(figures[2]) == ["left"]


def test_a_grid_whose_last_row_is_shorter(figures: list[Any], tmp_path: Path) -> None:
    picture, share = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 0.5)
    draw_grid(tmp_path / "grid.png", [[picture, share], [picture]], ["a", "b"], NAMES, {0, 2})
    (figure,) = figures
    assert [[cell is not None for cell in row] for row in pictures(figure, 2)] == [[True, True], [True, False]]
    assert figure.axes[1].images[0].get_clim() == (0, 1)  # a share has the same colour in every picture
    assert legend(figure) == ["left", "two"]
    handles = figure.legends[0].get_patches()
    assert np.allclose([handle.get_facecolor()[:3] for handle in handles], palette(NAMES)[[0, 2]] / 255)


# Bars and curves


def bars(axis: Any) -> dict[str, list[float]]:
    return {group.get_label(): [float(bar.get_height()) for bar in group] for group in axis.containers}


def test_shares(figures: list[Any], tmp_path: Path) -> None:
    counts = torch.tensor([[60, 0, 0], [20, 20, 0]])
    draw_shares(tmp_path / "shares.png", NAMES, counts, torch.tensor([0.25, 0.75, 0]))
    draw_shares(tmp_path / "shares.png", NAMES, counts, None)
    first, second = (figure.axes[0] for figure in figures)
    expected = {"of all pixels": [80, 20, 1e-3], "drawn": [25, 75, 1e-3]}  # a logarithm has no 0
    assert bars(first).keys() == expected.keys()
    for name, heights in bars(first).items():
        assert heights == pytest.approx(expected[name])
    assert list(bars(second)) == ["of all pixels"]
    assert first.get_yscale() == "log"
    assert [label.get_text() for label in first.get_xticklabels()] == list(NAMES)


def result(road: float, **more: dict[str, float | None]) -> dict[str, Any]:
    return {"classes": {"fused": {"road": road, "bus": None, "car": 0.5}, **more}}


def test_classes_of_the_arms(figures: list[Any], tmp_path: Path) -> None:
    others = {head: {"road": 0.25, "bus": None, "car": 0.125} for head in ("context", "detail", "attention")}
    results = {"control": [result(0.5), result(0.75)], "hrda": [result(0.875, **others)] * 2}
    draw_classes(tmp_path / "classes.png", results)
    draw_classes(tmp_path / "classes.png", {"uda": [result(0.5)]})
    both, single = figures
    assert titles(both) == [
        "IoU of the arms, %",
        "IoU of hrda and of its two scales alone, %",
        "attention of hrda to the detail, %",
    ]
    assert [bars(axis) for axis in both.axes] == [
        {"control": [62.5, 50], "hrda": [87.5, 50]},
        {"fused": [87.5, 50], "context": [25, 12.5], "detail": [25, 12.5]},
        {"attention": [25, 12.5]},
    ]
    assert [label.get_text() for label in both.axes[-1].get_xticklabels()] == ["road", "car"]
    assert titles(single) == ["IoU of the arms, %"]


def lines(axis: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]


def test_curves(figures: list[Any], tmp_path: Path) -> None:
    short = [{"step": i, "loss_source": 4.0 - i} for i in range(3)]
    long: Sequence[dict[str, Any]] = [{"step": i, "loss_source": 1.0, "loss_mixed": float(i)} for i in range(100)]
    draw_curves(tmp_path / "curves.png", {"control": short, "hrda": [{"step": 0, "loss_source": 1.0}, *long[1:]]})
    draw_curves(tmp_path / "curves.png", {"": short})
    draw_curves(tmp_path / "curves.png", {"": []})  # stopped before its first step
    both, single, empty = figures
    assert titles(both) == ["loss_source", "loss_mixed"]
    source, mixed = both.axes
    assert lines(source)[0] == ([0, 1, 2], [4, 3, 2])
    raw, smooth = lines(mixed)
    assert raw == (list(range(1, 100)), [float(i) for i in range(1, 100)])
    # the mean of 3 steps, at the last of them
    assert smooth[0] == list(range(3, 100))
    np.testing.assert_allclose(smooth[1], np.arange(3, 100) - 1)
    assert [text.get_text() for text in source.get_legend().get_texts()] == ["control", "hrda"]
    assert single.axes[0].get_legend() is None
    assert not lines(empty.axes[0])


def test_a_file_of_256_colours(tmp_path: Path) -> None:
    noise = torch.randint(256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = plt.get_fignums()
    draw_grid(tmp_path / "grid.png", [[display(noise), display(noise)]], ["a", "b"], NAMES, range(3))
    assert plt.get_fignums() == before
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
    with Image.open(tmp_path / "grid.png") as image:
        assert image.format == "PNG"
        assert len(image.getcolors()) <= 256
        assert image.width > 2 * image.height
