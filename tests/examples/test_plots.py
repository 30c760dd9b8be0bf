"""What the pictures of a run show: read from the figures before they are drawn, and one of them from its file."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.container import BarContainer, ErrorbarContainer
from PIL import Image
from scripts import EXAMPLES
from trees import write

from hrda_lib.data import CITYSCAPES, Folders, ResizedImages
from support import plots
from support.networks import Network, NetworkSpec, heads
from support.plots import (
    SERIES,
    display,
    draw_arms,
    draw_classes,
    draw_curves,
    draw_grid,
    draw_legend,
    draw_panel,
    draw_shares,
    paint,
    palette,
)

NAMES = ("left", "one", "two")
SCALES = ("context alone", "detail alone", "attention to detail")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures in the order in which they would be saved."""
    found: list[Any] = []

    def keep(figure: Any, file: Path, **_: Any) -> None:
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
    axes = [axis for axis in figure.axes if axis.get_label() != "bar"]
    cells = [axis.images[0].get_array() if axis.images else None for axis in axes]
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
    assert not palette([]).any()
    assert paint(torch.tensor([[1, 255], [0, 1]]), ["sky", "road"]).tolist() == [
        [[128, 64, 128], [0, 0, 0]],
        [[70, 130, 180], [128, 64, 128]],
    ]


def test_known_names_keep_their_colour_beside_others() -> None:
    own = palette(["sky", *map(str, range(40))])
    assert own[0].tolist() == [70, 130, 180]
    for count in (1, 41, 255):
        many = palette(["sky", "Road", *map(str, range(count - 2))])[:count]
        assert len(np.unique(many, axis=0)) == count
        assert many.any(axis=1).all()
    assert not own[41:].any()


def test_camvid_has_the_colours_of_cityscapes() -> None:
    names = (EXAMPLES / "support/camvid_classes.txt").read_text().split()[:-1]
    alike = {"pavement": "sidewalk", "tree": "vegetation", "sign": "traffic sign", "pedestrian": "person"}
    official = {entry.name: list(entry.colour) for entry in CITYSCAPES}
    expected = [official[{**alike, "bicyclist": "rider"}.get(name, name)] for name in names]
    assert palette(names)[: len(names)].tolist() == expected
    both = palette(["person", "pedestrian"])  # one colour is for one class
    assert both[0].tolist() == official["person"]
    assert both[1].tolist() == list(SERIES[0])


