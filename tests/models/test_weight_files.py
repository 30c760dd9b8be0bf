"""Files of weights: damaged, hostile, of another precision."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY, prefixed, tiny
from torch import nn
from torch.torch_version import TorchVersion

from hrda_lib.models import (
    hrda,
    load_encoder_weights,
    load_reference_checkpoint,
    to_reference_state_dict,
)
from hrda_lib.models.weight_files import first_line, read_entries


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.to_sparse(), "must be a dense tensor with values, got torch.sparse_coo"),
        (lambda x: x.to("meta"), "must be a dense tensor with values, got torch.strided of torch.float32 on meta"),
        (lambda x: nn.UninitializedParameter(), "must be a tensor, got UninitializedParameter"),
        (lambda x: x.long(), "must be a floating-point tensor, got torch.int64"),
        (lambda x: x > 0, "must be a floating-point tensor, got torch.bool"),
        (lambda x: x * float("nan"), "must be finite in torch.float32"),
        (lambda x: torch.full_like(x, 1e300, dtype=torch.float64), "must be finite in torch.float32"),
    ],
)
def test_a_bad_entry_changes_nothing(spoil: Any, message: str) -> None:
    model, entries = tiny(), to_reference_state_dict(tiny())
    before = [x.clone() for x in model.state_dict().values()]
    last = list(entries)[-1]
    with pytest.raises(ValueError, match=rf"\(0 entries missing, 0 unexpected, 1 wrong\): {re.escape(last)} {message}"):
        load_reference_checkpoint(model, {**entries, last: spoil(entries[last])})
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_entries_may_be_of_another_precision_or_share_memory_with_the_model() -> None:
    model, other = tiny(), tiny()
    half = {name: x.half() if x.is_floating_point() else x for name, x in to_reference_state_dict(other).items()}
    load_reference_checkpoint(model, half)
    assert all(
        torch.equal(x.half(), half[name]) for name, x in to_reference_state_dict(model).items() if x.is_floating_point()
    )
    own = to_reference_state_dict(model)
    a, b = "backbone.norm1.weight", "backbone.norm1.bias"
    expected = own[b].clone(), own[a].clone()
    load_reference_checkpoint(model, {**own, a: own[b], b: own[a]})
    assert torch.equal(own[a], expected[0])
    assert torch.equal(own[b], expected[1])


def test_a_model_without_memory_is_refused() -> None:
    with torch.device("meta"):
        empty = tiny()
    with pytest.raises(ValueError, match="of the model is on the meta device; give it memory first"):
        load_reference_checkpoint(empty, to_reference_state_dict(tiny()))


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HOSTILE"],)


def test_a_hostile_file_is_refused_and_its_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE", str(tmp_path / "it ran"))
    file = tmp_path / "hostile.pth"
    torch.save({"state_dict": Hostile()}, file)
    message = r"hostile\.pth: refused, for it holds more than tensors \(it asks for (posix|nt)\.mkdir\)"
    for load in (load_reference_checkpoint, lambda model, file: load_encoder_weights(model.encoder, file)):
        with pytest.raises(ValueError, match=message):
            load(tiny(), file)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.skipif(TorchVersion(torch.__version__) < TorchVersion("2.7"), reason="older torch refuses numpy's numbers")
def test_notes_beside_the_weights_may_hold_numbers(tmp_path: Path) -> None:
    model, file = tiny(), tmp_path / "notes.pth"
    notes = {
        "best": np.float64(0.5),
        "iter": np.int64(3),
        "flag": np.bool_(True),
        "half": np.float16(0.5),
        "byte": np.uint8(7),
        "CLASSES": ("road",),
        "PALETTE": [[1, 2, 3]],
        "hooks": {},
    }
    torch.save({"meta": notes, "state_dict": prefixed("model", to_reference_state_dict(model))}, file)
    load_reference_checkpoint(model, file)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("truncated", "cannot be read as a checkpoint"),
        ("empty", "cannot be read as a checkpoint"),
        ("text", r"refused, for it holds more than tensors \(.{5,60}\); pass a file of torch.save or .safetensors"),
        ("absent", "no such file"),
        ("list", "a checkpoint must hold a dictionary of tensors, got list"),
        ("classes", r"decode_head.head.conv_seg.weight must be \(5, 8, 1, 1\), got \(7, 8, 1, 1\)"),
        ("missing", "missing backbone.norm4.weight; missing backbone.norm4.bias"),
        ("unexpected", "unexpected decode_head.extra"),
        ("encoder", "missing backbone.patch_embed1.proj.weight"),
        ("no tensor", "backbone.norm4.bias must be a tensor, got int"),
    ],
)
def test_damaged_files(case: str, message: str, tmp_path: Path) -> None:
    model, file = tiny(), tmp_path / "file.pth"
    entries: dict[str, Any] = dict(to_reference_state_dict(model))
    if case == "classes":
        entries = to_reference_state_dict(hrda(TINY, 7, embed_dims=8, attention_embed_dims=8, detail_size=(32, 32)))
    elif case == "missing":
        del entries["backbone.norm4.weight"], entries["backbone.norm4.bias"]
    elif case == "unexpected":
        entries["decode_head.extra"] = torch.zeros(1)
    elif case == "encoder":
        entries = {"layer1.0.weight": torch.zeros(1)}
    elif case == "no tensor":
        entries["backbone.norm4.bias"] = 3
    torch.save([1] if case == "list" else {"state_dict": entries}, file)
    if case == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif case in ("empty", "text"):
        file.write_text("" if case == "empty" else "weights\n")
    elif case == "absent":
        file.unlink()
    with pytest.raises(ValueError, match=message):
        load_reference_checkpoint(model, file)


def test_a_missing_file_says_what_lies_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mit\.pth: no such file; no file of weights lies in /.*; give its path"):
        read_entries("source", tmp_path / "mit.pth")
    with pytest.raises(ValueError, match=r"no/mit\.pth: no such file; there is no folder /.*/no either$"):
        read_entries("source", tmp_path / "no" / "mit.pth")
    for i in range(6):
        (tmp_path / f"mit_b{i}.pth").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"no such file; in /.* lie 'mit_b0\.pth', .*, 'mit_b4\.pth' and others$"):
        read_entries("source", tmp_path / "mit.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_advice_to_run_code_is_not_passed_on(tmp_path: Path) -> None:
    """torch's text for a TorchScript archive, say, ends in it."""
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "traced.pth")
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint|refused") as error:
        read_entries("source", tmp_path / "traced.pth")
    assert "weights_only" not in str(error.value)
    assert first_line(RuntimeError("set weights_only=False\nto go on")) == "RuntimeError"
