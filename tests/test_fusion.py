import re

import numpy as np
import pytest
import torch
from bilinear import resize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrda_lib import CropBox, MultiResCropSampler, ScaleAttentionFusion, fuse_scales


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fuse_by_hand(context: Tensor, detail: Tensor, attention: Tensor, box: CropBox, scale: float) -> np.ndarray:
    """The equation cell by cell: ``box`` in detail cells, attention (B, C, h, w) in [0, 1]."""
    batch, classes, height, width = context.shape
    top, left, box_height, box_width = box
    fine = (round(height * scale), round(width * scale))
    masked = np.zeros((batch, classes, height, width))
    for i in range(height):
        for j in range(width):
            if top <= i * scale < top + box_height and left <= j * scale < left + box_width:
                masked[:, :, i, j] = attention[:, :, i, j]
    fused = resize((1 - masked) * context.numpy(), fine)
    share = resize(masked, fine)
    for i in range(box_height):
        for j in range(box_width):
            fused[:, :, top + i, left + j] += share[:, :, top + i, left + j] * detail[:, :, i, j].numpy()
    return fused


@given(
    scale=st.sampled_from([1, 1.5, 2, 4]),
    units=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    classwise=st.booleans(),
    data=st.data(),
)
def test_fusion_is_the_equation(scale: float, units: tuple[int, int], classwise: bool, data: st.DataObject) -> None:
    coarse, fine = (2, 3) if scale == 1.5 else (1, int(scale))  # the smallest box with whole cells on both grids
    first = [data.draw(st.integers(0, n - 1)) for n in units]
    count = [data.draw(st.integers(1, n - start)) for n, start in zip(units, first, strict=True)]
    box = CropBox(*(fine * value for value in (*first, *count)))

    context = random(2, 3, *(coarse * n for n in units), seed=1)
    attention = random(2, 3 if classwise else 1, *context.shape[-2:], seed=2).sigmoid()
    detail = random(2, 3, box.height, box.width, seed=3)
    inputs = [context.clone(), detail.clone(), attention.clone()]

    fused = fuse_scales(context, detail, attention, box=box, scale=scale)
    expected = fuse_by_hand(context, detail, attention.expand_as(context), box, scale)
    np.testing.assert_allclose(fused, expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(now, before) for now, before in zip([context, detail, attention], inputs, strict=True))


