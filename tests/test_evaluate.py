"""Measuring a run on a data set, and predictions for a server."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_recipes import grey, ids, picture
from torch import Tensor

import evaluate
from hrda_lib import ConfusionMatrix
from hrda_lib.data import CITYSCAPES, SYNTHIA_CLASSES, Acdc
from support.networks import build
from support.run_files import load, normalize, save

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


def test_iou_and_conditions(run: Path, acdc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), str(acdc)]) == 0
    printed = capsys.readouterr().out
    data, everything = Acdc(acdc, "val"), ConfusionMatrix(19)
    for i, kind in enumerate(KINDS):
        one, labels = ConfusionMatrix(19), predicted(run, data[i].image)
        for matrix in (one, everything):
            matrix.update(labels, data.label(i).long())
        assert f"{100 * one.mean_iou():6.1f}  mean IoU, {kind}, in %" in printed
    assert f"{100 * everything.mean_iou():6.1f}  mean IoU, in %" in printed
    assert f"{100 * everything.iou()[2]:6.1f}  building" in printed
    assert evaluate.main([str(run), str(acdc), "--classes", "16", "--kind", "acdc"]) == 0
    printed = capsys.readouterr().out
    assert f"{100 * everything.mean_iou(list(SYNTHIA_CLASSES)):6.1f}  mean IoU, in %" in printed
    assert "terrain" not in printed


def test_heads_and_flip(run: Path, acdc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = load(run)[0], Acdc(acdc, "val")[0].image
    x, size = normalize(image[None]), image.shape[1:]
    if "daformer" in str(run):
        assert evaluate.main([str(run), str(acdc), "--head", "detail"]) == 2
        assert "evaluate.py: --head detail: this network has one scale" in capsys.readouterr().err
        heads = {"fused": evaluate.whole(model, x, "fused")}
    else:
        heads = {head: evaluate.whole(model, x, head) for head in evaluate.HEADS}
        assert torch.allclose(heads["average"], (heads["context"] + heads["detail"]) / 2, atol=1e-5)
        assert not torch.allclose(heads["context"], heads["detail"], atol=1e-3)
        assert not torch.allclose(heads["context"], heads["fused"], atol=1e-3)
    assert torch.equal(heads["fused"], model.predict(x))
    options = evaluate.parse([str(run), str(acdc), "--flip", "--device", "cpu"])
    both = (model.predict(x) + model.predict(x.flip(-1)).flip(-1)) / 2
    assert torch.allclose(evaluate.predict(model, image, size, options), both, atol=1e-5)
    assert evaluate.predict(model, image, (30, 50), options).shape == (1, 19, 30, 50)


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


def test_mistakes(run: Path, acdc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path), str(acdc)], "last.pt: no such file"),
        ([str(run), str(tmp_path)], "no data set is recognised here"),
        ([str(run), str(acdc), "--split", "valid"], "split must be one of train, val, test, got 'valid'"),
        ([str(run), str(acdc), "--split", "test"], "no such"),
    ):
        assert evaluate.main(arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
