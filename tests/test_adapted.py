"""Adapted: what is picked, what is refused, and that it is a module like any other."""

import io
import pickle
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrda_lib import Adapted, EMATeacher, MultiResSegmenter, ScaleAttentionHead, SegmenterOutput, SelfTraining
from hrda_lib.models import DAFormerHead

X = torch.arange(24.0).view(2, 3, 2, 2)
Pair = namedtuple("Pair", ["first", "second"])


class Answer(OrderedDict[str, Any]):
    """As those of transformers: entries are attributes too, and what was not asked for is an attribute None."""

    hidden_states = None

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Dictionary(nn.Module):
    """As torchvision's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.classifier(x), "aux": x}


def twice(x: Any) -> Any:
    return x["out"] * 2


@pytest.mark.parametrize(
    ("value", "how", "expected"),
    [
        ({"out": 1, "aux": 2}, "aux", 2),
        ({"keys": 1}, "keys", 1),
        ({0: "zero"}, 0, "zero"),
        (Answer(logits=1), "logits", 1),
        (SimpleNamespace(masks=3), "masks", 3),
        (Pair(1, 2), "second", 2),
        (Pair(1, 2), 0, 1),
        ([1, 2, 3], -1, 3),
        ([1, 2, 3], slice(2, None), [3]),
        ({"high": 1, "low": 2}, ["low", "high", "low"], [2, 1, 2]),
        ([1, 2, 3], [2, 0], [3, 1]),
        ([1, [2, 3]], [0, lambda x: x[1][0]], [1, 2]),
        ({"a": {"b": 5}}, lambda x: x["a"]["b"], 5),
        ("as it is", None, "as it is"),
    ],
)
def test_both_sides_pick_alike(value: Any, how: Any, expected: Any) -> None:
    assert Adapted(nn.Identity(), input=how)(value) == expected
    assert Adapted(nn.Identity(), output=how)(value) == expected


def test_the_module_lies_between() -> None:
    net = Adapted(Dictionary(), input="image", output="out")
    assert torch.equal(net({"image": X, "name": "a"}), net.module.classifier(X))
    assert torch.equal(Adapted(nn.Identity(), output=(slice(None), 0))(X), X[:, 0])
    assert repr(net).startswith("Adapted(\n  input='image', output='out'\n  (module): Dictionary(")


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a function": (
        lambda: Adapted(lambda x: x),
        "module must be a torch.nn.Module, got function: a function's weights would neither be trained nor copied",
    ),
    "a number": (lambda: Adapted(nn.Identity(), input=0.5), "input must be a key, an index, a slice, an attribute's"),
    "a truth": (lambda: Adapted(nn.Identity(), output=True), "a list of them or a function, got True"),
    "no keys": (lambda: Adapted(nn.Identity(), output=[]), "output must be a key, an index"),
    "none of them": (lambda: Adapted(nn.Identity(), output=["a", None]), "a list of them or a function, got None"),
    "lists of lists": (lambda: Adapted(nn.Identity(), output=[["a"]]), "a list of them or a function, got ['a']"),
    "a module in a list": (lambda: Adapted(nn.Identity(), output=[nn.Identity()]), "or a function, got Identity()"),
    "another key": (
        lambda: Adapted(nn.Identity(), input="logits")({"out": 1, "aux": 2}),
        "input='logits' is not in the dict that came, which has 'out', 'aux': input='out', or a function of it",
    ),
    "a method": (
        lambda: Adapted(nn.Identity(), output="items")({"out": 1}),
        "output='items' is not in the dict that came, which has 'out': output='out', or",
    ),
    "another attribute": (
        lambda: Adapted(nn.Identity(), output="out")(SegmenterOutput(X, X, None, X, 0.5, [X], X)),
        "output='out' is not in the SegmenterOutput that came, which has 'logits', 'detail_logits', 'context_logits',",
    ),
    "not asked for": (
        lambda: Adapted(nn.Identity(), output="hidden_states")(Answer(logits=X)),
        "output='hidden_states' is not in the Answer that came, which has 'logits': output='logits'",
    ),
    "a key of a tensor": (
        lambda: Adapted(nn.Identity(), output="out")(X),
        "output='out' is not in the Tensor that came, which has no entries: output=None, or a function of it",
    ),
    "beyond a list": (
        lambda: Adapted(nn.Identity(), output=[0, 3])([X, X]),
        "output=3 is not in the list that came, which has 0, 1: output=0, or a function of it",
    ),
    "an index of an object": (
        lambda: Adapted(nn.Identity(), output=1)(SimpleNamespace(masks=X)),
        "output=1 is not in the SimpleNamespace that came, which has 'masks': output='masks'",
    ),
    "a segmenter's box": (
        lambda: SelfTraining(Adapted(segmenter(), output="logits"), EMATeacher(segmenter())),
        "student must take box and generator, which Adapted does not pass to the MultiResSegmenter inside; adapt its "
        "encoder, decoder and attention",
    ),
}


def segmenter() -> MultiResSegmenter:
    return MultiResSegmenter(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 4, 1), 0.5, detail_size=16)


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, text = BAD[case]
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize("how", ["out", lambda x: x["out"], twice], ids=["key", "lambda", "function"])
def test_compiled_exported_traced_copied(how: Any) -> None:
    net = Adapted(Dictionary(), output=how)
    expected = net(X)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(net, (X,)).module()
    for other in (compiled, exported, torch.jit.trace(net, X, check_trace=False), EMATeacher(net)):
        torch.testing.assert_close(other(X), expected)


def test_kept_and_loaded() -> None:
    net = Adapted(Dictionary(), output=["aux", "out"])
    assert list(net.state_dict()) == ["module.classifier.weight", "module.classifier.bias"]
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for copy in (pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
        assert torch.equal(copy(X)[1], net(X)[1])
        assert copy.output == ["aux", "out"]


def test_functions_that_hide_a_module_are_no_part_of_a_teacher() -> None:
    head = nn.Conv2d(3, 4, 1)
    net = Adapted(nn.Identity(), output=lambda x: head(x))
    with pytest.raises(ValueError, match=r"reaches a Conv2d that is not its own, by output -> head; make it a sub"):
        EMATeacher(net)


def test_a_module_as_function_is_trained_and_copied() -> None:
    net = Adapted(nn.Conv2d(3, 4, 1), output=nn.Upsample(scale_factor=2), input=nn.Conv2d(3, 3, 1))
    assert net(X).shape == (2, 4, 4, 4)
    assert len(list(net.parameters())) == 4
    teacher = EMATeacher(net)
    assert torch.equal(teacher(X), net(X))
    assert teacher.module.input is not net.input


class Pyramid(nn.Module):
    """As those of segmentation-models-pytorch: the image first, then a level of no channels, then the features."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x[:, :0], self.fine(x), self.coarse(x)]


