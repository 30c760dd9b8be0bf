"""Images and labels of tensor subclasses (torchvision's, MONAI's, one's own) give the numbers of plain tensors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from step_tensors import IMAGES, LABELS, LOGITS, TARGET, WEIGHT
from torch import Tensor, nn

from hrda_lib import (
    ConfusionMatrix,
    EMATeacher,
    FeatureDistance,
    MultiResCropSampler,
    MultiResSegmenter,
    SelfTraining,
    SlidingWindowInferer,
    StrongAugment,
    class_mix,
    confidence_weighted_ce,
    crop,
    fuse_scales,
    gaussian_blur,
    patch_mask,
    pseudo_labels,
    resize,
    sample_class_mask,
)


class Tagged(Tensor):
    """Spreads, and carries what torch knows nothing of, as MONAI's MetaTensor does."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(answer, cls):
            answer.origin = next((x.origin for x in args if hasattr(x, "origin")), None)
        return answer


def tagged(x: Tensor) -> Tensor:
    made = x.as_subclass(Tagged)
    made.origin = "file.nii"  # type: ignore[attr-defined]
    return made


def torchvision_s(x: Tensor) -> Tensor:
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    made: Tensor = (tv_tensors.Image if x.is_floating_point() else tv_tensors.Mask)(x)
    return made


KINDS: dict[str, Callable[[Tensor], Tensor]] = {"written": tagged, "torchvision": torchvision_s}


def segmenter() -> MultiResSegmenter:
    torch.manual_seed(0)
    return MultiResSegmenter(
        nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 1, 1), detail_size=16
    ).eval()


def step(images: Tensor, labels: Tensor, target: Tensor, valid: Tensor) -> list[Tensor]:
    student, seed = segmenter().train(), torch.Generator().manual_seed(0)
    training = SelfTraining(
        student,
        EMATeacher(student),
        feature_distance=FeatureDistance(nn.Conv2d(3, 8, 4, stride=4), classes=None, num_classes=4),
        augment=StrongAugment(mean=(0, 0, 0), std=(1, 1, 1)),
        masking=partial(patch_mask, block=8),
        generator=seed,
        threshold=0.3,
    )
    answers = []
    for _, loss in training.losses(images, labels, target, target_valid=valid):
        loss.backward()
        answers.append(loss.detach())
    return [*answers, *(p.grad for p in student.parameters() if p.grad is not None)]


def counted(prediction: Tensor, target: Tensor) -> Tensor:
    confusion = ConfusionMatrix(4)
    confusion.update(prediction, target)
    return confusion.matrix


CALLS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "a whole step": (step, (IMAGES, LABELS, TARGET, WEIGHT > 0.1)),
    "confidence_weighted_ce": (confidence_weighted_ce, (LOGITS, LABELS, WEIGHT)),
    "pseudo_labels": (lambda x, v: pseudo_labels(x, size=32, valid=v, threshold=0.3), (LOGITS, WEIGHT > 0.5)),
    "SlidingWindowInferer": (lambda x: SlidingWindowInferer(16)(x, nn.Identity()), (IMAGES,)),
    "predict": (lambda x: segmenter().predict(x[..., :30, :31]), (IMAGES,)),
    "predict labels": (lambda x: segmenter().predict(x, output="labels"), (IMAGES,)),
    "predict_scales": (lambda x: segmenter().predict_scales(x), (IMAGES,)),
    "ConfusionMatrix": (counted, (LABELS, LABELS.flip(0))),
    "class_mix": (class_mix, (IMAGES, TARGET, WEIGHT > 0.5)),
    "sample_class_mask": (lambda y: sample_class_mask(y, torch.Generator().manual_seed(0)), (LABELS,)),
    "MultiResCropSampler": (lambda x: MultiResCropSampler(16)(x, torch.Generator().manual_seed(0))[:2], (IMAGES,)),
    "fuse_scales": (lambda c, d: fuse_scales(c, d, 0.5, scale=1), (LOGITS, LOGITS.flip(0))),
    "resize": (lambda x: resize(x, 9), (LOGITS,)),
    "crop": (lambda x: crop(x, (1, 2, 3, 4)), (LABELS,)),
    "gaussian_blur": (lambda x: gaussian_blur(x, torch.full((2,), 0.8)), (IMAGES,)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_as_of_plain_tensors(name: str, kind: str) -> None:
    call, given = CALLS[name]
    torch.manual_seed(0)
    expected = call(*given)
    torch.manual_seed(0)
    answer = call(*map(KINDS[kind], given))
    for mine, theirs in zip(as_list(answer), as_list(expected), strict=True):
        assert torch.equal(mine.as_subclass(Tensor), theirs)


def as_list(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else list(answer)
