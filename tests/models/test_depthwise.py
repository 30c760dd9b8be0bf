"""Dilated depthwise convolutions by phases against torch's own."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d

from hrda_lib.models.depthwise import DepthwiseConv2d

sides = st.integers(1, 40)


def of_torch(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return conv2d(x, weight, padding=dilation, dilation=dilation, groups=len(weight))


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 20), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_answer_and_gradients_are_torchs(
    height: int, width: int, dilation: int, batch: int, channels: int, last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = DepthwiseConv2d(channels, dilation=dilation).double()
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    got, expected = layer(x), of_torch(x, weight, dilation)
    slope = torch.randn_like(expected)
    gradients = torch.autograd.grad(got, (x, layer.weight), slope)
    truths = torch.autograd.grad(expected, (x, weight), slope)
    for mine, truth in zip((got, *gradients), (expected, *truths), strict=True):
        assert mine.shape == truth.shape
        assert torch.allclose(mine, truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dilation", [6, 12, 18])
def test_float32_is_exact_to_some_roundings(dilation: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(8, dilation=dilation)
    x, slope = torch.randn(2, 2, 8, 30, 34).unbind()
    exact, weight = x.double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    truths = torch.autograd.grad(of_torch(exact, weight, dilation), (exact, weight), slope.double())
    ours = torch.autograd.grad(layer(x.requires_grad_()), (x, layer.weight), slope)
    for mine, truth in zip(ours, truths, strict=True):
        assert (mine - truth).abs().max() <= 2e-6 * truth.abs().max()


def test_gradcheck_twice_and_what_needs_none() -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(2, dilation=12).double()
    x = torch.randn(1, 2, 14, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(layer, {"weight": w}, x), (x, layer.weight))
    assert torch.autograd.gradgradcheck(layer, x)
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


def test_saves_the_input_alone() -> None:
    layer, x = DepthwiseConv2d(4, dilation=12), torch.randn(1, 4, 20, 20)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert set(saved) == {x.untyped_storage().data_ptr(), layer.weight.untyped_storage().data_ptr()}


def test_plain_ways_agree() -> None:
    """Compiled, traced, transformed and autocast code see the plain convolution."""
    torch.manual_seed(0)
    layer, x = DepthwiseConv2d(4, dilation=12), torch.randn(2, 4, 20, 20)
    expected = layer(x)
    assert torch.equal(expected, nn.Conv2d.forward(layer, x))
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), expected)
    assert torch.allclose(torch.vmap(layer)(x[None])[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert copy.deepcopy(layer).state_dict().keys() == {"weight"}
