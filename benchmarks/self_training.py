"""A step of self-training with HRDA, and what backward keeps, beside the same step put together the released way."""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad, softmax

from hrda_lib import (
    EMATeacher,
    FeatureDistance,
    MultiResSegmenter,
    SelfTraining,
    StrongAugment,
    crop,
    window_grid,
)
from hrda_lib.crops import downscale
from hrda_lib.models import hrda
from hrda_lib.models.depthwise import DepthwiseConv2d
from hrda_lib.models.mix_transformer import Attention, FeedForward
from hrda_lib.optim import parameter_groups
from rounds import OURS, Row, alternate, saved_megabytes

RELEASED, RECORDED = "the released way", "released code (recorded)"
CPU = torch.device("cpu")
THINGS = [6, 7, *range(11, 19)]
MEGABYTES = {"mit_b0": 259.0, "mit_b2": 1517.0}  # that the released code keeps, at these sizes


@cache
def pictures(side: int, seed: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Two images in [0, 1], and labels in blocks."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(19, (2, 1, side // 32, side // 32), generator=generator)
    images = torch.rand(2, 3, side, side, generator=generator)
    return images.to(device), interpolate(labels.float(), (side, side))[:, 0].long().to(device)


class OurStep:
    """Source with feature distance, pseudo labels, mixed, the optimiser's step."""

    def __init__(
        self,
        student: MultiResSegmenter,
        side: int,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.student, self.side, self.device = student, side, next(student.parameters()).device
        self.autocast = torch.autocast(self.device.type, precision, enabled=precision != torch.float32)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.teacher = EMATeacher(student)
        self.training = SelfTraining(
            student,
            self.teacher,
            feature_distance=FeatureDistance(student.encoder, classes=THINGS, num_classes=19),
            augment=StrongAugment(mean=(0, 0, 0), std=(1, 1, 1)),
        )
        self.optimizer = torch.optim.AdamW(parameter_groups(student))

    def __call__(self) -> None:
        (images, labels), (target, _) = (pictures(self.side, seed, self.device) for seed in (0, 1))
        self.teacher.update(self.student)
        losses = self.training.losses(images, labels, target)
        for _ in range(2):
            with self.autocast:
                _, loss = next(losses)
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class ReleasedStep:
    """The same with full-resolution logits, a retained graph and a backward for the feature distance of its own.

    The teacher is averaged parameter by parameter, its pseudo labels are counted on the host, its detail windows are
    padded to the canvas. In its networks attention is written out, depthwise convolutions are torch's, all is kept.
    """

    def __init__(self, student: MultiResSegmenter, side: int) -> None:
        self.student, self.side, self.device = as_released(student), side, next(student.parameters()).device
        self.teacher = copy.deepcopy(self.student)
        for part in self.teacher.modules():
            if isinstance(part, nn.Dropout2d) or type(part).__name__ == "DropPath":
                part.eval()
        self.distance = FeatureDistance(self.student.encoder, classes=THINGS, num_classes=19)
        self.augment = StrongAugment(mean=(0, 0, 0), std=(1, 1, 1))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student))

    def __call__(self) -> None:
        (images, labels), (target, _) = (pictures(self.side, seed, self.device) for seed in (0, 1))
        for mine, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.data[:] = 0.999 * mine.data + 0.001 * new.data
        features, loss = self.loss(images, labels, torch.ones(labels.shape, device=self.device))
        loss.backward(retain_graph=True)
        self.distance(features, downscale(images, 2), labels).backward()
        with torch.no_grad():
            probability, pseudo = softmax(self.teacher_logits(target), dim=1).max(dim=1)
        share = (probability >= 0.968).sum().item() / pseudo.cpu().numpy().size
        weight = share * torch.ones(pseudo.shape, device=self.device)
        mixed = []
        for image, label, other, guess, q in zip(images, labels, target, pseudo, weight, strict=True):
            ids = label.unique()
            chosen = ids[torch.randperm(len(ids), device=self.device)[: (len(ids) + 1) // 2]]
            mask = (label[None] == chosen[:, None, None]).sum(dim=0)
            both = mask * image + (1 - mask) * other
            mixed.append((self.augment(both[None])[0], mask * label + (1 - mask) * guess, mask + (1 - mask) * q))
        _, loss = self.loss(*(torch.stack(part) for part in zip(*mixed, strict=True)))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, images: Tensor, labels: Tensor, weight: Tensor) -> tuple[list[Tensor], Tensor]:
        out = self.student(images)
        box = out.detail_box
        assert box is not None
        parts = [(0.9, out.logits, labels, weight), (0.1, out.detail_logits, crop(labels, box), crop(weight, box))]
        total = torch.zeros((), device=self.device)
        for share, logits, y, q in parts:
            scores = interpolate(logits, size=y.shape[-2:], mode="bilinear", align_corners=False)
            total = total + share * (cross_entropy(scores, y, reduction="none", ignore_index=255) * q).mean()
        return out.features, total

    def teacher_logits(self, images: Tensor) -> Tensor:
        teacher, cells = self.teacher, self.side // 4
        features = teacher.encoder(downscale(images, 2))
        context, attention = teacher.decoder(features), teacher.attention(features).sigmoid()
        boxes = window_grid((self.side, self.side), self.side // 2, self.side // 4)
        answers = teacher.decoder(teacher.encoder(torch.cat([crop(images, box) for box in boxes])))
        shape = (2, 19, cells, cells)
        total, count = torch.zeros(shape, device=self.device), torch.zeros(2, 1, cells, cells, device=self.device)
        for box, answer in zip(boxes, answers.split(2), strict=True):
            top, left, height, width = box.scaled(1 / 4)
            around = (left, cells - left - width, top, cells - top - height)
            total += pad(answer, around)
            count += pad(torch.ones(2, 1, height, width, device=self.device), around)
        fused = interpolate((1 - attention) * context, scale_factor=2, mode="bilinear", align_corners=False)
        share = interpolate(attention, scale_factor=2, mode="bilinear", align_corners=False)
        fused = fused + share * (total / count)
        return interpolate(fused, size=(self.side, self.side), mode="bilinear", align_corners=False)


def as_released(student: MultiResSegmenter) -> MultiResSegmenter:
    """A copy that writes attention out, convolves as torch does, and keeps all that it computes."""
    student = copy.deepcopy(student)
    for part in student.modules():
        if isinstance(part, Attention):
            part.forward = MethodType(attend, part)
        if isinstance(part, FeedForward) or part in (student.decoder, student.attention):
            part.register_forward_hook(lambda module, given, out: None)  # where hooks are, nothing is computed anew
        for name, child in part.named_children():
            if isinstance(child, DepthwiseConv2d):
                plain = nn.Conv2d(
                    child.in_channels, child.out_channels, 3, 1, child.padding, child.dilation, child.groups, bias=False
                )
                plain.weight = child.weight
                setattr(part, name, plain)
    return student


def attend(self: Attention, x: Tensor, height: int, width: int) -> Tensor:
    """Attention with its matrix."""
    batch, count, channels = x.shape
    query = self.query(x).reshape(batch, count, self.heads, -1).transpose(1, 2)
    if self.reduce is not None:
        grid = x.transpose(1, 2).reshape(batch, channels, height, width)
        x = self.reduce_norm(self.reduce(grid).flatten(2).transpose(1, 2))
    key, value = self.key_value(x).reshape(batch, -1, 2, self.heads, query.shape[-1]).permute(2, 0, 3, 1, 4)
    shares = softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1)
    out: Tensor = self.out((shares @ value).transpose(1, 2).reshape(batch, count, channels))
    return out


def network(encoder: str, side: int, stages: tuple[int, ...] = ()) -> MultiResSegmenter:
    torch.manual_seed(0)
    width = 256 if side >= 256 else 16
    settings = {"embed_dims": width, "attention_embed_dims": width, "detail_size": side // 2}
    return hrda(encoder, 19, checkpoint_stages=stages, **settings).train()


def kept(model: MultiResSegmenter, side: int) -> float:
    """Megabytes for backward of the student's forward and loss."""
    images, labels = pictures(side, 0)
    training = SelfTraining(model, nn.Identity())
    return saved_megabytes(lambda: training.source(images, labels), [model])


def rows(rounds: int, *, small: bool = False) -> Iterator[Row]:
    for encoder, side in [("mit_b0", 64)] if small else [("mit_b0", 256), ("mit_b2", 512)]:
        title = f"{encoder}, 2 + 2 images of {side}², detail {side // 2}²"
        recorded = {} if small else {RECORDED: [MEGABYTES[encoder]]}
        for stages, most, how in [((), 0.6, "by default"), ((0, 1, 2, 3), 0.25, "checkpoint_stages=(0, 1, 2, 3)")]:
            values = {OURS: [kept(network(encoder, side, stages), side)], **recorded}
            yield Row(f"{title}: kept for backward, {how}", "MB", values, {RECORDED: most} if recorded else {})
        steps: dict[str, Callable[[], None]] = {
            OURS: OurStep(network(encoder, side), side),
            RELEASED: ReleasedStep(network(encoder, side), side),
        }
        fewer = max(rounds // 3, 1) if side > 256 else rounds
        yield alternate(f"{title}: a step", steps, rounds=fewer, targets={RELEASED: 1 / 1.3})
