"""hrda() and daformer() against the slow network of oracle_network.py, for settings that no reference vector has."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import oracle_network as oracle
import pytest
import torch
from reference import ENTRIES, META, VECTORS, checkpoint, image, relative_error
from torch import Tensor, nn

from hrda_lib import CropBox, EMATeacher, MultiResSegmenter
from hrda_lib.models import MixTransformerSize, daformer, hrda, load_reference_checkpoint, to_reference_state_dict
from hrda_lib.optim import parameter_groups

TINY = MixTransformerSize((8, 16, 20, 32), (1, 1, 2, 1))
WIDTHS = {**oracle.WIDTHS, TINY: TINY.widths}
DEPTHS = {**oracle.DEPTHS, TINY: TINY.depths}
Weights = dict[str, Tensor]


class Setting(NamedTuple):
    encoder: str | MixTransformerSize
    classes: int
    embed_dims: int
    attention_embed_dims: int
    classwise: bool
    fixed: float | None
    detail: tuple[int, int]
    size: tuple[int, int]
    box: CropBox

    def build(self, drop: float = 0) -> MultiResSegmenter:
        model = hrda(
            self.encoder,
            self.classes,
            embed_dims=self.embed_dims,
            attention_embed_dims=self.attention_embed_dims,
            detail_size=self.detail,
            attention_classwise=self.classwise,
            fixed_attention=self.fixed,
            drop_path=drop,
            dropout=drop,
        )
        return filled(model, self.shapes)

    @property
    def shapes(self) -> oracle.Shapes:
        maps = 0 if self.fixed is not None else self.classes if self.classwise else 1
        widths, dims = WIDTHS[self.encoder], self.embed_dims
        return oracle.hrda_shapes(widths, self.depths, self.classes, dims, maps, self.attention_embed_dims)

    @property
    def depths(self) -> tuple[int, ...]:
        return DEPTHS[self.encoder]


SETTINGS = {
    "b0": Setting("mit_b0", 7, 24, 16, True, None, (32, 72), (72, 104), CropBox(40, 8, 32, 72)),
    "b1": Setting("mit_b1", 2, 16, 24, False, None, (64, 40), (80, 64), CropBox(16, 24, 64, 40)),
    "b2": Setting("mit_b2", 19, 32, 8, True, None, (64, 40), (64, 72), CropBox(0, 32, 64, 40)),
    "tiny": Setting(TINY, 3, 8, 16, False, None, (32, 40), (104, 72), CropBox(64, 32, 32, 40)),
    "detail is the image": Setting(TINY, 2, 8, 8, True, None, (64, 72), (64, 72), CropBox(0, 0, 64, 72)),
    "context only": Setting(TINY, 2, 16, 8, True, 0.0, (40, 32), (64, 72), CropBox(0, 16, 40, 32)),
    "fixed": Setting(TINY, 19, 8, 8, True, 0.3, (40, 32), (64, 72), CropBox(16, 40, 40, 32)),
    "detail only": Setting(TINY, 2, 8, 8, False, 1.0, (40, 32), (64, 72), CropBox(8, 8, 40, 32)),
}


def filled(model: Any, shapes: oracle.Shapes) -> Any:
    """Weights from the rule, by published name."""
    load_reference_checkpoint(model, checkpoint(5, shapes))
    return model


def weights(model: nn.Module) -> Weights:
    return {name: entry.clone() for name, entry in to_reference_state_dict(model).items()}


def run(model: nn.Module, images: Tensor, call: Callable[[nn.Module, Tensor], dict[str, Any]]) -> dict[str, Tensor]:
    """What ``call`` says, and every batch norm's buffers after it."""
    with torch.no_grad():
        said = call(model, images)
    buffers = {name: x for name, x in weights(model).items() if ".bn." in name and "running" in name}
    return {name: torch.as_tensor(x) for name, x in (said | buffers).items()}


