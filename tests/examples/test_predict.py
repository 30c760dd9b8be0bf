"""Images of any size to labels, overlays and what a benchmark's server takes."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import main, picture, run, run_together
from torch import Tensor
from trees import pixels, saved

import support.huge
from hrda_lib import MultiResSegmenter
from hrda_lib.data import CITYSCAPES, normalize
from predict import overlay
from support.networks import NetworkSpec, heads
from support.plots import palette
from support.run_folder import RunFolder, load

SIZES = {"small": (7, 9), "odd": (61, 83), "grey": (48, 64)}
NPY = """
import numpy as np
import torch
from hrda_lib.data import Folders

def read(file):
    return torch.from_numpy(np.load(file))

source = Folders({root!r}, read_image=read)
target = source.unlabeled()
names = ["a", "b", "c"]
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i, (name, size) in enumerate(SIZES.items()):
        rgb = np.random.default_rng(i).integers(256, size=(*size, 3)).astype(np.uint8)
        Image.fromarray(rgb).convert("L" if name == "grey" else "RGB").save(folder / f"{name}.jpg")
    return folder


def image_of(file: Path) -> Tensor:
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def predicted(folder: Path, file: Path) -> np.ndarray:
    labels: np.ndarray = load(folder)[0].predict(normalize(image_of(file)[None]), output="labels")[0].numpy()
    return labels


def small_run(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    spec = NetworkSpec(("a", "b", "c"), (32, 32), **changes)
    folder.mkdir(exist_ok=True)
    model = spec.build()
    torch.nn.init.normal_(model.decoder.classifier.weight)
    RunFolder(folder, spec).finish(model, None)
    return folder


def test_any_size_and_on_after_a_bad_file(
    street_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    saved(tmp_path / "one" / "alone.png", pixels(0))
    out, attention = tmp_path / "out", [] if "daformer" in street_run.name else ["--save-attention"]
    inputs = images, tmp_path, tmp_path / "one" / "alone.png", tmp_path / "no.png"
    if attention:  # in a process of its own, where warnings are errors
        done = run("predict.py", street_run, *inputs, "--out", out, *attention)
        status, printed, errors = done.returncode, done.stdout, done.stderr
    else:
        status = main("predict.py", street_run, *inputs, "--out", out)
        printed, errors = capsys.readouterr()
    assert status == 1
    assert f"predict.py: {tmp_path / 'bad.png'}: cannot be read as an image" in errors
    assert f"predict.py: {tmp_path / 'no.png'}: no such file" in errors
    assert f"{out}: 4 of 6 images" in printed
    endings = ("", "_overlay", "_attention")[: 2 + len(attention)]
    assert {file.name for file in out.iterdir()} == {
        "legend.png",
        *(f"{stem}{ending}.png" for stem in (*SIZES, "alone") for ending in endings),
    }
    for name, (height, width) in SIZES.items():
        label = picture(out / f"{name}.png")
        assert (label.dtype, label.shape) == (np.uint8, (height, width))
        assert np.array_equal(label, predicted(street_run, images / f"{name}.jpg"))
        assert picture(out / f"{name}_overlay.png").shape == (height, width, 3)


def test_overlay_and_attention(street_run: Path, images: Path, tmp_path: Path) -> None:
    (model, spec), file = load(street_run), images / "odd.jpg"
    image = image_of(file)
    if not isinstance(model, MultiResSegmenter):
        assert main("predict.py", street_run, file, "--out", tmp_path, "--save-attention") == 2
        return
    assert main("predict.py", street_run, file, "--out", tmp_path, "--save-attention") == 0
    colours = palette(spec.classes)[picture(tmp_path / "odd.png")].astype(float)
    mixed = (image.permute(1, 2, 0).numpy() + colours) / 2
    assert np.abs(picture(tmp_path / "odd_overlay.png") - mixed).max() < 1
    attention = heads(model, spec.feed(image[None]))["attention"][0, 0].numpy()
    assert np.abs(picture(tmp_path / "odd_attention.png") / 255 - attention).max() < 1 / 255


def spec_of(names: list[str]) -> NetworkSpec:
    return NetworkSpec(tuple(names), (32, 32))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("contours", [False, True])
def test_an_overlay_does_not_darken_a_dark_picture(contours: bool, alpha: float) -> None:
    names = [entry.name for entry in CITYSCAPES]
    dusk = torch.randint(12 if alpha > 0.5 else 110, (3, 40, 60), dtype=torch.uint8)
    dusk[:, 0, 0] = 255  # a lamp
    labels = torch.arange(19, dtype=torch.uint8).repeat_interleave(4)[:60].expand(40, -1)
    mixed = overlay(dusk, labels, spec_of(names), alpha=alpha, contours=contours)
    seen = dusk.permute(1, 2, 0).numpy()
    assert (mixed >= seen).all()  # in no channel of any pixel
    assert mixed.mean() > seen.mean() + 10 * alpha
    # what is there stays as clear as it was: neighbours differ as much
    inside = [x for x in range(1, 59) if labels[0, x - 1] == labels[0, x] == labels[0, x + 1]]
    before, after = (np.diff(x[:, inside].astype(int), axis=0) for x in (seen, mixed))
    assert np.abs(after - before).max() <= 1


def test_an_overlay_of_a_bright_picture_is_the_mix() -> None:
    bright = torch.randint(150, 256, (3, 40, 60), dtype=torch.uint8)
    labels = torch.zeros(40, 60, dtype=torch.uint8)
    mixed = overlay(bright, labels, spec_of(["road", "car"]), alpha=0.25)
    expected = 0.75 * bright.permute(1, 2, 0).numpy() + 0.25 * np.array([128, 64, 128])
    assert np.abs(mixed - expected).max() < 1
    black = overlay(torch.zeros(3, 4, 4, dtype=torch.uint8), labels[:4, :4], spec_of(["road"]), alpha=0.5)
    assert np.unique(black.reshape(-1, 3), axis=0).tolist() == [[64, 32, 64]]


def test_flip(street_run: Path, images: Path, tmp_path: Path) -> None:
    assert main("predict.py", street_run, images / "odd.jpg", "--out", tmp_path, "--flip") == 0
    model, x = load(street_run)[0], normalize(image_of(images / "odd.jpg")[None])
    first, mirrored = (model.predict(y).softmax(dim=1) for y in (x, x[..., range(83)[::-1]]))
    expected = (first + mirrored[..., range(83)[::-1]]).argmax(dim=1)[0]
    assert (torch.from_numpy(picture(tmp_path / "odd.png")) == expected).float().mean() > 0.999
    assert not np.array_equal(picture(tmp_path / "odd.png"), predicted(street_run, images / "odd.jpg"))


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "color"])
def test_what_a_server_takes(kind: str, street_run: Path, images: Path, tmp_path: Path) -> None:
    assert main("predict.py", street_run, images, "--out", tmp_path / kind, "--ids", kind, "--zip") == 0
    column = {"labelIds": "id", "labelTrainIds": "train_id", "color": "colour"}[kind]
    table = np.array([getattr(entry, column) for entry in CITYSCAPES])
    with zipfile.ZipFile(tmp_path / f"{kind}.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.png" for name in SIZES)
        for name in SIZES:
            assert archive.read(f"{name}.png") == (tmp_path / kind / f"{name}.png").read_bytes()
            written = picture(tmp_path / kind / f"{name}.png")
            assert written.dtype == np.uint8
            assert np.array_equal(written, table[predicted(street_run, images / f"{name}.jpg")])


