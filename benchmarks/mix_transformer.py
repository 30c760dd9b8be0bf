"""`MixTransformer`, forward and backward and what it keeps, beside the Segformer encoder of transformers."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel

from hrda_lib.models import MixTransformer, load_encoder_weights
from hrda_lib.models.mix_transformer import SIZES
from rounds import OURS, Row, alternate, saved_megabytes

TRANSFORMERS = "transformers SegformerModel"


def pair(size: str) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs, with the same weights; stochastic depth is off."""
    config = SegformerConfig(
        depths=SIZES[size].depths, hidden_sizes=SIZES[size].widths, drop_path_rate=0.0, hidden_dropout_prob=0.0
    )
    theirs, ours = SegformerModel(config), MixTransformer(size, drop_path=0)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        load_encoder_weights(ours, Path(folder) / "model.safetensors")
    return ours.train(), theirs.train()


def step(forward: Callable[[], list[Tensor]]) -> None:
    """One forward and backward of the sum of all four features."""
    sum(feature.sum() for feature in forward()).backward()


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    side = 64 if small else 256
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for size in ["mit_b0"] if small else ["mit_b0", "mit_b2"]:
        torch.manual_seed(0)
        networks = ours, theirs = pair(size)
        runs: dict[str, Callable[[], list[Tensor]]] = {
            OURS: lambda net=ours: net(images),
            TRANSFORMERS: lambda net=theirs: net(images, output_hidden_states=True).hidden_states,
        }
        for mine, other in zip(*(run() for run in runs.values()), strict=True):
            assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4), "the networks differ"
        title = f"{size}, 2 images of {side}²"
        steps = {name: lambda run=run: step(run) for name, run in runs.items()}
        yield alternate(f"{title}, forward and backward", steps, rounds=rounds)
        kept = {name: [saved_megabytes(run, networks)] for name, run in runs.items()}
        yield Row(f"{title}, kept for backward", "MB", kept)