def check(
    model: nn.Module,
    images: Tensor,
    ours: Callable[[nn.Module, Tensor], dict[str, Any]],
    theirs: Callable[[Weights, Tensor], dict[str, Any]],
) -> None:
    """``ours`` (the model) against ``theirs`` (the oracle on its weights), float64 to 1e-12, float32 to rounding."""
    results = {}
    for dtype in (torch.float32, torch.float64):
        net = copy.deepcopy(model).to(dtype)
        w, unread = Reads(weights(net)), set(weights(net))
        results[dtype, "ours"] = run(net, images.to(dtype), ours)
        with torch.no_grad():
            said = theirs(w, images.to(dtype))
        unread -= w.seen
        assert all("num_batches" in name for name in unread), unread
        results[dtype, "oracle"] = {n: torch.as_tensor(said.get(n, w.get(n))) for n in results[dtype, "ours"]}
    exact = results[torch.float64, "oracle"]
    for name, want in exact.items():
        assert results[torch.float64, "ours"][name].dtype == want.dtype
        got = {key: error(x[name], want) for key, x in results.items()}
        assert got[torch.float64, "ours"] < 1e-12, (name, got)
        slack = 1e-5 if "running" in name else 1e-6  # torch sums a batch's mean in plain float32
        assert got[torch.float32, "ours"] <= 4 * got[torch.float32, "oracle"] + slack, (name, got)


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape, (got.shape, want.shape)
    return 0.0 if torch.equal(got, want) else relative_error(got, want)