@pytest.mark.parametrize("flip", [[], ["--flip"]])
def test_what_the_server_of_dark_zurich_takes(flip: list[str], street_run: Path, images: Path, tmp_path: Path) -> None:
    arguments = [street_run, images / "odd.jpg", "--out", tmp_path / "out", "--server", "dark_zurich", "--zip", *flip]
    assert main("predict.py", *arguments) == 0
    folders = ("labelTrainIds", "labelTrainIds_invalid", "confidence")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == [f"{folder}/odd.png" for folder in folders]
    labels, valid, confidence = (picture(tmp_path / "out" / folder / "odd.png") for folder in folders)
    assert np.array_equal(labels, picture(tmp_path / "out" / "odd.png"))
    assert np.array_equal(valid, labels)
    assert (labels.dtype, confidence.dtype, confidence.shape) == (np.uint8, np.uint16, (61, 83))
    model, x = load(street_run)[0], normalize(image_of(images / "odd.jpg")[None])
    probs = model.predict(x).softmax(dim=1)
    if flip:
        probs = (probs + model.predict(x.flip(-1)).softmax(dim=1).flip(-1)) / 2
    assert np.abs(confidence / 65535 - probs[0].amax(dim=0).numpy()).max() < 1e-4


def test_a_zip_holds_what_this_call_predicted(images: Path, tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run")
    saved(tmp_path / "images" / "0.png", pixels(0))
    saved(tmp_path / "images" / "1.png", pixels(1))
    arguments = [folder, tmp_path / "images", "--out", tmp_path / "out", "--zip"]
    assert main("predict.py", *arguments) == 0
    (tmp_path / "images" / "1.png").write_bytes(b"")
    assert main("predict.py", *arguments) == 1
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["0.png"]


def test_two_processes_predict_as_one(images: Path, tmp_path: Path) -> None:
    model = small_run(tmp_path / "run")
    for count in (1, 2):
        done = run_together(count, "predict.py", model, images, "--out", tmp_path / str(count), "--zip")
        assert done.returncode == 0, done.stderr
        assert f"{tmp_path / str(count)}: {len(list(images.iterdir()))} of" in done.stdout
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / count).iterdir()} for count in "12")
    assert one == two
    assert one
    first, second = (zipfile.ZipFile(tmp_path / f"{count}.zip").namelist() for count in "12")
    assert first == second


