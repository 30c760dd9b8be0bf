"""Forward and backward of `MixTransformer` beside the Segformer encoder of transformers, and bytes saved for backward.

    pip install '.[bench]'
    python benchmarks/mix_transformer.py

Both have the same weights and images, and take turns in one process, so that what slows the machine slows both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel

from hrda_lib.models import MixTransformer, load_encoder_weights
from hrda_lib.models.mix_transformer import SIZES


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


def step(forward: Callable[[], list[Tensor]]) -> float:
    """Seconds of one forward and backward of the sum of all four features."""
    start = time.perf_counter()
    sum(feature.sum() for feature in forward()).backward()
    return time.perf_counter() - start


def saved_bytes(forward: Callable[[], list[Tensor]], network: nn.Module) -> int:
    """What autograd keeps for backward, each storage once, without the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        features = forward()  # alive until all are counted, so that no address is used twice
    del features
    return sum(kept.values())


def compare(size: str, images: Tensor, rounds: int) -> str:
    """A row of the table."""
    torch.manual_seed(0)
    networks = ours, theirs = pair(size)
    runs: list[Callable[[], list[Tensor]]] = [
        lambda: ours(images),
        lambda: theirs(images, output_hidden_states=True).hidden_states,
    ]
    for mine, other in zip(*(run() for run in runs), strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4), "the networks differ"
    for run in runs:
        step(run)
    times: list[list[float]] = [[], []]
    for i in range(rounds):
        for which in (0, 1) if i % 2 else (1, 0):  # neither is always the first
            times[which].append(step(runs[which]))
    ratios = sorted(mine / other for mine, other in zip(*times, strict=True))
    megabytes = [saved_bytes(run, network) / 1e6 for run, network in zip(runs, networks, strict=True)]
    return (
        f"| {size} | {spread(times[0])} | {spread(times[1])} | "
        f"{statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f} | "
        f"{megabytes[0]:.1f} | {megabytes[1]:.1f} |"
    )


def spread(seconds: list[float]) -> str:
    values = [1000 * x for x in sorted(seconds)]
    return f"{statistics.median(values):.0f} ({values[0]:.0f} to {values[-1]:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["mit_b0", "mit_b2"])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.batch} images of {options.side} pixels"
    )
    print("| encoder | ours, ms | transformers, ms | ratio, a round | ours, MB | transformers, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    images = torch.rand(options.batch, 3, options.side, options.side, generator=torch.Generator().manual_seed(0))
    for size in options.sizes:
        print(compare(size, images, options.rounds), flush=True)


if __name__ == "__main__":
    main()
