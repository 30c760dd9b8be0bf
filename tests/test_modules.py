"""Modes of modules, also where several threads predict with one model."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from hrda_lib import MultiResSegmenter, _modules
from hrda_lib._modules import in_eval_mode
from hrda_lib.models import EncoderDecoder


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.BatchNorm2d(8))
    body[4].eval()  # a frozen layer
    return body


def segmenter() -> MultiResSegmenter:
    return MultiResSegmenter(encoder(), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1), detail_size=32)


def one_scale() -> EncoderDecoder:
    return EncoderDecoder(encoder(), nn.Conv2d(8, 5, 1))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("build", [segmenter, one_scale])
@pytest.mark.parametrize("training", [True, False])
def test_predictions_of_many_threads(build: type[nn.Module], training: bool) -> None:
    model = build()
    if not training:
        model.eval()
    before = modes(model)
    images = [torch.randn(1, 3, 40 + 4 * i, 72) for i in range(16)]
    expected = [model.predict(x) for x in images]
    state = copy.deepcopy(model.state_dict())
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(model.predict, images))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert modes(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not _modules._MODES


def test_the_last_to_leave_restores_the_modes() -> None:
    model = segmenter()
    before = modes(model)
    first, second, inner = in_eval_mode(model), in_eval_mode(model), in_eval_mode(model.encoder)
    first.__enter__()
    inner.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(modes(model))
    second.__exit__(None, None, None)
    assert modes(model.encoder) == [False] * 6  # a part may be in use elsewhere
    assert model.training
    inner.__exit__(None, None, None)
    assert modes(model) == before
    assert not _modules._MODES


def test_an_error_in_one_thread_leaves_the_others_alone() -> None:
    model = segmenter()
    images = [torch.randn(1, 3 if i % 2 else 4, 40, 72) for i in range(12)]
    before, expected = modes(model), [model.predict(x) for x in images[1::2]]

    def try_it(x: Tensor) -> Tensor | str:
        try:
            return model.predict(x)
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(try_it, images))
    assert all(isinstance(answer, str) for answer in got[::2])
    for a, b in zip(got[1::2], expected, strict=True):
        torch.testing.assert_close(a, b)
    assert modes(model) == before


def test_a_model_that_has_predicted_is_copied_and_pickled() -> None:
    model, x = segmenter(), torch.randn(1, 3, 40, 72)
    expected = model.predict(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again.predict(x), expected)
        assert modes(again) == modes(model)