class Reads(dict[str, Tensor]):
    """Remembers which entries were read."""

    def __init__(self, entries: Weights) -> None:
        super().__init__(entries)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.seen.add(name)
        return super().get(name, default)


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By published name: the inverse keeps the order of the state dict."""
    entries, ours = to_reference_state_dict(model), model.state_dict(keep_vars=True).values()
    assert all(entry.numel() == mine.numel() for entry, mine in zip(entries.values(), ours, strict=True))
    named = dict(zip(entries, ours, strict=True))
    return {name: entry for name, entry in named.items() if isinstance(entry, nn.Parameter)}


def named(out: Any) -> dict[str, Any]:
    return {name: getattr(out, name) for name in oracle.Output._fields}


MODES = ("windows", "crop", "training crop", "training windows")
LARGE = {"b1": ("training crop",), "b2": ("windows",)}  # one each, for the time it takes
FORWARD = [(name, mode) for name in SETTINGS for mode in LARGE.get(name, MODES)]


@pytest.mark.parametrize(("name", "mode"), FORWARD, ids=[", ".join(case) for case in FORWARD])
def test_forward(name: str, mode: str) -> None:
    s = SETTINGS[name]
    box, training = (s.box if "crop" in mode else None), "training" in mode
    check(
        s.build().train(training),
        image(1, name, 2 if training else 1, *s.size),
        lambda net, x: named(net(x, box, detail="crop" if box else "windows")),
        lambda w, x: named(oracle.hrda(w, x, s.depths, s.detail, attention=s.fixed, box=box, training=training)),
    )


@pytest.mark.parametrize("size", [(107, 133), (59, 150), (61, 57)], ids=["larger", "flat", "smaller"])
@pytest.mark.parametrize("name", ["tiny", "fixed"])
def test_predict(name: str, size: tuple[int, int]) -> None:
    s = SETTINGS[name]
    check(
        s.build(),
        image(2, name, 1, *size),
        lambda net, x: {"logits": net.predict(x)},
        lambda w, x: {"logits": oracle.predict(w, x, s.depths, s.detail, attention=s.fixed)},
    )


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("size", [(64, 96), (65, 90), (20, 46)], ids=str)
@pytest.mark.parametrize(("encoder", "classes"), [("mit_b0", 19), (TINY, 2)], ids=["b0", "tiny"])
def test_daformer(encoder: Any, classes: int, size: tuple[int, int], training: bool) -> None:
    shapes = oracle.daformer_shapes(WIDTHS[encoder], DEPTHS[encoder], classes, 24)
    check(
        filled(daformer(encoder, classes, embed_dims=24, drop_path=0, dropout=0), shapes).train(training),
        image(3, "daformer", 2, *size),
        lambda net, x: {"logits": net(x)},
        lambda w, x: {"logits": oracle.daformer(w, x, DEPTHS[encoder], training=training)},
    )


@torch.no_grad()
def test_the_oracle_has_the_published_entries_and_gives_the_reference_vectors() -> None:
    shapes = oracle.hrda_shapes(
        WIDTHS["mit_b0"], DEPTHS["mit_b0"], 19, META["embed_dims"], 19, META["attention_embed_dims"]
    )
    assert shapes == ENTRIES
    seed, side, detail = META["seed"], META["context_size"], (META["detail_size"], META["detail_size"])
    out = oracle.hrda(checkpoint(seed), image(seed, "eval.image", 1, side, side), DEPTHS["mit_b0"], detail)
    logits = oracle.resize(out.logits, side, side)[..., ::4, ::4]
    assert relative_error(logits, VECTORS["eval.hrda_logits"]) < 1e-5


def test_gradients() -> None:
    s = SETTINGS["tiny"]
    model, images = s.build().double().train(), image(4, "gradients", 2, *s.size).double()
    w = {name: x.detach().clone().requires_grad_(x.is_floating_point()) for name, x in weights(model).items()}
    leaves = dict(w)
    for out in (model(images, s.box), oracle.hrda(w, images, s.depths, s.detail, box=s.box, training=True)):
        (out.logits.sin().sum() + out.detail_logits.sin().sum()).backward()
    entries = parameters(model)
    assert len(entries) == len(list(model.parameters()))
    for name, entry in entries.items():
        got, want = entry.grad, leaves[name].grad
        assert isinstance(got, Tensor), name
        # in front of a batch norm a bias shifts nothing: its gradient is rounding noise
        assert (got.view_as(want) - want).norm() < 1e-11 * max(want.norm().item(), 1), name


def test_epsilons_by_number() -> None:
    """Where variances are about 1e-6, each epsilon decides the output."""
    s = SETTINGS["tiny"]
    model, entries = s.build().eval(), checkpoint(5, s.shapes)
    small = ("patch_embed", "attn.sr", "attn.proj", "mlp.fc2")
    for name in entries:
        if any(part in name for part in small):
            entries[name] *= 1e-3
        elif name.endswith("running_var"):
            entries[name] *= 1e-5
    load_reference_checkpoint(model.double(), entries)
    images = image(6, "epsilons", 1, 64, 72).double()
    with torch.no_grad():
        features = oracle.encoder(weights(model), images, s.depths)
        out = oracle.hrda(weights(model), images, s.depths, s.detail)
        assert relative_error(model(images).logits, out.logits) < 1e-10
        for ours, theirs in zip(model.encoder(images), features, strict=True):
            assert relative_error(ours, theirs) < 1e-10
        norms = {n: m for n, m in model.encoder.named_modules() if isinstance(m, nn.LayerNorm)}
        assert len(norms) == 4 + 4 + 2 * 5 + 4  # embeddings, ends of stages, two a block, reductions of three stages
        for name, norm in norms.items():
            kept, norm.eps = norm.eps, 1.1e-5 - norm.eps  # 1e-6 for 1e-5, and the reverse
            changed = [relative_error(a, b) for a, b in zip(model.encoder(images), features, strict=True)]
            assert max(changed) > 1e-4, name
            norm.eps = kept


def test_parameter_groups_by_published_name() -> None:
    """The released rule: the first of "head" and "norm" in the name decides; neither: encoder, with decay."""
    with torch.device("meta"):
        model = hrda("mit_b5")
    groups = parameter_groups(model, lr=6e-5, head_factor=10.0, weight_decay=0.01)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    entries = parameters(model)
    assert len(found) == len(entries) == sum(len(group["params"]) for group in groups)
    for name, entry in entries.items():
        expected = (6e-4, 0.01) if "head" in name else (6e-5, 0.0) if "norm" in name else (6e-5, 0.01)
        assert found[id(entry)] == pytest.approx(expected, rel=1e-12), name
    for part in ("patch_embed1.norm.", "attn.norm.", "block3.39.norm2.", "backbone.norm4.", "bottleneck.bn."):
        assert any(part in name for name in entries), part


def test_teacher_of_a_dropping_student() -> None:
    """No Dropout, no DropPath, statistics of the batch, running ones of its own that no update touches."""
    s = SETTINGS["tiny"]
    student = s.build(drop=0.9).double()
    teacher = EMATeacher(student)
    images, w = image(7, "teacher", 2, *s.size).double(), weights(student)
    with torch.no_grad():
        want = oracle.hrda(w, images, s.depths, s.detail, training=True)
    assert relative_error(teacher(images).logits, want.logits) < 1e-12
    student(images)
    teacher.update(student)
    for name, got in weights(teacher.module).items():
        if "running" in name or "tracked" in name:
            assert relative_error(got, w[name]) < 1e-12, name