@pytest.mark.parametrize("scale", [1, 1.5, 2, 4])
@pytest.mark.parametrize("maps", [1, 3])
def test_without_a_box_the_detail_covers_everything(scale: float, maps: int) -> None:
    context, attention = random(2, 3, 4, 6), random(2, maps, 4, 6, seed=1).sigmoid()
    everything = CropBox(0, 0, int(4 * scale), int(6 * scale))
    detail = random(2, 3, *everything[2:], seed=2)
    fused = fuse_scales(context, detail, attention, scale=scale)
    expected = fuse_by_hand(context, detail, attention.expand_as(context), everything, scale)
    np.testing.assert_allclose(fused, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("box", [None, CropBox(2, 4, 4, 8)])
@pytest.mark.parametrize("attention", [0, 0.3, 0.5, 1.0])
def test_a_float_is_the_same_attention_everywhere(attention: float, box: CropBox | None) -> None:
    context, detail = random(2, 3, 4, 8), random(2, 3, *(box or (0, 0, 8, 16))[2:], seed=1)
    fused = fuse_scales(context, detail, attention, box=box)
    full = torch.full_like(context, attention)
    expected = fuse_by_hand(context, detail, full, box or CropBox(0, 0, 8, 16), 2)
    np.testing.assert_allclose(fused, expected, rtol=1e-12, atol=1e-12)


def test_zero_keeps_the_context_and_one_takes_the_detail() -> None:
    context, detail, box = random(1, 2, 4, 4), random(1, 2, 8, 8, seed=1), CropBox(2, 2, 4, 4)
    upsampled = torch.from_numpy(resize(context.numpy(), (8, 8)))
    torch.testing.assert_close(fuse_scales(context, detail, 0), upsampled)
    torch.testing.assert_close(fuse_scales(context, detail[..., :4, :4], 0.0, box=box), upsampled)
    torch.testing.assert_close(fuse_scales(context, detail, 1.0), detail, rtol=0, atol=0)
    torch.testing.assert_close(fuse_scales(context, detail, 0.5), (upsampled + detail) / 2)

    inside = fuse_scales(context, detail[..., :4, :4], 1, box=box)[..., 3:5, 3:5]  # one cell from the edge: pure detail
    torch.testing.assert_close(inside, detail[..., 1:3, 1:3], rtol=0, atol=0)


def test_the_blend_bleeds_one_cell_past_the_box() -> None:
    ones = torch.ones(1, 1, 4, 4)
    fused = fuse_scales(ones, ones, 0.5, box=CropBox(2, 2, 4, 4))[0, 0]
    outermost, corner, edge = 31 / 32, 29 / 32, 7 / 8  # 1 - a/16, 1 - 3a/16, 1 - a/4
    assert fused[0].tolist() == fused[7].tolist() == [1] * 8
    ring = [1, outermost, corner, edge, edge, corner, outermost, 1]
    assert fused[1].tolist() == fused[6].tolist() == fused[:, 1].tolist() == fused[:, 6].tolist() == ring
    assert (fused[2:6, 2:6] == 1).all()

    kept = fuse_scales(ones, torch.zeros(1, 1, 4, 4), 1.0, box=CropBox(2, 2, 4, 4))[0, 0]
    assert kept[3].tolist() == [1, 0.75, 0.25, 0, 0, 0.25, 0.75, 1]


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize(("box", "scale"), [(CropBox(2, 0, 4, 2), 2), (CropBox(0, 3, 3, 3), 1.5), (None, 2)])
def test_gradients_of_all_three_inputs(box: CropBox | None, scale: float, maps: int) -> None:
    size = (4, 2) if scale == 2 else (2, 4)
    context, attention = random(1, 2, *size), random(1, maps, *size, seed=1).sigmoid()
    detail = random(1, 2, *(box[2:] if box else (8, 4)), seed=2)
    inputs = [x.requires_grad_() for x in (context, detail, attention)]
    assert torch.autograd.gradcheck(lambda c, d, a: fuse_scales(c, d, a, box=box, scale=scale), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_round_and_nothing_more(dtype: torch.dtype) -> None:
    box = CropBox(2, 2, 4, 4)
    inputs = [
        random(1, 3, 4, 4).to(dtype),
        random(1, 3, 4, 4, seed=1).to(dtype),
        random(1, 1, 4, 4).sigmoid().to(dtype),
    ]
    fused = fuse_scales(*inputs, box=box)
    context, detail, attention = (x.double() for x in inputs)
    expected = fuse_by_hand(context, detail, attention.expand_as(context), box, 2)
    assert fused.dtype == dtype
    np.testing.assert_allclose(fused.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_module_takes_attention_logits_and_a_box_in_pixels() -> None:
    context, detail, attention_logits = random(2, 3, 4, 6), random(2, 3, 4, 8, seed=1), random(2, 3, 4, 6, seed=2)
    fusion = ScaleAttentionFusion(scale=2, output_stride=4)
    sigmoid = torch.from_numpy(1 / (1 + np.exp(-attention_logits.numpy())))

    fused = fusion(context, detail, attention_logits, CropBox(8, 16, 16, 32))
    expected = fuse_by_hand(context, detail, sigmoid, CropBox(2, 4, 4, 8), 2)
    np.testing.assert_allclose(fused, expected, rtol=1e-12, atol=1e-12)

    everything = random(2, 3, 8, 12, seed=3)
    expected = fuse_by_hand(context, everything, sigmoid, CropBox(0, 0, 8, 12), 2)
    np.testing.assert_allclose(fusion(context, everything, attention_logits), expected, rtol=1e-12, atol=1e-12)
    expected = fuse_by_hand(context, everything, torch.full_like(sigmoid, 0.25), CropBox(0, 0, 8, 12), 2)
    np.testing.assert_allclose(fusion(context, everything, 0.25), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scale", "stride"), [(s, o) for s in (1, 2, 4) for o in (1, 4, 8)])
def test_module_accepts_every_box_that_the_sampler_draws(scale: int, stride: int, generator: torch.Generator) -> None:
    k = scale * stride
    sampler = MultiResCropSampler((k, 2 * k), scale=scale, output_stride=stride)
    fusion = ScaleAttentionFusion(scale=scale, output_stride=stride)
    context, detail = torch.zeros(1, 2, 4, 5), torch.ones(1, 2, scale, 2 * scale)
    for _ in range(10):
        _, box = sampler.sample((4 * k, 5 * k), generator)
        fused = fusion(context, detail, 1.0, box)
        rows, columns = (fused[0, 0] > 0).nonzero().T
        assert (rows.min(), columns.min()) == (box.top // stride, box.left // stride)
        assert (rows.max() + 1, columns.max() + 1) == (rows.min() + scale, columns.min() + 2 * scale)


def test_fusion_compiles_into_one_graph() -> None:
    fusion = ScaleAttentionFusion(scale=2, output_stride=4)
    inputs = (random(1, 3, 4, 4), random(1, 3, 4, 4, seed=1), random(1, 3, 4, 4, seed=2), CropBox(8, 8, 16, 16))
    compiled = torch.compile(fusion, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), fusion(*inputs))


context, detail, attention = torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 8, 12), torch.zeros(2, 3, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": 1.5}, "attention as a number must be in [0, 1], got 1.5"),
        ({"attention": -1}, "attention as a number must be in [0, 1], got -1"),
        ({"attention": float("nan")}, "attention as a number must be in [0, 1], got nan"),
        ({"attention": attention[:, :2]}, "must be (2, 3, 4, 6) or (2, 1, 4, 6) like context_logits, got (2, 2, 4, 6)"),
        ({"attention": attention[:1]}, "must be (2, 3, 4, 6) or (2, 1, 4, 6) like context_logits, got (1, 3, 4, 6)"),
        ({"attention": torch.zeros(())}, "must be (2, 3, 4, 6) or (2, 1, 4, 6) like context_logits, got ()"),
        ({"context_logits": context[0]}, "context_logits must be (B, C, h, w), got (3, 4, 6)"),
        ({"context_logits": context[:1]}, "detail_logits must be (1, 3, h, w) like context_logits, got (2, 3, 8, 12)"),
        ({"detail_logits": detail[:, :1]}, "detail_logits must be (2, 3, h, w) like context_logits, got (2, 1, 8, 12)"),
        ({"scale": 4}, "detail_logits must be (16, 24) cells (no box: the detail covers the context), got (8, 12)"),
        ({"scale": 1.75}, "times 7/4 does not lie on whole cells"),
        ({"box": CropBox(0, 0, 8, 8)}, "detail_logits must be (8, 8) cells (box (0, 0, 8, 8)), got (8, 12)"),
        ({"box": CropBox(1, 0, 8, 12)}, "box (1, 0, 8, 12) times 1/2 does not lie on whole cells"),
        ({"box": CropBox(2, 0, 8, 12)}, "box (1, 0, 4, 6) must be non-empty and lie inside the tensor of 4x6 pixels"),
    ],
    ids=[
        "above one", "below zero", "nan", "attention classes", "attention batch", "scalar tensor", "three dimensions",
        "batch", "classes", "scale", "uneven scale", "box size", "box off the cells", "box beyond the context",
    ],
)  # fmt: skip
def test_fuse_scales_refuses(arguments: dict, message: str) -> None:
    good = {"context_logits": context, "detail_logits": detail, "attention": attention}
    with pytest.raises(ValueError, match=re.escape(message)):
        fuse_scales(**{**good, **arguments})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.5}, "scale must be at least 1 and finite, got 0.5"),
        ({"output_stride": 0}, "output_stride must be a number in [1, 4096], got 0"),
        ({"output_stride": "4"}, "output_stride must be a number in [1, 4096], got '4'"),
    ],
    ids=str,
)
def test_fusion_module_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ScaleAttentionFusion(**settings)


def test_fusion_module_refuses_a_box_between_logit_cells() -> None:
    with pytest.raises(ValueError, match=re.escape("box (2, 0, 32, 48) times 1/4 does not lie on whole cells")):
        ScaleAttentionFusion()(context, detail, attention, CropBox(2, 0, 32, 48))
