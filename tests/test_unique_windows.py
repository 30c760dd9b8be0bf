"""Whole images: detail windows that several share run once, and those that the context is sure of not at all."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hrda_lib import MultiResSegmenter, SegmenterOutput, SlidingWindowInferer, window_grid


class Encoder(nn.Module):
    """Features at a stride, that look at their surroundings; it counts the images that it sees."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.patches, self.around = nn.Conv2d(3, 6, stride, stride), nn.Conv2d(6, 6, 3, padding=1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += [tuple(images.shape[-2:])] * len(images)
        out: Tensor = self.around(self.patches(images).tanh())
        return out


def build(*, stride: int = 4, attention: Any = "head", sure: float = 1, **settings: Any) -> MultiResSegmenter:
    torch.manual_seed(0)
    encoder, decoder = Encoder(stride), nn.Conv2d(6, 3, 1)
    head = nn.Conv2d(6, 1, 1) if attention == "head" else attention
    with torch.no_grad():
        decoder.weight.mul_(sure)
    return MultiResSegmenter(encoder, decoder, head, **({"detail_size": (16, 16)} | settings))


def one_by_one(model: MultiResSegmenter, images: Tensor, window: Any, stride: Any = None) -> Tensor:
    """The nested loop: every context window with all of its detail windows."""
    run = copy.deepcopy(model).eval()
    infer = SlidingWindowInferer(window, stride=stride, batch_size=1)
    with torch.no_grad():
        return infer(images, lambda x: run(x, detail="windows").logits)


@pytest.mark.parametrize(
    ("settings", "size", "window", "stride"),
    [
        ({}, (32, 64), 32, None),
        ({}, (64, 96), 32, None),
        ({}, (40, 72), 32, None),  # the last windows are shifted inwards
        ({"detail_stride": 4}, (48, 64), 32, 8),
        ({"attention": 0.3}, (48, 64), 32, 24),
        ({"scale": 1.5, "detail_size": (24, 24)}, (48, 72), 36, None),
        ({"stride": 7, "output_stride": 7, "detail_size": (14, 14)}, (56, 84), 28, None),
        ({"stride": 7, "output_stride": 7, "detail_size": (28, 14)}, (56, 84), (56, 28), None),
        ({"stride": 5, "output_stride": None, "multiple_of": 5, "detail_size": (20, 10)}, (80, 50), (40, 20), None),
        ({}, (16, 24), (16, 24), None),
        ({}, (8, 24), (8, 24), None),  # smaller than a detail window
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_answer_is_that_of_the_nested_loop(
    settings: dict[str, Any], size: tuple[int, int], window: Any, stride: Any, batch_size: int | None
) -> None:
    model, images = build(**settings).double(), torch.randn(2, 3, *size, dtype=torch.float64)
    got = model.predict(images, window=window, stride=stride, batch_size=batch_size)
    assert torch.allclose(got, one_by_one(model, images, window, stride), rtol=0, atol=1e-13)
    fused = model.predict_scales(images, window=window, stride=stride, batch_size=batch_size).fused
    assert torch.allclose(fused, got, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("size", "windows", "once", "again"),
    [((64, 128), 3, 21, 27), ((128, 256), 21, 105, 189), ((72, 128), 6, 42, 54)],
    ids=["as Cityscapes", "twice as large", "shifted inwards"],
)
def test_passes(size: tuple[int, int], windows: int, once: int, again: int) -> None:
    """Half of the windows' sides, as in the paper: 24 passes in place of 30 for 1024 x 2048, 126 in place of 210."""
    model = build(detail_size=(32, 32))
    model.predict(torch.randn(1, 3, *size))
    seen = model.encoder.seen
    assert len(seen) == windows + once
    del seen[:]
    infer = SlidingWindowInferer(64, batch_size=1)
    with torch.no_grad():
        infer(torch.randn(1, 3, *size), lambda x: model.eval()(x, detail="windows").logits)
    assert len(seen) == windows + again


def test_answer_is_bit_identical_at_the_same_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hrda_lib.segmenter.WINDOWS_AT_ONCE", 1)
    model, images = build(), torch.randn(1, 3, 64, 96)
    assert torch.equal(model.predict(images), one_by_one(model, images, 32))


def test_a_row_of_windows_is_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import hrda_lib.segmenter as module

    kept: list[int] = []
    run = module._UniqueWindows._run

    def counted(self: Any, places: Any) -> None:
        run(self, places)
        kept.append(len(self.known))

    monkeypatch.setattr(module._UniqueWindows, "_run", counted)
    model = build()
    for rows in (32, 128, 256):
        del kept[:]
        model.predict(torch.zeros(1, 3, rows, 64))
        assert max(kept) == 3 * 7


def test_hooks_batch_norms_and_modes_are_as_before() -> None:
    model = build()
    calls: list[bool] = []
    model.register_forward_hook(lambda module, given, out: calls.append(isinstance(out, SegmenterOutput)))
    model.train().predict(torch.randn(1, 3, 32, 64))
    assert calls == [True] * 3
    assert model.training
    model.decoder = nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False), model.decoder)
    model.encoder.seen.clear()
    model.predict(torch.randn(1, 3, 32, 64))  # windows that must be seen together
    assert len(model.encoder.seen) == 30