# how red, green and blue look to who lacks a kind of cone: Machado et al., 2009, for linear values
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def nearest(colours: np.ndarray, kind: str) -> float:
    """The smallest distance of two colours as they are seen, of 255 a channel."""
    linear = (colours / 255) ** 2.2 @ np.array(BLIND[kind]).T
    seen = 255 * linear.clip(0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    return float(apart[np.triu_indices(len(seen), 1)].min())


@pytest.mark.parametrize("kind", BLIND)
def test_own_names_are_told_apart_by_the_colour_blind(kind: str) -> None:
    colours = palette(list("abcdefg"))[:7].astype(float)
    assert nearest(colours, kind) > 30


def test_that_check_refuses_colours_that_look_alike() -> None:
    usual = [matplotlib.colors.to_rgb(f"C{i}") for i in range(7)]
    assert nearest(255 * np.array(usual), "protan") < 20


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
    grey = display(dark[:1].byte())  # nor is one of bytes, or are four
    assert (grey.shape, grey.max()) == ((5, 6, 3), 255)
    assert display(torch.cat([dark, dark[:1]]).byte()).max() == 255


# Grids


def test_the_panel_of_a_run(figures: list[Any], tmp_path: Path) -> None:
    model, spec = network(channels=4, mean=(0.5,) * 4, std=(0.25,) * 4)
    images = [torch.rand(4, *size, generator=torch.Generator().manual_seed(0)) for size in ((40, 56), (30, 50))]
    draw_panel(tmp_path / "panel.png", model, spec, iter(images), threshold=0.9)  # type: ignore[arg-type]
    (figure,) = figures
    assert titles(figure) == [
        *("image", "prediction", "context alone", "detail alone", "attention to detail", "pseudo label", "weight")
    ]
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
    assert titles(last_two) == ["image", "truth", "one scale", "two", *(f"two, {text}" for text in SCALES)]
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
    (bar,) = (axis for axis in figure.axes if axis.get_label() == "bar")
    assert bar.get_xlim() == (0, 1)
    cell, place = figure.axes[1].get_position(), bar.get_position()
    assert (place.x0, place.x1) == pytest.approx((cell.x0, cell.x1))
    assert place.y1 < cell.y0
    assert legend(figure) == ["left", "two"]
    handles = figure.legends[0].get_patches()
    assert np.allclose([handle.get_facecolor()[:3] for handle in handles], palette(NAMES)[[0, 2]] / 255)


# Bars and curves


def bars(axis: Any) -> dict[str, list[float]]:
    groups = [group for group in axis.containers if isinstance(group, BarContainer)]
    return {group.get_label(): [float(bar.get_height()) for bar in group] for group in groups}


def spreads(axis: Any) -> list[list[float]]:
    """Lengths of the error bars, a list a group."""
    found = [group.lines[2][0].get_segments() for group in axis.containers if isinstance(group, ErrorbarContainer)]
    return [[float(segment[1, 1] - segment[0, 1]) for segment in segments] for segments in found]


def dots(axis: Any) -> list[list[float]]:
    """Heights of the dots, a list a group."""
    return [sorted(group.get_offsets()[:, 1].tolist()) for group in axis.collections if len(group.get_offsets()) > 1]


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
    assert first.get_ylim()[1] == 100
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["of all pixels", "drawn"]
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
        "IoU of the arms",
        "IoU of hrda, and of its two scales alone",
        "Attention of hrda to the detail",
    ]
    assert [axis.get_ylabel() for axis in both.axes] == ["IoU, %", "IoU, %", "Attention, %"]
    arms = both.axes[0]  # of two seeds, 50 and 75, and twice 87.5
    assert spreads(arms) == [pytest.approx([2 * 12.5 * 2**0.5, 0]), pytest.approx([0, 0])]
    assert dots(arms) == [[50, 50, 50, 75], [50, 50, 87.5, 87.5]]
    assert both.get_supxlabel() == "mean and standard deviation of 2 seeds, a dot each"
    assert not spreads(single.axes[0])
    assert not dots(single.axes[0])
    assert not single.get_supxlabel()
    assert [bars(axis) for axis in both.axes] == [
        {"control": [62.5, 50], "hrda": [87.5, 50]},
        {"fused": [87.5, 50], "context": [25, 12.5], "detail": [25, 12.5]},
        {"attention": [25, 12.5]},
    ]
    assert [label.get_text() for label in both.axes[-1].get_xticklabels()] == ["road", "car"]
    assert titles(single) == ["IoU of the arms"]


def lines(axis: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]


def step(i: int, **values: float) -> dict[str, Any]:
    return {"step": i, **values, "seconds": 0.5, "memory": 800.0}


def test_curves(figures: list[Any], tmp_path: Path) -> None:
    short = [step(i, loss_source=4.0 - i) for i in range(3)]
    long = [step(i, loss_source=1.0, loss_mixed=float(i), lr=float(i)) for i in range(100)]
    draw_curves(tmp_path / "curves.png", {"control": short, "hrda": [step(0, loss_source=1.0), *long[1:]]})
    draw_curves(tmp_path / "curves.png", {"": short})
    draw_curves(tmp_path / "curves.png", {"": []})  # stopped before its first step
    both, single, empty = figures
    assert titles(both) == ["loss on source images", "losses of self-training", "learning rate"]
    source, mixed, rate = both.axes
    assert lines(source)[0] == ([0, 1, 2], [4, 3, 2])
    raw, smooth = lines(mixed)
    assert raw == (list(range(1, 100)), [float(i) for i in range(1, 100)])
    # the mean of 3 steps, at the last of them
    assert smooth[0] == list(range(3, 100))
    np.testing.assert_allclose(smooth[1], np.arange(3, 100) - 1)
    assert lines(rate) == [raw]  # which is no noise
    assert legend(both) == ["control", "hrda"]
    assert {axis.get_xlabel() for axis in both.axes} == {"step"}
    assert not single.legends
    assert not lines(empty.axes[0])


