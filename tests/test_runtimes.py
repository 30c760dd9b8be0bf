"""Compiled, exported, traced and ONNX: what each gives is what eager mode gives. All networks: ``make verify``."""

import re

import pytest
import runtimes
import torch
from documents import DOCS
from torch import nn

from hrda_lib import SlidingWindowInferer

SMALL = [name for name in runtimes.NETWORKS if "convolutions" in name]
CASES = [
    (network, way)
    for network in SMALL
    for way in runtimes.WAYS
    if runtimes.applies(network, way) and "inductor" not in way
]
LARGE = [
    ("`hrda`, windows", "export, any batch"),
    ("`hrda`, windows", "trace, any batch"),
    ("`daformer`, one scale", "export, any sides"),
    ("`daformer`, one scale", "trace, any batch"),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.onnx"),
]


@pytest.mark.parametrize(("network", "way"), [*CASES, *LARGE])
def test_as_in_eager_mode(network: str, way: str) -> None:
    if way.startswith("ONNX"):
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
    assert runtimes.error(network, way) < 1e-5


def test_operators_of_the_page_are_those_of_the_export() -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    _, _, *rows = (DOCS / "tables" / "operators.md").read_text("utf-8").splitlines()
    assert [row.split("|")[1].strip() for row in rows] == list(runtimes.NETWORKS)
    assert runtimes.operators(SMALL[1]) == rows[list(runtimes.NETWORKS).index(SMALL[1])]


@pytest.mark.parametrize("network", [SMALL[0], "`hrda`, windows"])
def test_windows_over_dynamic_sides_are_refused(network: str) -> None:
    message = "sides of images must be fixed where detail windows cover the image, got dynamic ones: export fixed sides"
    with pytest.raises(ValueError, match=re.escape(message)):
        runtimes.error(network, "export, any sides")


def test_windows_alone_over_dynamic_sides_are_refused() -> None:
    class Windows(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return SlidingWindowInferer(32)(images, lambda x: x)

    with pytest.raises(
        ValueError, match=re.escape("image must have fixed sides to be covered by windows, got dynamic")
    ):
        runtimes.exported_any_sides(Windows(), torch.zeros(2, 3, runtimes.SIDE, runtimes.SIDE))


@pytest.mark.parametrize("network", SMALL)
def test_a_trace_fails_at_other_sides(network: str) -> None:
    model = runtimes.NETWORKS[network]().eval()
    run = runtimes.traced(model, torch.zeros(1, 3, runtimes.SIDE, runtimes.SIDE))
    with pytest.raises(RuntimeError, match="expanded size of the tensor"):
        run(torch.zeros(1, 3, runtimes.SIDE, 2 * runtimes.SIDE))
