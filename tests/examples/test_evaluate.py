"""Measuring a network on labelled images: by head, scale and window, by condition, and against labels in a folder."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bilinear import resize
from scripts import main, picture, write
from torch import Tensor
from torch.nn.functional import pad
from trees import saved

from hrda_lib import ConfusionMatrix, EMATeacher, MultiResSegmenter, SelfTraining
from hrda_lib.data import (
    CITYSCAPES,
    SYNTHIA_CLASSES,
    SYNTHIA_CLASSES_13,
    Acdc,
    Cityscapes,
    Folders,
    LabeledFiles,
    ResizedImages,
    normalize,
)
from support.measuring import average, every_head, label_quality, measure
from support.networks import HEADS, NetworkSpec, heads
from support.run_folder import RunFolder, load

KINDS = ("fog", "night", "rain", "snow")
SIZE = (32, 64)


def rgb(file: Path) -> None:
    saved(file, np.random.default_rng(0).integers(256, size=(*SIZE, 3)).astype(np.uint8))


def ids(below: int, above: int, corner: int) -> np.ndarray:
    label = np.full(SIZE, above, np.uint8)
    label[SIZE[0] // 2 :] = below
    label[: SIZE[0] // 3, : SIZE[1] // 3] = corner
    return label


@pytest.fixture(scope="module")
def acdc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("acdc")
    for kind in KINDS:
        for split in ("train", "val"):
            rgb(root / f"rgb_anon/{kind}/{split}/GOPR1/{kind}_frame_1_rgb_anon.png")
            saved(root / f"gt/{kind}/{split}/GOPR1/{kind}_frame_1_gt_labelTrainIds.png", ids(0, 2, 9))
        rgb(root / f"rgb_anon/{kind}/test/GOPR1/{kind}_frame_2_rgb_anon.png")
    return root


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image in plain folders, small enough to be measured often."""
    root = tmp_path_factory.mktemp("plain")
    rgb(root / "images" / "0.png")
    saved(root / "labels" / "0.png", ids(0, 2, 9))
    return root


def own_run(folder: Path, **changes: Any) -> Path:
    """A network for three classes, of which the second means none."""
    torch.manual_seed(0)
    spec = NetworkSpec(**{"classes": ("sky", "void", "box"), "detail_size": (32, 32), "ignore": (1,), **changes})
    model = spec.build()
    torch.nn.init.normal_(model.decoder.classifier.weight)
    folder.mkdir()
    RunFolder(folder, spec).finish(model, None)
    return folder


def predicted(run: Path, image: Tensor) -> Tensor:
    return load(run)[0].predict(normalize(image[None]), output="labels", label_dtype=torch.uint8)[0]


def names() -> list[str]:
    return [entry.name for entry in CITYSCAPES]


# The script


def test_iou_and_conditions(street_run: Path, acdc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    acdc = Path(shutil.copytree(acdc, tmp_path / "acdc"))
    for i, kind in enumerate(KINDS):  # the truth is right in a part of each picture, a larger one in each condition
        label = predicted(street_run, Acdc(acdc, "val")[i].image).numpy()
        label[:, 15 * (i + 1) :] = 9
        saved(acdc / f"gt/{kind}/val/GOPR1/{kind}_frame_1_gt_labelTrainIds.png", label)
    assert main("evaluate.py", street_run, acdc) == 0
    printed = capsys.readouterr().out
    data, everything, ious = Acdc(acdc, "val"), ConfusionMatrix(19), {}
    for i, kind in enumerate(KINDS):
        one, labels = ConfusionMatrix(19), predicted(street_run, data[i].image)
        for matrix in (one, everything):
            matrix.update(labels, data.label(i).long())
        assert f"{100 * one.mean_iou():6.1f}  mean IoU, {kind}, in %" in printed
        ious[kind] = one.iou()
    ious["all"] = everything.iou()
    assert f"{100 * everything.mean_iou():6.1f}  mean IoU, in %" in printed
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line)
    assert head == ["IoU, %", *KINDS, "all"]
    for name, *cells in rows:
        values = [float(iou[names().index(name)]) for iou in ious.values()]
        assert cells == [f"{100 * value:.1f}" if value == value else "-" for value in values]
    assert [row[0] for row in rows] == [name for i, name in enumerate(names()) if not everything.iou()[i].isnan()]
    for count, classes in ((16, SYNTHIA_CLASSES), (13, SYNTHIA_CLASSES_13)):
        assert main("evaluate.py", street_run, acdc, "--classes", count, "--kind", "acdc") == 0
        printed = capsys.readouterr().out
        assert f"{100 * everything.mean_iou(list(classes)):6.1f}  mean IoU, in %" in printed
        assert "terrain" not in printed
    assert main("evaluate.py", street_run, acdc, "--absent", "0") == 0
    printed = capsys.readouterr().out
    assert f"{100 * everything.mean_iou(absent=0):6.1f}  mean IoU, in %" in printed
    assert f"{100 * everything.mean_iou():6.1f}  mean IoU, in %" not in printed
    assert all(f"| {name} " in printed for name in names())


