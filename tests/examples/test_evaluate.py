"""Measuring a run on a data set, and predictions for a server."""

import argparse
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bilinear import resize
from PIL import Image
from support.heads import head_logits
from support.run_files import load, normalize, save
from test_recipes import grey, ids, picture
from torch import Tensor
from torch.nn.functional import pad

import evaluate
import predict
from hrda_lib import ConfusionMatrix, MultiResSegmenter
from hrda_lib.data import CITYSCAPES, SYNTHIA_CLASSES, Acdc, Cityscapes, Folders
from support.networks import build

KINDS = ("fog", "night", "rain", "snow")


@pytest.fixture(scope="module")
def acdc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("acdc")
    for kind in KINDS:
        for split in ("train", "val"):
            picture(root / f"rgb_anon/{kind}/{split}/GOPR1/{kind}_frame_1_rgb_anon.png")
            grey(root / f"gt/{kind}/{split}/GOPR1/{kind}_frame_1_gt_labelTrainIds.png", ids(0, 2, 9))
        picture(root / f"rgb_anon/{kind}/test/GOPR1/{kind}_frame_2_rgb_anon.png")
    return root


@pytest.fixture(scope="module", params=["small", "daformer"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    encoder = "mini" if request.param == "small" else "mit_b0"
    network = {"model": request.param, "encoder": encoder, "class_names": [entry.name for entry in CITYSCAPES]}
    network |= {"detail_size": (32, 32), "attention": None, "ignore": []}
    model = build(encoder, 19, detail_size=(32, 32), model=request.param)
    torch.nn.init.normal_(model.decoder.classifier.weight)
    save(folder, model, network, 0)
    return folder


def predicted(run: Path, image: Tensor) -> Tensor:
    return load(run)[0].predict(normalize(image[None]), output="labels")[0]


def test_iou_and_conditions(run: Path, acdc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    acdc = Path(shutil.copytree(acdc, tmp_path / "acdc"))
    for i, kind in enumerate(KINDS):  # the truth is right in a part of each picture, a larger one in each condition
        label = predicted(run, Acdc(acdc, "val")[i].image).numpy()
        label[:, 30 * (i + 1) :] = 9
        grey(acdc / f"gt/{kind}/val/GOPR1/{kind}_frame_1_gt_labelTrainIds.png", label)
    assert evaluate.main([str(run), str(acdc)]) == 0
    printed = capsys.readouterr().out
    data, everything, ious = Acdc(acdc, "val"), ConfusionMatrix(19), {}
    for i, kind in enumerate(KINDS):
        one, labels = ConfusionMatrix(19), predicted(run, data[i].image)
        for matrix in (one, everything):
            matrix.update(labels, data.label(i).long())
        assert f"{100 * one.mean_iou():6.1f}  mean IoU, {kind}, in %" in printed
        ious[kind] = one.iou()
    ious["all"] = everything.iou()
    assert f"{100 * everything.mean_iou():6.1f}  mean IoU, in %" in printed
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line)
    assert head == ["IoU, %", *KINDS, "all"]
    names = [entry.name for entry in CITYSCAPES]
    for name, *cells in rows:
        values = [float(iou[names.index(name)]) for iou in ious.values()]
        assert cells == [f"{100 * value:.1f}" if value == value else "-" for value in values]
    assert [row[0] for row in rows] == [name for i, name in enumerate(names) if not everything.iou()[i].isnan()]
    assert evaluate.main([str(run), str(acdc), "--classes", "16", "--kind", "acdc"]) == 0
    printed = capsys.readouterr().out
    assert f"{100 * everything.mean_iou(list(SYNTHIA_CLASSES)):6.1f}  mean IoU, in %" in printed
    assert "terrain" not in printed
    assert evaluate.main([str(run), str(acdc), "--absent", "0"]) == 0
    printed = capsys.readouterr().out
    assert f"{100 * everything.mean_iou(absent=0):6.1f}  mean IoU, in %" in printed
    assert f"{100 * everything.mean_iou():6.1f}  mean IoU, in %" not in printed
    assert all(f"| {name} " in printed for name in names)


def test_without_conditions_a_line_a_class(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "leftImg8bit/val/ulm/ulm_0_0_leftImg8bit.png")
    grey(tmp_path / "gtFine/val/ulm/ulm_0_0_gtFine_labelIds.png", ids(7, 11, 24))
    assert evaluate.main([str(run), str(tmp_path)]) == 0
    data, matrix = Cityscapes(tmp_path, "val"), ConfusionMatrix(19)
    matrix.update(predicted(run, data[0].image), data.label(0).long())
    lines = capsys.readouterr().out.splitlines()
    assert f"{100 * matrix.iou()[2]:6.1f}  building" in lines
    assert lines[-1] == f"{100 * matrix.mean_iou():6.1f}  mean IoU, in %"
    assert lines[0] == f"{tmp_path}: Cityscapes, 1 images"
    assert len(lines) == 2 + int((~matrix.iou().isnan()).sum())


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(resize(x.numpy(), size)).float()


def options(*arguments: str) -> argparse.Namespace:
    return evaluate.parse(["RUN", "ROOT", "--device", "cpu", *arguments])


def test_heads_and_flip(run: Path, acdc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = load(run)[0], Acdc(acdc, "val")[0].image
    x, size = normalize(image[None]), image.shape[1:]
    if "daformer" in str(run):
        assert evaluate.main([str(run), str(acdc), "--head", "detail"]) == 2
        assert "evaluate.py: --head detail: this network has one scale" in capsys.readouterr().err
    else:
        for head in evaluate.HEADS:
            logits = evaluate.predict(model, image, size, options("--head", head))
            assert torch.allclose(logits, head_logits(model, x)[head], atol=1e-5)
    assert torch.equal(evaluate.predict(model, image, size, options()), model.predict(x))
    both = (model.predict(x) + model.predict(x.flip(-1)).flip(-1)) / 2
    assert torch.equal(evaluate.predict(model, image, size, options("--flip")), both)
    assert evaluate.predict(model, image, (30, 50), options("--flip")).shape == (1, 19, 30, 50)


@pytest.mark.parametrize("flip", [False, True])
def test_scales(run: Path, acdc: Path, flip: bool) -> None:
    """Against the mean of each picture's probabilities, with resizing written out."""
    model, image = load(run)[0], Acdc(acdc, "val")[0].image
    total = torch.zeros(1, 19, 50, 90)
    views = [(64, 128), (32, 64), (96, 192), (8, 8)]
    for height, width in views:
        x = bilinear(normalize(image[None]), (height, width))
        for mirrored in (False, True)[: 1 + flip]:
            logits = model.predict(x[..., range(width)[::-1]] if mirrored else x)
            logits = bilinear(logits[..., range(width)[::-1]] if mirrored else logits, (50, 90))
            total += logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    arguments = ["--scales", "1", "0.5", "1.5", "0.001", *(["--flip"] if flip else [])]
    probs = evaluate.predict(model, image, (50, 90), options(*arguments))
    assert (probs - total / len(views) / (1 + flip)).abs().max() < 1e-4


def test_windows(run: Path) -> None:
    model, image = load(run)[0], torch.randint(256, (3, 150, 101), dtype=torch.uint8)
    x, size = normalize(image[None]), (150, 101)
    windows = evaluate.predict(model, image, size, options("--window", "32", "48"))
    assert torch.equal(windows, model.predict(x, window=(32, 48)))
    at_once = evaluate.predict(model, image, size, options("--whole"))
    assert torch.allclose(at_once, model.predict(x, window=(152, 104)), atol=1e-5)
    assert not torch.allclose(at_once, windows, atol=1e-3)
    if isinstance(model, MultiResSegmenter):
        padded = pad(x, (0, 3, 0, 2))
        with torch.no_grad():
            detail = bilinear(model(padded, detail="windows").detail_logits, (152, 104))[..., :150, :101]
        by_head = evaluate.predict(model, image, size, options("--whole", "--head", "detail"))
        assert torch.allclose(by_head, detail, atol=1e-5)
        assert not torch.allclose(at_once, model.predict(x), atol=1e-3)


def test_student_and_teacher(run: Path, acdc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, network = load(run)
    teacher = load(run)[0]
    torch.nn.init.normal_(teacher.decoder.classifier.weight, generator=torch.Generator().manual_seed(1))
    save(tmp_path, student, network, 0, teacher)
    images = acdc / "rgb_anon/fog/val/GOPR1"
    printed = {}
    for weights, model in {"student": student, "teacher": teacher}.items():
        kept = load(tmp_path, weights)[0].state_dict()
        assert all(torch.equal(kept[name], x) for name, x in model.state_dict().items())
        capsys.readouterr()
        assert evaluate.main([str(tmp_path), str(acdc), "--weights", weights]) == 0
        printed[weights] = capsys.readouterr().out
        out = tmp_path / weights
        assert predict.main([str(tmp_path), str(images), "--out", str(out), "--weights", weights]) == 0
        labels = np.asarray(Image.open(out / "fog_frame_1_rgb_anon.png"))
        expected = model.predict(normalize(Acdc(acdc, "val")[0].image[None]), output="labels")[0]
        assert np.array_equal(labels, expected.numpy())
    assert printed["student"] != printed["teacher"]
    capsys.readouterr()
    assert evaluate.main([str(tmp_path), str(acdc)]) == 0
    assert capsys.readouterr().out == printed["student"]


@pytest.mark.parametrize("kind", evaluate.IDS)
def test_export(kind: str, run: Path, acdc: Path, tmp_path: Path) -> None:
    arguments = [str(run), str(acdc), "--split", "test", "--export", str(tmp_path), "--ids", kind]
    assert evaluate.main(arguments) == 0
    names = {f"{condition}_frame_2_rgb_anon.png" for condition in KINDS}
    with zipfile.ZipFile(tmp_path / f"{kind}.zip") as archive:
        assert set(archive.namelist()) == {f"{kind}/{name}" for name in names}
    for i, condition in enumerate(KINDS):
        labels = predicted(run, Acdc(acdc, "test").unlabeled()[i].image).numpy()
        written = np.asarray(Image.open(tmp_path / kind / f"{condition}_frame_2_rgb_anon.png"))
        table = [
            entry.colour if kind == "color" else entry.id if kind == "labelIds" else entry.train_id
            for entry in CITYSCAPES
        ]
        assert np.array_equal(written, np.array(table)[labels])


def test_runs_of_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = {"encoder": "mini", "class_names": ["sky", "void", "box"], "detail_size": (32, 32), "ignore": [1]}
    model = build("mini", 3, detail_size=(32, 32))
    torch.nn.init.normal_(model.decoder.classifier.weight)
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", model, network, 0)
    for name in ("00001", "b"):  # as a file of GTA is called
        picture(tmp_path / f"data/images/{name}.png")
        grey(tmp_path / f"data/labels/{name}.png", ids(0, 1, 2))
    arguments = [str(tmp_path / "run"), str(tmp_path / "data")]
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr().out
    matrix = ConfusionMatrix(3)
    for i in range(2):
        sample = Folders(tmp_path / "data", ignore=[1])[i]
        matrix.update(predicted(tmp_path / "run", sample.image), sample.label.long())
    assert printed.startswith(f"{tmp_path / 'data'}: Folders, 2 images\n")
    assert printed.endswith(f"{100 * matrix.mean_iou():6.1f}  mean IoU, in %\n")
    assert evaluate.main([*arguments, "--kind", "folders"]) == 0
    assert capsys.readouterr().out == printed
    for options in (["--classes", "16"], ["--export", str(tmp_path / "out"), "--ids", "labelIds"]):
        assert evaluate.main([*arguments, *options]) == 2
        assert "--classes and --ids are for the 19 classes of Cityscapes" in capsys.readouterr().err
    save(tmp_path / "run", model, {**network, "labels": "ids"}, 0)
    assert evaluate.main(arguments) == 2
    assert capsys.readouterr().err.endswith("was trained with --ids, which predict.py --labels takes too\n")


def test_one_name_for_two_images_is_not_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        picture(tmp_path / folder / "0.png")
    (tmp_path / "list.txt").write_text("a/0.png\nb/0.png\n")
    assert evaluate.main([str(run), str(tmp_path / "list.txt"), "--export", str(tmp_path / "out")]) == 2
    assert "--export: 0.png would be written for more than one image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mistakes(run: Path, acdc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path), str(acdc)], "last.pt: no such file"),
        ([str(run), str(tmp_path)], "no data set is recognised here"),
        (
            [str(run), str(acdc), "--weights", "teacher"],
            "last.pt: holds no teacher, which a run keeps only if it adapts",
        ),
        ([str(run), str(acdc), "--scales", "1", "0"], "--scales must be positive numbers, got [1.0, 0.0]"),
        ([str(run), str(acdc), "--scales", "nan"], "--scales must be positive numbers, got [nan]"),
        ([str(run), str(acdc), "--window", "0", "8"], "window must be a positive int or two of them"),
        ([str(run), str(acdc), "--split", "valid"], "split must be one of train, val, test, got 'valid'"),
        ([str(run), str(acdc), "--split", "test"], "no such"),
    ):
        assert evaluate.main(arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    window = [str(run), str(acdc), "--window", "36", "32"]
    assert evaluate.main(window) == (0 if "daformer" in str(run) else 2)
    if "daformer" not in str(run):
        expected = "evaluate.py: --window must be multiples of 8 for two scales, got [36, 32]"
        assert capsys.readouterr().err.splitlines()[-1] == expected
    assert predict.main([str(run), str(acdc), "--out", str(tmp_path / "out"), "--weights", "teacher"]) == 2
    assert f"predict.py: {run}/last.pt: holds no teacher" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        evaluate.main([*window, "--whole"])
    assert "argument --whole: not allowed with argument --window" in capsys.readouterr().err