def test_the_teacher(street_run: Path, images: Path, tmp_path: Path) -> None:
    (student, spec), (teacher, _) = load(street_run), load(street_run)
    torch.nn.init.normal_(teacher.decoder.classifier.weight, generator=torch.Generator().manual_seed(1))
    RunFolder(tmp_path, spec).finish(student, teacher)
    x, written = normalize(image_of(images / "odd.jpg")[None]), {}
    for weights, model in {"student": student, "teacher": teacher}.items():
        out = tmp_path / weights
        assert main("predict.py", tmp_path, images / "odd.jpg", "--out", out, "--weights", weights) == 0
        written[weights] = picture(out / "odd.png")
        assert np.array_equal(written[weights], model.predict(x, output="labels")[0].numpy())
    assert not np.array_equal(*written.values())
    assert main("predict.py", tmp_path, images / "odd.jpg", "--out", tmp_path / "default") == 0
    assert np.array_equal(picture(tmp_path / "default" / "odd.png"), written["student"])


def test_images_of_other_channels_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read by a FILE.py, whose target lies elsewhere."""
    folder = small_run(tmp_path / "run")
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", np.full((3 + i, 14, 20), 9, np.uint8))
        np.save(tmp_path / "data" / "images" / f"{i}.npy", np.zeros((3, 14, 20), np.uint8))
    (tmp_path / "of_npy.py").write_text(NPY.format(root=str(tmp_path / "data")))
    files = [tmp_path / f"{i}.npy" for i in range(2)]
    assert main("predict.py", folder, *files, "--out", tmp_path / "out", "--data", tmp_path / "of_npy.py") == 1
    expected = f"predict.py: {files[1]}: images must have 3 channels for this network, got 4"
    assert expected in capsys.readouterr().err.splitlines()
    model, spec = load(folder)
    labels = model.predict(spec.feed(torch.full((1, 3, 14, 20), 9, dtype=torch.uint8)), output="labels")[0]
    assert np.array_equal(picture(tmp_path / "out" / "0.png"), labels.numpy())


def test_no_input_is_overwritten(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_run(tmp_path / "run")
    saved(tmp_path / "a" / "0.png", pixels(0))
    saved(tmp_path / "b" / "0.png", pixels(1))
    saved(tmp_path / "c" / "0_overlay.png", pixels(1))
    saved(tmp_path / "d" / "legend.png", pixels(1))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    before = (tmp_path / "a" / "0.png").read_bytes()
    for inputs, out in (("a", "a"), ("a", "link"), ("ab", "out"), ("ac", "out"), ("ac", "c"), ("d", "out")):
        assert main("predict.py", folder, *(tmp_path / name for name in inputs), "--out", tmp_path / out) == 2
        message = "its results would overwrite an input or another result; choose another --out"
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "a" / "0.png").read_bytes() == before


def test_mistakes(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_run(tmp_path / "run")
    bands = small_run(tmp_path / "bands", channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)
    floats = small_run(tmp_path / "floats", mean=(0.0,) * 3, std=(1.0,) * 3)
    needs = "this run's images are no RGB pictures; give the FILE.py of its training by --data"
    for arguments, message in (
        ([tmp_path, images], f"{tmp_path}/last.pt: no such file; a run folder of own_data.py, or an arm of "),
        ([folder, tmp_path], f"{tmp_path}: no image in this folder"),
        ([folder, images, "--weights", "teacher"], f"{folder}/last.pt: holds no teacher, which a run keeps only if"),
        (
            [folder, images, "--server", "dark_zurich"],
            "--server is for the 19 classes of Cityscapes, which this run has not",
        ),
        ([folder, images, "--ids", "labelIds"], "--ids is for the 19 classes of Cityscapes, which this run has not"),
        ([folder, images, "--data", tmp_path / "no.py"], f"{tmp_path}/no.py: no such file"),
        ([bands, images], needs),
        ([floats, images], needs),
        ([folder, images, "--device", "foo"], ""),
    ):
        assert main("predict.py", *arguments, "--out", tmp_path / "out") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"predict.py: {message}")
        assert not list((tmp_path / "out").glob("*"))


def test_the_limit_of_pixels_is_an_option(
    street_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = images / "odd.jpg"  # 61 x 83
    assert main("predict.py", street_run, file, "--out", tmp_path, "--max-pixels", 5062) == 1
    assert "61 x 83 pixels are more than max_pixels=5062" in capsys.readouterr().err
    assert main("predict.py", street_run, file, "--out", tmp_path, "--max-pixels", 5063) == 0


# Arrays that are never whole in memory


@pytest.mark.parametrize("size", [(70, 150), (64, 96), (199, 67)])
def test_an_array_is_predicted_as_the_picture_is(size: tuple[int, int], tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run")
    array = np.random.default_rng(0).integers(256, size=(*size, 3)).astype(np.uint8)
    np.save(tmp_path / "a.npy", array)
    Image.fromarray(array).save(tmp_path / "b.png")
    out = tmp_path / "out"
    assert main("predict.py", folder, tmp_path / "a.npy", tmp_path / "b.png", "--out", out) == 0
    assert {file.name for file in out.iterdir()} == {"a.npy", "a_overview.png", "b.png", "b_overlay.png", "legend.png"}
    labels = np.load(out / "a.npy")
    assert (labels.dtype, labels.shape) == (np.uint8, size)
    assert np.array_equal(labels, picture(out / "b.png"))
    assert len(np.unique(labels)) > 1


def test_the_overview_shows_every_so_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_run(tmp_path / "run")
    monkeypatch.setattr("support.huge.OVERVIEW", 30)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(256, size=(70, 150, 3)).astype(np.uint8))
    assert main("predict.py", folder, tmp_path / "a.npy", "--out", tmp_path / "out") == 0
    overview, labels = picture(tmp_path / "out" / "a_overview.png"), np.load(tmp_path / "out" / "a.npy")
    assert np.array_equal(overview, labels[::5, ::5])


def test_an_array_by_a_network_of_one_scale(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run", model="daformer", encoder="mit_b0")
    np.save(tmp_path / "a.npy", np.zeros((70, 100, 3), np.uint8))
    assert main("predict.py", folder, tmp_path / "a.npy", "--out", tmp_path / "out") == 0
    assert np.load(tmp_path / "out" / "a.npy").shape == (70, 100)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5), np.uint8), "an array must be (H, W, 3) of uint8, got (4, 5) of uint8"),
        (np.zeros((3, 4, 5), np.uint8), "an array must be (H, W, 3) of uint8, got (3, 4, 5) of uint8"),
        (np.zeros((4, 5, 3), np.float32), "an array must be (H, W, 3) of uint8, got (4, 5, 3) of float32"),
        (np.zeros((0, 5, 3), np.uint8), "an array must be (H, W, 3) of uint8, got (0, 5, 3) of uint8"),
        (b"no array", "cannot be read as an array ("),
        (None, "no such file"),
    ],
    ids=["two dimensions", "channels first", "floats", "empty", "no array", "no file"],
)
def test_arrays_that_are_no_images_are_reported(
    array: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_run(tmp_path / "run")
    bad, good = tmp_path / "bad.npy", tmp_path / "good.npy"
    np.save(good, np.zeros((40, 50, 3), np.uint8))
    if isinstance(array, bytes):
        bad.write_bytes(array)
    elif array is not None:
        np.save(bad, array)
    assert main("predict.py", folder, bad, good, "--out", tmp_path / "out") == 1
    printed, errors = capsys.readouterr()
    assert f"predict.py: {bad}: {message}" in errors
    assert "1 of 2 images" in printed
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"good.npy", "good_overview.png", "legend.png"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
def test_half_an_array_is_never_left(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_run(tmp_path / "run")
    np.save(tmp_path / "a.npy", np.zeros((200, 70, 3), np.uint8))
    whole = support.huge.bands

    def broken(*arguments: Any) -> Any:
        yield next(iter(whole(*arguments)))
        assert len(list((tmp_path / "out").glob("*.part"))) == 1
        raise error

    monkeypatch.setattr("support.huge.bands", broken)
    status = main("predict.py", folder, tmp_path / "a.npy", "--out", tmp_path / "out")
    assert status == (130 if error is KeyboardInterrupt else 1)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("option", ["--flip", "--zip", "--contours", "--save-attention"])
def test_what_needs_whole_pictures_is_refused_for_arrays(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = small_run(tmp_path / "run"), tmp_path / "a.npy"
    np.save(file, np.zeros((40, 50, 3), np.uint8))
    assert main("predict.py", folder, file, "--out", tmp_path / "out", option) == 2
    expected = f"predict.py: {file}: an array is predicted by bands, without {option}"
    assert expected in capsys.readouterr().err.splitlines()
    assert main("predict.py", folder, file, "--out", tmp_path) == 2  # would overwrite it
    assert "would overwrite an input" in capsys.readouterr().err