def test_everything_that_is_logged_is_two_rows_of_three_panels(figures: list[Any], tmp_path: Path) -> None:
    said = ("loss_source", "loss_mixed", "loss_masked", "feature_distance", "confidence", "largest_class", "lr")
    looked_at = ("gradient", "val_iou", "label_accuracy", "trusted", "trusted_accuracy")
    values = {key: 0.1 * i for i, key in enumerate((*said, *looked_at))}
    draw_curves(tmp_path / "curves.png", {"": [step(i, **values) for i in range(3)]})
    draw_curves(tmp_path / "curves.png", {"": [step(i, **values, loss_tokens=5.0) for i in range(3)]})
    six, seven = figures
    assert six.axes[0].get_gridspec().get_geometry() == (2, 3)
    assert len(titles(six)) == 6
    drawn = [line[1][0] for axis in six.axes for line in lines(axis)]
    assert sorted(drawn) == pytest.approx(sorted(values.values()))
    assert [len(axis.lines) for axis in six.axes] == [2, 2, 2, 4, 1, 1]
    named = [text.get_text() for text in six.axes[3].get_legend().get_texts()]
    assert named == ["mean IoU", "right pseudo labels", "right among the trusted", "trusted"]
    styles = [line.get_linestyle() for line in six.axes[3].lines]
    assert styles == [line.get_linestyle() for line in six.axes[3].get_legend().get_lines()]
    assert len(set(styles)) == 4
    assert titles(seven)[6] == "loss_tokens"  # what another loop logs is not left out
    assert len(seven.axes) == 9


# Files


def test_a_file_has_the_colours_that_were_drawn(tmp_path: Path) -> None:
    names = [*(entry.name for entry in CITYSCAPES), "own"]
    ids = torch.arange(20, dtype=torch.uint8).repeat_interleave(5).expand(40, -1)
    noise = torch.randint(256, (3, 40, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = plt.get_fignums()
    draw_grid(tmp_path / "grid.png", [[display(noise), ids]], ["a", "b"], names, [])
    assert plt.get_fignums() == before
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
    with Image.open(tmp_path / "grid.png") as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        pixels = np.array(image)
    right = pixels[len(pixels) // 2, pixels.shape[1] // 2 + 10 : -10].tolist()  # across the map of classes
    colours = [colour for i, colour in enumerate(right) if i == 0 or colour != right[i - 1]]
    assert colours == palette(names)[:20].tolist()


def test_curves_and_bars_are_vectors_too(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", {"": [step(0, loss_source=1.0)]})
    draw_classes(tmp_path / "classes.png", {"uda": [result(0.5)]})
    names = {f"{name}.{ending}" for name in ("curves", "classes") for ending in ("png", "pdf")}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert all(file.read_bytes().startswith(b"%PDF") for file in tmp_path.glob("*.pdf"))
    first = (tmp_path / "classes.pdf").read_bytes()
    draw_classes(tmp_path / "classes.png", {"uda": [result(0.5)]})
    assert (tmp_path / "classes.pdf").read_bytes() == first  # no date


def test_a_legend_names_the_colours_of_the_classes(figures: list[Any], tmp_path: Path) -> None:
    names = ("road", "a class with a long name", "car")
    draw_legend(tmp_path / "legend.png", names)
    (legend,) = figures[0].legends
    assert tuple(text.get_text() for text in legend.get_texts()) == names
    colours = [np.round(255 * np.array(patch.get_facecolor()[:3])) for patch in legend.get_patches()]
    assert np.array_equal(colours, palette(names)[:3])
    figures[0].draw_without_rendering()
    frame, page = legend.get_window_extent(), figures[0].bbox
    assert (frame.width, frame.height) == pytest.approx((page.width, page.height), abs=1)  # nothing cut, nothing empty
