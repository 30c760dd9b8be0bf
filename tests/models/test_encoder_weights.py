"""ImageNet weights under both namings: features equal those of the independent implementation in transformers."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TINY
from torch import Tensor

from hrda_lib.models import MixTransformer, MixTransformerSize, hrda, load_encoder_weights, to_reference_state_dict
from hrda_lib.models.mix_transformer import SIZES


@pytest.fixture
def peer() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def build(size: str | MixTransformerSize) -> Any:
        widths, depths = SIZES[size] if isinstance(size, str) else size
        config = transformers.SegformerConfig(depths=list(depths), hidden_sizes=list(widths))
        return transformers.SegformerForImageClassification(config).eval()

    return build


def disturb(model: torch.nn.Module) -> None:
    """Biases and norms start at 0 and 1, which would hide exchanged entries."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_equal_the_independent_implementation(size: str, peer: Any, tmp_path: Path) -> None:
    other = peer(size)
    disturb(other)
    other.save_pretrained(tmp_path)
    encoder = MixTransformer(size).eval()
    load_encoder_weights(encoder, tmp_path / "model.safetensors")
    images = torch.rand(1, 3, 64, 96)
    theirs = other.segformer(images, output_hidden_states=True).hidden_states
    for ours, want in zip(encoder(images), theirs, strict=True):
        assert ((ours - want).norm() / want.norm()).item() < 1e-4
        assert want.std() > 0.01


def test_a_model_in_memory(peer: Any, tmp_path: Path) -> None:
    """transformers 5 calls entries otherwise in memory than in files; both are the same weights."""
    other = peer(TINY)
    disturb(other)
    other.save_pretrained(tmp_path)
    encoders = [MixTransformer(TINY) for _ in range(3)]
    sources = (tmp_path / "model.safetensors", other.state_dict(), other.segformer.state_dict())
    for encoder, source in zip(encoders, sources, strict=True):
        load_encoder_weights(encoder, source)
    saved, whole, body = (list(encoder.state_dict().values()) for encoder in encoders)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(saved, whole, body, strict=True))
    short = {name: entry for name, entry in other.state_dict().items() if "stages.1.blocks.0.attention.k" not in name}
    if any(".q_proj." in name for name in short):
        with pytest.raises(ValueError, match=r"2 entries missing, 0 unexpected.*missing stages\.1\..*\.k_proj\.weight"):
            load_encoder_weights(encoders[0], short)


def test_names_of_the_encoder_alone(peer: Any, tmp_path: Path) -> None:
    other = peer(TINY)
    other.segformer.save_pretrained(tmp_path)
    encoders = [MixTransformer(TINY) for _ in range(2)]
    load_encoder_weights(encoders[0], tmp_path / "model.safetensors")
    other.save_pretrained(tmp_path)
    load_encoder_weights(encoders[1], tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(*(encoder.state_dict().values() for encoder in encoders), strict=True))


def published(encoder: MixTransformer) -> dict[str, Tensor]:
    """The entries of a ``mit_b*.pth``, with its ImageNet classifier."""
    model = hrda(TINY, 2, embed_dims=8, attention_embed_dims=8, detail_size=(32, 32))
    model.encoder = encoder
    entries = to_reference_state_dict(model).items()
    entries = {name.removeprefix("backbone."): x for name, x in entries if name.startswith("backbone.")}
    return entries | {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}


@pytest.mark.parametrize("kind", ["str", "path", "entries"])
def test_published_files(kind: str, tmp_path: Path) -> None:
    encoder, other = MixTransformer(TINY), MixTransformer(TINY)
    disturb(encoder)
    file = tmp_path / "mit_tiny.pth"
    torch.save(published(encoder), file)
    load_encoder_weights(other, {"str": str(file), "path": file, "entries": published(encoder)}[kind])
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, file = MixTransformer(TINY), tmp_path / "mit.pth"
    other = published(MixTransformer(MixTransformerSize((8, 16, 20, 40), (1, 1, 2, 1))))
    before = [x.clone() for x in encoder.state_dict().values()]
    with pytest.raises(ValueError, match=r"state dict: .* norm4.weight must be \(32,\), got \(40,\)"):
        load_encoder_weights(encoder, other)
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"mit\.pth: .*missing patch_embed1.proj.weight.*unexpected layer1.0.conv1"):
        load_encoder_weights(encoder, file)
    with pytest.raises(ValueError, match=r"missing encoder.block.0.0.attention.self.value.bias"):
        load_encoder_weights(encoder, {"encoder.layer_norm.0.weight": torch.ones(8)})
    with pytest.raises(ValueError, match=r"absent\.pth: no such file"):
        load_encoder_weights(encoder, "weights/absent.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"broken\.safetensors: cannot be read as a checkpoint"):
        load_encoder_weights(encoder, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"encoder must be a MixTransformer, got Linear; pass model\.encoder"):
        load_encoder_weights(torch.nn.Linear(1, 1), file)
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.state_dict().values(), strict=True))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match=r"it needs safetensors: pip install safetensors"):
        load_encoder_weights(encoder, tmp_path / "broken.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"nvidia/mit-b5: no such file; to fetch it from the hub: pip install"):
        load_encoder_weights(encoder, "nvidia/mit-b5")


def hub(monkeypatch: pytest.MonkeyPatch, cached: dict[str, Path], online: dict[str, Path] | None) -> list[str]:
    """A hub that has ``online`` (None: it cannot be reached), and a local cache; the list is what it was asked for."""
    module = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked: list[str] = []

    def download(name: str, file: str, *, local_files_only: bool) -> str:
        asked.append(f"{name} {file} {'cache' if local_files_only else 'hub'}")
        if file in cached:
            return str(cached[file])
        if local_files_only or online is None:
            raise LocalEntryNotFoundError("not in the cache")
        if file not in online:
            raise EntryNotFoundError("no such entry")
        return str(online[file])

    monkeypatch.setattr(module, "hf_hub_download", download)
    return asked


def test_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, {}, None)
    for source in ("../x", "./x", "a/" + "b" * 5000, "a/b/c", tmp_path / "x"):
        with pytest.raises(ValueError, match=r": no such file; |cannot be read as a checkpoint"):
            load_encoder_weights(MixTransformer(TINY), source)
    assert not asked


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, file = MixTransformer(TINY), tmp_path / "pytorch_model.bin"
    torch.save(published(encoder), file)
    asked = hub(monkeypatch, {}, {file.name: file})
    load_encoder_weights(encoder, "nvidia/mit-b0")
    assert asked[-1] == "nvidia/mit-b0 pytorch_model.bin hub"
    asked = hub(monkeypatch, {file.name: file}, None)
    load_encoder_weights(encoder, "nvidia/mit-b0")
    assert asked[-1] == "nvidia/mit-b0 pytorch_model.bin cache"


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, {}, None)
    message = (
        r"nvidia/mit-b0: no such file, and not to be had from the hub \(not in the cache\); where there is no network, "
        r"download model.safetensors or pytorch_model.bin from https://huggingface.co/nvidia/mit-b0 elsewhere"
    )
    with pytest.raises(ValueError, match=message):
        load_encoder_weights(MixTransformer(TINY), "nvidia/mit-b0")
    assert sum(line.endswith("hub") for line in asked) == 1