def gated(model: MultiResSegmenter, images: Tensor, window: int, confident: float) -> tuple[Tensor, int]:
    """The equation of ``confident``, one window after the other; and how many are left out."""
    model, left_out = copy.deepcopy(model).eval(), 0
    total, count = torch.zeros(1, 3, *images.shape[-2:], dtype=images.dtype), torch.zeros(images.shape[-2:])
    for box in window_grid(images.shape[-2:], window, window // 2):
        rows, columns = slice(box.top, box.top + window), slice(box.left, box.left + window)
        image = images[..., rows, columns]
        features = model.encoder(interpolate(image, scale_factor=0.5, mode="bilinear"))
        context, attention = model.decoder(features), model.attention(features).sigmoid()
        detail, ran = (
            torch.zeros(1, 3, window // 4, window // 4, dtype=images.dtype),
            torch.zeros(window // 4, window // 4),
        )
        inside = torch.zeros(window // 8, window // 8)
        for part in window_grid((window, window), 16, 8):
            y, x = part.top // 8, part.left // 8
            sure = context[..., y : y + 2, x : x + 2].softmax(1).amax(1) >= 0.968
            if sure.double().mean() >= confident:
                left_out += 1
                continue
            inside[y : y + 2, x : x + 2] = 1
            y, x = part.top, part.left
            said = model.decoder(model.encoder(image[..., y : y + 16, x : x + 16]))
            detail[..., y // 4 : y // 4 + 4, x // 4 : x // 4 + 4] += said
            ran[y // 4 : y // 4 + 4, x // 4 : x // 4 + 4] += 1
        detail, attention = detail / ran.clamp(min=1), attention * inside
        fused = interpolate((1 - attention) * context, scale_factor=2, mode="bilinear")
        fused = fused + interpolate(attention, scale_factor=2, mode="bilinear") * detail
        total[..., rows, columns] += interpolate(fused, scale_factor=4, mode="bilinear")
        count[rows, columns] += 1
    return total / count, left_out


@pytest.mark.parametrize("confident", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_confident_leaves_out_what_the_context_is_sure_of(confident: float, batch_size: int) -> None:
    model = build(sure=60).double()
    images = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = interpolate(images[..., ::8, ::8], scale_factor=8, mode="bilinear")
    with torch.no_grad():
        expected, left_out = gated(model, images, 32, confident)
    got = model.predict(images, window=32, confident=confident, batch_size=batch_size)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert 0 < left_out <= 54 if confident < 1 else left_out < 54


STRIDELESS = {"stride": 5, "output_stride": None, "multiple_of": 5, "detail_size": (20, 10)}


@pytest.mark.parametrize("settings", [{}, {"attention": 0.4}, STRIDELESS], ids=["stride 4", "fixed mix", "no stride"])
def test_confident_at_its_ends(settings: dict[str, Any]) -> None:
    model, images = build(**settings), torch.randn(2, 3, 60, 80)
    assert torch.equal(model.predict(images, confident=1), model.predict(images))  # it is never sure
    context_only = build(**settings | {"attention": 0.0})
    assert torch.allclose(model.predict(images, confident=0), context_only.predict(images), atol=1e-6)
    model.encoder.seen.clear()
    model.predict(images, confident=0)
    assert len(set(model.encoder.seen)) == 1  # the context alone


@pytest.mark.parametrize("confident", [-0.1, 1.5, float("nan"), True, "0.5"])
def test_confident_refused(confident: Any) -> None:
    with pytest.raises(ValueError, match=r"confident must be a share in \[0, 1\] or None, got "):
        build().predict(torch.zeros(1, 3, 32, 32), confident=confident)


def with_batch_statistics() -> MultiResSegmenter:
    model = build()
    model.decoder = nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False), model.decoder)
    return model


def compiled() -> MultiResSegmenter:
    model = build()
    model.compile(backend="eager")
    return model


def one_class() -> MultiResSegmenter:
    return MultiResSegmenter(Encoder(4), nn.Conv2d(6, 1, 1), 0.5, detail_size=(16, 16))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (with_batch_statistics, "confident must be None where a batch norm is on batch statistics"),
        (compiled, "confident must be None where the network is compiled, traced or exported"),
        (one_class, "decoder's logits must have at least two classes, got one class"),
    ],
    ids=["batch statistics", "compiled", "one class"],
)
def test_confident_where_windows_cannot_be_left_out(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make().predict(torch.zeros(1, 3, 32, 32), confident=0.5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_a_trace_does_not_forget_confident() -> None:
    class Prediction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build()

        def forward(self, images: Tensor) -> Tensor:
            return self.model.predict(images, confident=0.5)

    with pytest.raises(ValueError, match="confident must be None where the network is compiled, traced or exported"):
        torch.jit.trace(Prediction(), torch.zeros(1, 3, 32, 32))


def test_a_network_compiled_in_place_is_compiled_once_for_all_windows() -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    torch.manual_seed(0)
    model = MultiResSegmenter(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 3, 1), 0.5, detail_size=16, detail_stride=16)
    images = torch.randn(1, 3, 32, 64)
    expected = model.predict(images, stride=16)
    torch.compiler.reset()
    model.compile(backend=backend, fullgraph=True)
    assert torch.allclose(model.predict(images, stride=16), expected, atol=1e-6)
    assert len(graphs) == 1
