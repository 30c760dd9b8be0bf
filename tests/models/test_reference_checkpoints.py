"""Published checkpoints, in and out."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import checkpoint, image
from tiny_models import TINY, prefixed, tiny
from torch import nn

from hrda_lib import EMATeacher
from hrda_lib.models import (
    DeepLabV2Head,
    EncoderDecoder,
    MixTransformer,
    daformer,
    hrda,
    load_reference_checkpoint,
    to_reference_state_dict,
)


@pytest.mark.parametrize("build", [tiny, lambda: daformer(TINY, 5, embed_dims=8), lambda: tiny(fixed_attention=0.5)])
def test_published_names_are_an_exact_inverse(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = build(), build()
    entries = to_reference_state_dict(model)
    stored = {p.data_ptr() for p in model.state_dict().values()}
    assert all(entry.data_ptr() in stored for entry in entries.values())
    file = tmp_path / "iter_40000.pth"
    torch.save({"meta": {"CLASSES": ("road",), "iter": 40000}, "state_dict": prefixed("model", entries)}, file)
    load_reference_checkpoint(other, file)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_student_teacher_and_bare_names() -> None:
    models = [tiny() for _ in range(3)]
    student, teacher = (to_reference_state_dict(model) for model in models[:2])
    file = {
        "state_dict": prefixed("model", student) | prefixed("ema_model", teacher) | prefixed("imnet_model", student)
    }
    for prefix, expected in ((None, student), ("model", student), ("ema_model", teacher)):
        load_reference_checkpoint(models[2], file, prefix=prefix)
        got = to_reference_state_dict(models[2])
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    load_reference_checkpoint(models[2], prefixed("ema_model", teacher))
    load_reference_checkpoint(models[2], student)
    with pytest.raises(ValueError, match="no entry starts with 'ema_model'; it has names without a prefix"):
        load_reference_checkpoint(models[2], student, prefix="ema_model")
    with pytest.raises(ValueError, match="prefix must be 'model', 'ema_model' or None, got 'student'"):
        load_reference_checkpoint(models[2], student, prefix="student")


def test_wrapped_models() -> None:
    model = tiny()
    compiled = torch.compile(model, backend="eager")
    entries = to_reference_state_dict(compiled)
    assert entries.keys() == to_reference_state_dict(model).keys()
    load_reference_checkpoint(compiled, to_reference_state_dict(tiny()))


def test_no_name_in_common() -> None:
    entries = {f"module.{name}": x for name, x in to_reference_state_dict(tiny()).items()}
    message = r"59 unexpected, 0 wrong; no name is one of the model's, the first is module\.backbone\.patch_embed1"
    with pytest.raises(ValueError, match=message.replace("59", str(len(entries)))):
        load_reference_checkpoint(tiny(), entries)


def test_the_file_is_read_in_full(tmp_path: Path) -> None:
    model = hrda("mit_b0", embed_dims=32, attention_embed_dims=32, detail_size=(64, 64)).eval()
    file = tmp_path / "b0.pth"
    torch.save(checkpoint(11), file)
    load_reference_checkpoint(model, file)
    with torch.no_grad():
        assert model.predict(image(11, "eval.image", 1, 128, 128)).isfinite().all()
    assert pickle.dumps(sorted(to_reference_state_dict(model))) == pickle.dumps(sorted(checkpoint(11)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_reference_state_dict(nn.Linear(1, 1)), "model must be built by hrda"),
        (lambda: to_reference_state_dict(EMATeacher(tiny())), "got EMATeacher; of an EMATeacher pass .module"),
        (
            lambda: to_reference_state_dict(EncoderDecoder(MixTransformer(TINY), DeepLabV2Head(32, 5))),
            "must be built by",
        ),
        (
            lambda: load_reference_checkpoint(tiny(), None),
            "path_or_state_dict must be a path or a dictionary of tensors, got NoneType",
        ),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