class Object(Pyramid):
    """As transformers' backbones."""

    def forward(self, x: Tensor) -> Any:
        return Answer(last_hidden_state=x, hidden_states=tuple(super().forward(x)[2:]))


def heads() -> tuple[nn.Module, nn.Module]:
    return DAFormerHead([8, 6], 4, embed_dims=4, dropout=0), ScaleAttentionHead([8, 6], 4, embed_dims=4, dropout=0)


def parts(kind: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    decoder, attention = heads()
    if kind == "list":
        return Pyramid(), *(Adapted(head, input=slice(2, None)) for head in (decoder, attention))
    if kind == "levels":
        return Adapted(Pyramid(), output=[2, 3]), decoder, attention
    if kind == "dictionary":
        encoder = Adapted(Pyramid(), output=lambda f: {"coarse": f[3], "out": f[2]})
        return encoder, *(Adapted(head, input=["out", "coarse"]) for head in (decoder, attention))
    return Adapted(Object(), output="hidden_states"), decoder, attention


def by_hand() -> tuple[nn.Module, nn.Module, nn.Module]:
    class Encoder(Pyramid):
        def forward(self, x: Tensor) -> list[Tensor]:
            return super().forward(x)[2:]

    torch.manual_seed(0)
    decoder, attention = heads()
    return Encoder(), decoder, attention


@pytest.mark.parametrize("kind", ["list", "levels", "dictionary", "object"])
def test_around_the_parts_of_a_segmenter(kind: str) -> None:
    """The losses of a step are those of classes written by hand."""
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 2, 3, 64, 64, generator=generator)
    labels = torch.randint(4, (2, 64, 64), generator=generator)
    losses = []
    for encoder, decoder, attention in (by_hand(), parts(kind)):
        torch.manual_seed(1)
        student = MultiResSegmenter(encoder, decoder, attention, detail_size=32)
        with torch.no_grad():
            for k, parameter in enumerate(student.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)) / 4)
        training = SelfTraining(student, EMATeacher(student), generator=torch.Generator().manual_seed(0))
        losses.append([loss for _, loss in training.losses(source, labels, target)])
        assert student.predict(source[:1, :, :40], output="labels").shape == (1, 40, 64)
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))


def test_around_a_whole_student() -> None:
    net, y = Dictionary(), torch.zeros(2, 2, 2, dtype=torch.int64)
    student = Adapted(net, output="out")
    losses = [loss.item() for _, loss in SelfTraining(student, EMATeacher(student)).losses(X, y, X)]
    plain = SelfTraining(net.classifier, EMATeacher(net.classifier))
    assert losses == [loss.item() for _, loss in plain.losses(X, y, X)]
