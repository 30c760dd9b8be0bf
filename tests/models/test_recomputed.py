"""What backward computes anew changes nothing: values, gradients, batch norm statistics, random numbers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hrda_lib._modules
from hrda_lib import ScaleAttentionHead, SelfTraining
from hrda_lib.models import DAFormerHead, MixTransformerSize, hrda

TINY = MixTransformerSize((8, 16, 40, 64), (1, 1, 1, 1))
FEATURES = ((2, 8, 16, 12), (2, 16, 8, 6))
HEADS: dict[str, Callable[..., nn.Module]] = {
    "sepaspp": lambda **given: DAFormerHead([8, 16], 5, embed_dims=8, dropout=0.3, **given),
    "aspp": lambda **given: DAFormerHead([8, 16], 5, embed_dims=8, context_layer="aspp", dropout=0.3, **given),
    "conv1": lambda **given: DAFormerHead([8, 16], 5, embed_dims=8, context_layer="conv1", dropout=0.3, **given),
    "attention": lambda **given: ScaleAttentionHead([8, 16], 5, embed_dims=8, dropout=0.3, **given),
}


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is kept."""
    for place in ("models.daformer_head", "attention_head", "models.mix_transformer"):
        monkeypatch.setattr(f"hrda_lib.{place}.recomputed", lambda module, run, *inputs: run(*inputs))


def outcome(module: nn.Module, *inputs: Any) -> tuple[dict[str, Tensor], Tensor]:
    """What a forward and backward pass gives and leaves, and the next random number."""
    torch.manual_seed(1)
    features = [x.clone().requires_grad_() for x in inputs]
    logits = module(features)
    (logits**2).sum().backward()
    left = {f"gradient of {name}": p.grad for name, p in module.named_parameters()}
    left |= {f"gradient of {i}": x.grad for i, x in enumerate(features)}
    return {"logits": logits.detach(), **left, **dict(module.named_buffers())}, torch.rand(3)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", HEADS)
def test_heads_are_as_if_all_was_kept(
    kind: str, training: bool, checkpoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = HEADS[kind](checkpoint=checkpoint).train(training)
    inputs = [torch.randn(shape) for shape in FEATURES]
    plain = copy.deepcopy(head)
    got, after = outcome(head, *inputs)
    plainly(monkeypatch)
    expected, after_plain = outcome(plain, *inputs)
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.equal(got[name], expected[name]), name
    assert torch.equal(after, after_plain)


def saved(run: Callable[[], Tensor], module: nn.Module) -> int:
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("stages", "most"), [((), 0.6), ((0, 1, 2, 3), 0.12)], ids=["by default", "with all stages checkpointed"]
)
def test_a_student_keeps_a_fraction_of_what_it_computes(
    stages: tuple[int, ...], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = hrda(TINY, 5, embed_dims=32, attention_embed_dims=32, detail_size=64, checkpoint_stages=stages)
    images, labels = torch.randn(2, 3, 128, 128), torch.randint(0, 5, (2, 128, 128))
    training = SelfTraining(model, nn.Identity())
    lean = saved(lambda: training.source(images, labels)[0], model)
    with monkeypatch.context() as patch:
        plainly(patch)
        model.encoder.checkpoint_stages = frozenset()
        full = saved(lambda: training.source(images, labels)[0], model)
    assert lean <= most * full


def test_backward_through_a_retained_graph_twice() -> None:
    torch.manual_seed(0)
    head, features = HEADS["sepaspp"](), [torch.randn(shape) for shape in FEATURES]
    statistics = copy.deepcopy(dict(head.named_buffers()))
    loss = head(features).square().sum()
    once = copy.deepcopy(dict(head.named_buffers()))
    assert not torch.equal(once["fuse.bottleneck.bn.running_mean"], statistics["fuse.bottleneck.bn.running_mean"])
    first = torch.autograd.grad(loss, list(head.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(head.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(x, once[name]) for name, x in head.named_buffers())


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    "path", ["", "fuse", "fuse.branches.1", "fuse.branches.1.depthwise_conv.bn", "fuse.bottleneck"]
)
def test_a_hook_sees_every_part_once(path: str, checkpoint: bool) -> None:
    torch.manual_seed(0)
    head = HEADS["sepaspp"](checkpoint=checkpoint)
    features = [torch.randn(shape) for shape in FEATURES]
    seen: list[torch.Size] = []
    head.get_submodule(path).register_forward_hook(lambda module, given, out: seen.append(out.shape))
    head(features).sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("checkpoint", [False, True])
def test_code_that_looks_inside_gets_plain_operations(checkpoint: bool) -> None:
    torch.manual_seed(0)
    head = HEADS["sepaspp"](checkpoint=checkpoint).eval()
    features = [torch.randn(shape) for shape in FEATURES]
    expected = head(features)
    assert torch.allclose(torch.export.export(head, (features,)).module()(features), expected, atol=1e-6)
    parameters = dict(head.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        answer: Tensor = torch.func.functional_call(head, parameters, (features,))
        return answer.square().sum()

    gradients = torch.func.grad(loss)(parameters)
    head(features).square().sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-4), name


def test_counting_goes_on_afterwards() -> None:
    norm = nn.BatchNorm2d(2)
    with hrda_lib._modules._WithoutCounting(norm):
        norm(torch.randn(2, 2, 3, 3))
    with pytest.raises(ValueError, match="expected 4D"), hrda_lib._modules._WithoutCounting(norm):
        norm(torch.randn(2, 2))
    assert norm.num_batches_tracked == 0
    norm(torch.randn(2, 2, 3, 3))
    assert norm.num_batches_tracked == 1