def test_without_conditions_a_line_a_class(
    street_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb(tmp_path / "leftImg8bit/val/ulm/ulm_0_0_leftImg8bit.png")
    saved(tmp_path / "gtFine/val/ulm/ulm_0_0_gtFine_labelIds.png", ids(7, 11, 24))
    assert main("evaluate.py", street_run, tmp_path) == 0
    data, matrix = Cityscapes(tmp_path, "val"), ConfusionMatrix(19)
    matrix.update(predicted(street_run, data[0].image), data.label(0).long())
    lines = capsys.readouterr().out.splitlines()
    assert f"{100 * matrix.iou()[2]:6.1f}  building" in lines
    assert lines[-1] == f"{100 * matrix.mean_iou():6.1f}  mean IoU, in %"
    assert lines[0] == f"{tmp_path}: Cityscapes, 1 images"
    assert len(lines) == 2 + int((~matrix.iou().isnan()).sum())


def test_what_the_options_measure(
    street_run: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, spec = load(street_run)
    data, x = Path(shutil.copytree(plain, tmp_path / "data")), spec.feed(Folders(plain)[0].image[None])
    truth = model.predict(x, output="labels", label_dtype=torch.uint8)[
        0
    ]  # each option is right where it says the same as the plain call
    saved(data / "labels" / "0.png", truth.numpy())
    options: dict[str, dict[str, Any]] = {
        "": {},
        "--flip": {"flip": True},
        "--window 24 32": {"window": (24, 32)},
        "--whole": {"whole": True},
        "--scales 0.5 1": {"scales": [0.5, 1]},
    }
    if isinstance(model, MultiResSegmenter):
        options |= {"--head context": {"head": "context"}, "--head average --flip": {"head": "average", "flip": True}}
    found = set()
    for text, settings in options.items():
        assert main("evaluate.py", street_run, data, *text.split()) == 0
        matrix = ConfusionMatrix(19)
        matrix.update(average(model, x, SIZE, **settings)[settings.get("head", "fused")].argmax(1)[0], truth)
        printed = capsys.readouterr().out
        assert printed.endswith(f"{100 * matrix.mean_iou():6.1f}  mean IoU, in %\n")
        found.add(printed)
    assert len(found) >= len(options) - 2


def test_student_and_teacher(street_run: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (student, spec), (teacher, _) = load(street_run), load(street_run)
    torch.nn.init.normal_(teacher.decoder.classifier.weight, generator=torch.Generator().manual_seed(1))
    RunFolder(tmp_path, spec).finish(student, teacher)
    printed = {}
    for weights, model in {"student": student, "teacher": teacher}.items():
        kept = load(tmp_path, weights)[0].state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(kept[name], x) for name, x in model.state_dict().items())
        assert main("evaluate.py", tmp_path, plain, "--weights", weights) == 0
        printed[weights] = capsys.readouterr().out
    assert printed["student"] != printed["teacher"]
    assert main("evaluate.py", tmp_path, plain) == 0
    assert capsys.readouterr().out == printed["student"]


def test_runs_of_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = own_run(tmp_path / "run"), tmp_path / "data"
    for name in ("00001", "b"):  # as a file of GTA is called
        rgb(data / f"images/{name}.png")
        saved(data / f"labels/{name}.png", ids(0, 1, 2))
    assert main("evaluate.py", run, data) == 0
    printed = capsys.readouterr().out
    matrix = ConfusionMatrix(3)
    for i in range(2):
        sample = Folders(data, ignore=[1])[i]
        matrix.update(predicted(run, sample.image), sample.label.long())
    assert printed.startswith(f"{data}: Folders, 2 images\n")
    assert printed.endswith(f"{100 * matrix.mean_iou():6.1f}  mean IoU, in %\n")
    assert main("evaluate.py", run, data, "--kind", "folders") == 0
    assert capsys.readouterr().out == printed
    lines = [f"data/images/{name}.png\tdata/labels/{name}.png\n" for name in ("00001", "b")]
    (tmp_path / "list.txt").write_text("".join(lines))
    assert main("evaluate.py", run, tmp_path / "list.txt") == 0
    assert capsys.readouterr().out.splitlines()[1:] == printed.splitlines()[1:]
    assert main("evaluate.py", run, data, "--classes", "16") == 2
    message = "evaluate.py: --classes is for the 19 classes of Cityscapes, which this run has not\n"
    assert capsys.readouterr().err == message


def test_labels_in_a_folder_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What predict.py wrote is measured as it is."""
    run, (images, labels) = own_run(tmp_path / "run", ignore=()), (tmp_path / "images", tmp_path / "truth")
    for i in range(3):
        saved(images / f"{i}.jpg", np.random.default_rng(i).integers(256, size=(48, 64, 3)).astype(np.uint8))
        saved(labels / f"{i}.png", np.random.default_rng(i).integers(3, size=(48, 64)).astype(np.uint8))
    assert main("predict.py", run, images, "--out", tmp_path / "out") == 0
    confusion, one = ConfusionMatrix(3), ConfusionMatrix(3)
    for i in range(3):
        for matrix in (confusion, one)[: 1 + (i == 1)]:
            matrix.update(*(torch.from_numpy(picture(d / f"{i}.png")) for d in (tmp_path / "out", labels)))
    capsys.readouterr()
    assert main("evaluate.py", run, images, "--labels", labels) == 0
    printed = capsys.readouterr().out
    assert f"{100 * confusion.mean_iou():6.1f}  mean IoU" in printed
    assert f"{100 * confusion.iou()[0]:6.1f}  sky" in printed
    assert printed.startswith(f"{images}: LabeledFiles, 3 images\n")
    assert main("evaluate.py", run, images / "1.jpg", "--labels", labels) == 0
    assert f"{100 * one.mean_iou():6.1f}  mean IoU" in capsys.readouterr().out
    (labels / "1.png").unlink()
    assert main("evaluate.py", run, images, "--labels", labels) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"evaluate.py: {labels}/1.png: no such file"


def test_validation_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = own_run(tmp_path / "run", ignore=(), channels=2, mean=(1.0, 2.0), std=(1.0, 4.0)), tmp_path / "data"
    lines = [
        "import numpy as np",
        "import torch",
        "from hrda_lib.data import Folders",
        "def read(file):",
        "    return torch.from_numpy(np.load(file))",
        f"source = Folders({str(data)!r}, read_image=read)",
        "target, names = source.unlabeled(), ['sky', 'void', 'box']",
    ]
    file, matrix = tmp_path / "two_bands.py", ConfusionMatrix(3)
    (data / "images").mkdir(parents=True)
    for i in range(2):
        image = np.random.default_rng(i).normal(size=(2, 24, 40)).astype(np.float32)
        label = np.random.default_rng(i).integers(3, size=(24, 40)).astype(np.uint8)
        np.save(data / "images" / f"{i}.npy", image)
        saved(data / "labels" / f"{i}.png", label)
        x = (torch.from_numpy(image) - torch.tensor([1.0, 2.0]).view(2, 1, 1)) / torch.tensor([1.0, 4.0]).view(2, 1, 1)
        matrix.update(load(run)[0].predict(x[None], output="labels")[0], torch.from_numpy(label))
    file.write_text("\n".join([*lines, "validation = source"]))
    assert main("evaluate.py", run, "--data", file) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{file}: Folders, 2 images\n")
    assert printed.endswith(f"{100 * matrix.mean_iou():6.1f}  mean IoU, in %\n")
    file.write_text("\n".join(lines))
    for arguments, message in (
        ([run, "--data", file], f"{file}: defines no validation, labelled images to measure on"),
        ([run, data], "this run takes no pictures of 8 bits; give --data FILE.py as in training, with a validation"),
        ([run], "either ROOT or --data FILE.py is needed, which say what is measured on"),
        ([run, data, "--data", file], "either ROOT or --data FILE.py is needed, which say what is measured on"),
    ):
        assert main("evaluate.py", *arguments) == 2
        assert capsys.readouterr().err == f"evaluate.py: {message}\n"


def test_mistakes(
    street_run: Path, acdc: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ([tmp_path, acdc], f"{tmp_path}/last.pt: no such file; a run folder of own_data.py, or an arm of "),
        ([street_run, tmp_path], f"{tmp_path}: no data set is recognised here"),
        ([street_run, acdc, "--weights", "teacher"], f"{street_run}/last.pt: holds no teacher, which a run keeps only"),
        ([street_run, acdc, "--scales", "1", "0"], "--scales must be positive numbers, got [1.0, 0.0]"),
        ([street_run, acdc, "--scales", "nan"], "--scales must be positive numbers, got [nan]"),
        ([street_run, acdc, "--window", "0", "8"], "window must be a positive int or two of them"),
        ([street_run, acdc, "--split", "valid"], "split must be one of train, val, test, got 'valid'"),
        ([street_run, acdc, "--split", "test"], f"{acdc}/gt/"),
        ([street_run, acdc, "--labels", tmp_path], f"{acdc}: no image in this folder"),
    ):
        assert main("evaluate.py", *arguments) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"evaluate.py: {message}")
    window = [street_run, plain, "--window", "28", "32"]
    assert main("evaluate.py", *window) == (0 if "daformer" in str(street_run) else 2)
    detail = main("evaluate.py", street_run, plain, "--head", "detail")
    if "daformer" in str(street_run):
        assert detail == 2
        assert "evaluate.py: --head detail: this network has one scale" in capsys.readouterr().err
    else:
        expected = "evaluate.py: --window must be multiples of 8 for two scales, got [28, 32]\n"
        assert capsys.readouterr().err.startswith(expected)
    assert main("evaluate.py", *window, "--whole") == 2
    assert "argument --whole: not allowed with argument --window" in capsys.readouterr().err


# What it takes the average of


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(resize(x.numpy(), size)).float()


def test_heads_and_flip(street_run: Path, acdc: Path) -> None:
    model, image = load(street_run)[0], Acdc(acdc, "val")[0].image
    x, size = normalize(image[None]), image.shape[1:]
    if isinstance(model, MultiResSegmenter):
        for head in HEADS:
            assert torch.allclose(average(model, x, size, head=head)[head], heads(model, x)[head], atol=1e-5)
    assert torch.equal(average(model, x, size)["fused"], model.predict(x))
    both = (model.predict(x) + model.predict(x.flip(-1)).flip(-1)) / 2
    assert torch.equal(average(model, x, size, flip=True)["fused"], both)
    assert average(model, x, (15, 25), flip=True)["fused"].shape == (1, 19, 15, 25)
    every = every_head(model, x, (15, 25))
    assert list(every) == list(heads(model, x))
    assert torch.allclose(every["fused"], bilinear(model.predict(x), (15, 25)), atol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_scales(street_run: Path, acdc: Path, flip: bool) -> None:
    """Against the mean of each picture's probabilities, with resizing written out."""
    model, image = load(street_run)[0], Acdc(acdc, "val")[0].image
    total = torch.zeros(1, 19, 25, 45)
    views = [(32, 64), (16, 32), (48, 96), (8, 8)]
    for height, width in views:
        x = bilinear(normalize(image[None]), (height, width))
        for mirrored in (False, True)[: 1 + flip]:
            logits = model.predict(x[..., range(width)[::-1]] if mirrored else x)
            logits = bilinear(logits[..., range(width)[::-1]] if mirrored else logits, (25, 45))
            total += logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    probs = average(model, normalize(image[None]), (25, 45), scales=[1, 0.5, 1.5, 0.001], flip=flip)["fused"]
    assert (probs - total / len(views) / (1 + flip)).abs().max() < 1e-4


def test_windows(street_run: Path) -> None:
    model, image = load(street_run)[0], torch.randint(256, (3, 86, 69), dtype=torch.uint8)
    x, size = normalize(image[None]), (86, 69)
    windows = average(model, x, size, window=(32, 48))["fused"]
    assert torch.equal(windows, model.predict(x, window=(32, 48)))
    at_once = average(model, x, size, whole=True)["fused"]
    assert torch.allclose(at_once, model.predict(x, window=(88, 72)), atol=1e-5)
    assert not torch.allclose(at_once, windows, atol=1e-3)
    if isinstance(model, MultiResSegmenter):
        padded = pad(x, (0, 3, 0, 2))
        with torch.no_grad():
            detail = bilinear(model(padded, detail="windows").detail_logits, (88, 72))[..., :86, :69]
        by_head = average(model, x, size, whole=True, head="detail")["detail"]
        assert torch.allclose(by_head, detail, atol=1e-5)
        assert not torch.allclose(at_once, model.predict(x), atol=1e-3)


# What examples measure while and after training


def labelled(root: Path, count: int = 3, classes: int = 4) -> LabeledFiles:
    for i in range(count):
        random = np.random.default_rng(i)
        saved(root / "images" / f"{i}.png", random.integers(256, size=(40, 56, 3)).astype(np.uint8))
        label = random.integers(classes, size=(40, 56)).astype(np.uint8)
        label[:4] = 255
        saved(root / "labels" / f"{i}.png", label)
    return Folders(root)


def test_every_head_and_the_attention_of_each_class(tmp_path: Path) -> None:
    """Class 3 means none, class 4 is not there; images are shown at another size than that of the truth."""
    data = labelled(tmp_path / "data")
    model, spec = load(own_run(tmp_path / "run", classes=tuple("abcde"), ignore=(3,)))
    images = ResizedImages(data.unlabeled(), (32, 48))
    confusion, attention = measure(model, spec, data, images=images, indices=[0, 2])
    expected = {head: np.zeros((5, 5), int) for head in HEADS}
    paid, pixels = np.zeros(5), np.zeros(5)
    for i in (0, 2):
        image, truth = images[i].image, data.label(i).numpy()
        maps = {name: bilinear(x, (40, 56)) for name, x in heads(model, spec.feed(image[None])).items()}
        for row in range(40):
            for column in range(56):
                true = truth[row, column]
                if true not in (3, 255):
                    for head in HEADS:
                        expected[head][true, maps[head][0, :, row, column].argmax()] += 1
                    paid[true] += maps["attention"][0, 0, row, column]
                    pixels[true] += 1
    assert image.shape != (3, 40, 56)
    assert list(confusion) == list(HEADS)
    for head, matrix in confusion.items():
        # at another size a tie may be broken differently
        assert np.abs(matrix.matrix.numpy() - expected[head]).sum() <= 4
    assert attention.shape == (5,)
    assert attention[3:].isnan().all()
    np.testing.assert_allclose(attention[:3], paid[:3] / pixels[:3], rtol=1e-4)
    everything, _ = measure(model, spec, data)
    assert everything["fused"].matrix.sum() == 3 * 36 * 56 - sum((data.label(i) == 3).sum() for i in range(3))
    assert not model.training


def test_one_scale_pays_no_attention(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", count=1)
    model, spec = load(own_run(tmp_path / "run", classes=tuple("abcd"), model="daformer", encoder="mit_b0", ignore=()))
    confusion, attention = measure(model, spec, data)
    assert list(confusion) == ["fused"]
    assert attention.tolist() == [0] * 4


class Fixed(SelfTraining):
    """Labels that are right in the left half of what is not padded, and sure in the upper half."""

    def __init__(self, truth: list[Tensor]) -> None:
        self.truth = truth

    def pseudo_label(self, images: Tensor, *, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        truth, (height, width) = self.truth.pop(0).long(), images.shape[-2:]
        assert height % 8 == width % 8 == 0  # padded to whole cells, with the mean colour
        assert not images[..., truth.shape[0] :, :].any()
        labels = torch.full((1, height, width), 7)
        labels[0, : truth.shape[0], : truth.shape[1] // 2] = truth[:, : truth.shape[1] // 2]
        weight = torch.zeros(1, height, width)
        weight[:, : truth.shape[0] // 2] = 1
        return labels, weight


def test_how_right_the_teacher_s_labels_are(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", count=25)
    spec = NetworkSpec(tuple("abcd"), (16, 16))
    teacher = EMATeacher(spec.build())
    shown = [data.label(i) for i in range(0, 25, 2)]
    known = torch.cat([label != 255 for label in shown], dim=1)
    right, sure = torch.zeros(40, 56, dtype=torch.bool), torch.zeros(40, 56, dtype=torch.bool)
    right[:, :28], sure[:20] = True, True
    right, sure = (part.repeat(1, 13) & known for part in (right, sure))
    numbers = label_quality(Fixed(list(shown)), teacher, spec, data, data.unlabeled())
    assert numbers == pytest.approx(
        {
            "label_accuracy": float(right.sum() / known.sum()),
            "trusted": float(sure.sum() / known.sum()),
            "trusted_accuracy": float((right & sure).sum() / sure.sum()),
        }
    )
    assert teacher.training
    # images of half the size: padded to whole cells, and both brought to the size of the truth
    half = [label[::2, ::2] for label in shown]
    smaller = label_quality(Fixed(half), teacher, spec, data, ResizedImages(data.unlabeled(), (20, 28)))
    assert smaller["trusted"] == pytest.approx(numbers["trusted"])
    assert 0.2 < smaller["label_accuracy"] < numbers["label_accuracy"]


def test_the_limit_of_pixels_is_an_option(street_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "data", 1)  # 48 x 64 pixels
    for arguments in ((root,), (root / "images", "--labels", root / "labels")):
        assert main("evaluate.py", street_run, *arguments, "--max-pixels", 3071) == 2
        assert "48 x 64 pixels are more than max_pixels=3071" in capsys.readouterr().err
        assert main("evaluate.py", street_run, *arguments, "--max-pixels", 3072) == 0
