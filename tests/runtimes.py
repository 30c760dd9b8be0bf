"""Networks as others run them: compiled, exported, traced, ONNX; how far each is from eager mode."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from hrda_lib import CropBox, MultiResSegmenter
from hrda_lib.models import daformer, hrda

SIDE = 128
STEP = 64  # sides of all networks here may be its multiples
BOX = CropBox(16, 24, 64, 64)
Run = Callable[[Tensor], Tensor]


class Logits(nn.Module):
    """The fused logits alone, of one crop or of windows over the whole image."""

    def __init__(self, network: MultiResSegmenter, box: CropBox | None = None) -> None:
        super().__init__()
        self.network, self.box = network, box

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images, self.box).logits
        return logits


def convolutions() -> MultiResSegmenter:
    return MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1), detail_size=(64, 64))


def two_scales() -> MultiResSegmenter:
    return hrda("mit_b0", 5, embed_dims=16, attention_embed_dims=16, detail_size=(64, 64))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "`MultiResSegmenter` around convolutions, windows": lambda: Logits(convolutions()),
    "`MultiResSegmenter` around convolutions, one crop": lambda: Logits(convolutions(), BOX),
    "`hrda`, windows": lambda: Logits(two_scales()),
    "`hrda`, one crop": lambda: Logits(two_scales(), BOX),
    "`daformer`, one scale": lambda: daformer("mit_b0", 5, embed_dims=16),
}


def compiled(model: nn.Module, images: Tensor) -> Run:
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def inductor(model: nn.Module, images: Tensor) -> Run:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True)


def exported(model: nn.Module, images: Tensor) -> Run:
    return torch.export.export(model, (images,)).module()


def exported_any_batch(model: nn.Module, images: Tensor) -> Run:
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch()},)).module()


def exported_any_sides(model: nn.Module, images: Tensor) -> Run:
    return torch.export.export(model, (images,), dynamic_shapes=({0: batch(), **sides()},)).module()


def traced(model: nn.Module, images: Tensor) -> Run:
    with deprecated():
        return torch.jit.trace(model, (images,))


def onnx(model: nn.Module, images: Tensor) -> Run:
    return onnxruntime_of(model, images, {0: batch()})


def onnx_any_sides(model: nn.Module, images: Tensor) -> Run:
    return onnxruntime_of(model, images, {0: batch(), **sides()})


def onnxruntime_of(model: nn.Module, images: Tensor, dynamic: dict[int, object]) -> Run:
    import onnxruntime

    file = io.BytesIO()
    onnx_program(model, images, dynamic).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (name,) = (one.name for one in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def onnx_program(model: nn.Module, images: Tensor, dynamic: dict[int, object]) -> Any:
    with deprecated():
        return torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=(dynamic,), verbose=False)


def operators(network: str) -> str:
    """Line of a table: the opset of ONNX, and which of its operators the network needs, for any batch."""
    program = onnx_program(NETWORKS[network]().eval(), torch.zeros(2, 3, SIDE, SIDE), {0: batch()})
    (opset,) = program.model.opset_imports.values()
    names = sorted({node.op_type for node in program.model.graph})
    return f"| {network} | {opset} | {', '.join(names)} |"


def batch() -> Dim:
    return Dim("batch", min=1, max=64)


def sides() -> dict[int, object]:
    return {2: STEP * Dim("rows", min=2, max=64), 3: STEP * Dim("columns", min=2, max=64)}


@contextmanager
def deprecated() -> Iterator[None]:
    """Warnings of torch about its own exporters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.trace")
        yield


FIXED, BATCHES = [(2, SIDE, SIDE)], [(2, SIDE, SIDE), (1, SIDE, SIDE), (3, SIDE, SIDE)]
SIDES = [*BATCHES, (2, SIDE + STEP, SIDE + 2 * STEP)]
WAYS: dict[str, tuple[Callable[[nn.Module, Tensor], Run], list[tuple[int, int, int]]]] = {
    "compile, aot_eager": (compiled, FIXED),
    "compile, inductor": (inductor, FIXED),
    "export": (exported, FIXED),
    "export, any batch": (exported_any_batch, BATCHES),
    "export, any sides": (exported_any_sides, SIDES),
    "trace, any batch": (traced, BATCHES),
    "ONNX, any batch": (onnx, BATCHES),
    "ONNX, any sides": (onnx_any_sides, SIDES),
}


@torch.no_grad()
def error(network: str, way: str) -> float:
    """The largest, relative to the largest number of eager mode, over all sizes that this way allows."""
    torch.manual_seed(0)
    model, (run, sizes) = NETWORKS[network]().eval(), WAYS[way]
    other, worst = run(model, torch.randn(2, 3, SIDE, SIDE)), 0.0
    for size in sizes:
        images = torch.randn(size[0], 3, *size[1:])
        eager = model(images)
        worst = max(worst, ((other(images) - eager).abs().max() / eager.abs().max()).item())
    return worst


def applies(network: str, way: str) -> bool:
    """Windows are laid out over fixed sides."""
    return not (network.endswith("windows") and way.endswith("any sides"))
