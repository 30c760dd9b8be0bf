"""The terms of one self-training step, as losses to call backward on."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hrda_lib._checks import (
    LABEL_TYPES,
    check_choice,
    check_counts,
    check_finite,
    check_generator,
    check_tensor,
    check_up_to,
    expect,
    readable,
    seem_last,
    short,
    takes,
    tensor_in,
)
from hrda_lib._modules import layers, parameters_of_forward, unwrap
from hrda_lib._processes import alike, one_seed, own_part
from hrda_lib.adapted import Adapted
from hrda_lib.feature_distance import FeatureDistance
from hrda_lib.geometry import CropBox, crop, resize
from hrda_lib.losses import ConfidenceWeightedCE
from hrda_lib.masking import patch_mask
from hrda_lib.mixing import class_mix, sample_class_mask
from hrda_lib.pseudo_labeling import Per, pseudo_labels
from hrda_lib.segmenter import SegmenterOutput

if TYPE_CHECKING:
    from hrda_lib._processes import Group

Objective = Literal["fused", "context", "detail", "separate"]
Augment = Callable[[Tensor, torch.Generator | None], Tensor]
Criterion = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Masking = Callable[..., Tensor]
Parts = dict[str, Tensor]


class MixedBatch(NamedTuple):
    """Target images with source classes pasted in, for a loss of one's own."""

    images: Tensor
    """(B, K, H, W), augmented where :class:`SelfTraining` has an ``augment``."""
    labels: Tensor
    """(B, H, W) int64, the source's where it was pasted, else the teacher's."""
    weight: Tensor
    """(B, H, W), 1 where the source was pasted, else the teacher's confidence."""


class SelfTraining:
    r"""Source loss, teacher labels and mixed loss of DAFormer and HRDA, one method a term.

    .. math::
        L = L_S + L_{FD} + L_T, \qquad
        L_{S|T} = (1 - \lambda_d)\, \mathrm{CE}(\hat y, y, q) + \lambda_d\, \mathrm{CE}(\hat y_d, y[b], q[b])

    with q = 1 on the source and the teacher's confidence on mixed images (HRDA, arXiv 2204.13132, section 3.3;
    DAFormer, arXiv 2111.14887, section 3.1 and 3.3).

    Args:
        student: returns :class:`hrda_lib.SegmenterOutput`, or plain logits (then there is no detail term);
            others through :class:`hrda_lib.Adapted`. It is given
            ``box`` and ``generator`` where its ``forward`` takes them; of a wrapper whose ``forward`` takes any
            arguments (Fabric, DeepSpeed, FSDP, PEFT), the network inside is asked.
        teacher: images -> what the student returns, without gradient (:class:`hrda_lib.EMATeacher`).
        criterion: CE of every term: (logits at the network's resolution, int64 labels (B, H, W), weight or None) ->
            scalar, upsampling inside. None: :class:`hrda_lib.ConfidenceWeightedCE`, which divides by all pixels,
            ignored ones too (the papers' way); its settings choose class weights, ignored label and divisor.
        feature_distance: adds :math:`L_{FD}` to the source loss. It needs a SegmenterOutput, or a plain student whose
            ``forward`` takes ``return_features`` and then returns (logits, features), as
            :func:`hrda_lib.models.daformer` does.
        detail_weight: :math:`\lambda_d` in [0, 1].
        threshold, per: of :func:`hrda_lib.pseudo_labels`.
        objective: what is trained, and what the teacher labels with: "fused" (HRDA), "context" or "detail" alone, or
            "separate": the equation with the context in place of the fused prediction, labels from the mean of both.
        augment: (images, generator) -> images, applied to mixed images, and by :meth:`losses` to the target images of
            the masked term; None: nothing.
        masking: (size, batch=, generator=) -> mask (B, 1, H, W), True or 1 = kept, such as :func:`hrda_lib.patch_mask`
            or ``functools.partial(patch_mask, block=32)``: adds the masked term to :meth:`losses`. None: no such term.
        generator: CPU generator for boxes, classes, masks and ``augment``; None: torch's default.
        group: processes that share a batch, each with as many images: the confidence share, the cells of the feature
            distance and the divisor of the loss are those of all images, and what is drawn is one box and one decision
            to augment for all, and classes, masks and colours for each image by its place. So the mean over processes
            of losses and gradients (:func:`hrda_lib.distributed.all_reduce_gradients`) is that of one process with
            all images, in the order of the processes. Their generators must have one state (None: the first one's
            default is shared); an ``augment`` or a criterion of one's own is given ``group=`` where it takes it.
            None: this process alone.

    ``parts`` are detached scalars by name: "fused", "context", "detail", "logits" (a plain student), before their
    weights, and "feature_distance", with its weight. Images (B, K, H, W) float, labels (B, H, W) uint8 or int64 with
    255, or the criterion's ignore_index, ignored, weights (B, H, W) in [0, 1].

    Raises:
        ValueError: settings or shapes do not fit each other, ``student.forward`` does not name its arguments, or the
            criterion returns no scalar tensor.

    The caller runs ``teacher.update(student)`` at the start of every step but the first.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib import EMATeacher, SelfTraining
        >>> student = nn.Conv2d(3, 4, 1)
        >>> training = SelfTraining(student, EMATeacher(student), generator=torch.Generator().manual_seed(0))
        >>> source, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
        >>> labels = torch.randint(4, (2, 8, 8), generator=torch.Generator().manual_seed(0))
        >>> for name, loss in training.losses(source, labels, target):
        ...     loss.backward()
        ...     print(name, loss.item() > 0)
        source True
        mixed True
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Callable[[Tensor], Any],
        *,
        criterion: Criterion | None = None,
        feature_distance: FeatureDistance | None = None,
        detail_weight: float = 0.1,
        threshold: float = 0.968,
        per: Per = "batch",
        objective: Objective = "fused",
        augment: Augment | None = None,
        masking: Masking | None = None,
        generator: torch.Generator | None = None,
        group: "Group" = None,
    ) -> None:
        check_up_to(1, detail_weight=detail_weight, threshold=threshold)
        check_generator(generator)
        if not callable(teacher) or not (augment is None or callable(augment)):
            raise ValueError(f"teacher and augment must be callable, got {teacher!r} and {augment!r}")
        if not (masking is None or takes(masking, (8, 8), batch=1, generator=None)):
            raise ValueError(
                f"masking must be callable as (size, batch=, generator=), got {short(masking)}; pass such as patch_mask"
            )
        if not (criterion is None or takes(criterion, None, None, None)):
            raise ValueError(
                f"criterion must be callable as (logits, labels, weight), got {short(criterion)}; pass such as "
                "ConfidenceWeightedCE()"
            )
        ignored = getattr(criterion, "ignore_index", 255)
        if feature_distance is not None and feature_distance.ignore_index != ignored:
            raise ValueError(
                f"feature_distance must have the criterion's ignore_index {ignored}, got "
                f"{feature_distance.ignore_index}"
            )
        check_choice("per", per, get_args(Per))
        check_choice("objective", objective, get_args(Objective))
        self.student, self.teacher, self.feature_distance = student, teacher, feature_distance
        self.detail_weight, self.threshold, self.per, self.objective = detail_weight, threshold, per, objective
        self.augment, self.masking, self.generator, self.group = augment, masking, generator, group
        self._drawn_together = group is None
        self.criterion = ConfidenceWeightedCE() if criterion is None else criterion
        parameters = _arguments_of_forward(student)
        _check_all_are_trained(student, objective)
        takes_box = {"box", "generator"} <= parameters
        self._segment = self._segment_at_box if takes_box else self._segment_whole
        asked = "return_features" in parameters and not takes_box
        self._segment_with_features = self._asked_for_features if asked else self._keeping_features

    def source(
        self, images: Tensor, labels: Tensor, *, box: CropBox | None = None, whole: Tensor | None = None
    ) -> tuple[Tensor, Parts]:
        """Supervised loss plus feature distance on labelled images: one graph, one backward.

        Args:
            images: (B, K, H, W) float, the batch, or with ``whole`` a part of it.
            labels: (B, H, W) uint8 or int64, theirs.
            box: of the detail crop, in image pixels; None: drawn, or none for a student of one scale.
            whole: (B', H, W) labels of the batch, of which this is a part: the loss is the part's share in that of the
                batch, so that losses and gradients of all parts, at one ``box``, add up to it. None: ``images`` are the
                batch.

        Returns:
            The loss, a scalar, and its ``parts``.

        Raises:
            ValueError: shapes or types do not fit, or ``whole`` is given with a criterion that does not divide by all
                pixels.
        """
        if self.feature_distance is None:
            return self.supervised(images, labels, box=box, whole=whole)
        self._prepare(images, labels, whole)
        output, features, context = self._segment_with_features(images, box)
        loss, parts = self._loss(output, labels, None)
        together: dict[str, Any] = {"group": self.group} if self.group is not None else {}
        together |= {"whole": whole} if whole is not None else {}
        distance = self.feature_distance(features, context, labels, **together)
        parts["feature_distance"] = distance.detach()
        return _share_of(loss, labels, whole) + distance, parts

    def supervised(
        self,
        images: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        *,
        box: CropBox | None = None,
        whole: Tensor | None = None,
    ) -> tuple[Tensor, Parts]:
        """The loss on images with labels, as they are: those of :meth:`mix`, or a part of them.

        Args:
            images: (B, K, H, W) float, the batch, or with ``whole`` a part of it.
            labels: (B, H, W) uint8 or int64, theirs.
            weight: (B, H, W) in [0, 1]; None: 1.
            box, whole: of :meth:`source`; None: as there.

        Returns:
            The loss, a scalar, and its ``parts``.

        Raises:
            ValueError: as :meth:`source`.
        """
        self._prepare(images, labels, whole)
        loss, parts = self._loss(self._segment(images, box), labels, weight)
        return _share_of(loss, labels, whole), parts

    @torch.no_grad()
    def pseudo_label(
        self, images: Tensor, *, valid: Tensor | None = None, micro_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The teacher's labels and their weight, without gradient.

        Args:
            images: (B, K, H, W) float, of the target.
            valid: (B, H, W) bool: False gets weight 0, as in margins and padding; None: True everywhere.
            micro_batch: images that the teacher is given at a time, 1 or more: less memory, and the confidence share of
                the whole batch. Another result only where the teacher normalises over a batch, or drops out. None:
                all.

        Returns:
            Labels (B, H, W) int64 and weight (B, H, W) in [0, 1], by :func:`hrda_lib.pseudo_labels`.

        Raises:
            ValueError: the teacher's answer or ``valid`` does not fit, or ``micro_batch`` is no positive int.
        """
        check_tensor("images", images)
        if micro_batch is not None:
            check_counts(micro_batch=micro_batch)
        parts = torch.split(images, micro_batch or max(len(images), 1))
        logits = torch.cat([self._teacher_logits(self.teacher(part)) for part in parts])
        size = (images.shape[-2], images.shape[-1])
        return pseudo_labels(logits, size=size, threshold=self.threshold, valid=valid, per=self.per, group=self.group)

    def mix(
        self,
        source_images: Tensor,
        source_labels: Tensor,
        target_images: Tensor,
        labels: Tensor,
        weight: Tensor,
        *,
        classes: Sequence[Sequence[int]] | None = None,
        mask: Tensor | None = None,
    ) -> MixedBatch:
        """Target images with some source classes pasted in (weight 1) over the pseudo labels, and augmented.

        Args:
            source_images: (B, K, H, W) float.
            source_labels: (B, H, W) uint8 or int64.
            target_images: (B, K, H, W), of the shape and dtype of ``source_images``.
            labels, weight: of :meth:`pseudo_label`.
            classes: the pasted ones, one list an image; None: half of those of each image, drawn.
            mask: (B, H, W) bool, True where the source is pasted, such as :func:`hrda_lib.sample_box_mask` draws; None:
                by ``classes``.

        Returns:
            :class:`hrda_lib.MixedBatch`, of B images.

        Raises:
            ValueError: shapes or types do not fit, ``augment`` changes the shape, or both ``classes`` and ``mask`` are
                given.
        """
        _check_batch("source_labels", source_labels, source_images)
        self._prepare(target_images, labels)
        expect("weight", weight, labels.shape, kind="float", like="labels")
        if mask is None:
            mask = sample_class_mask(source_labels, self.generator, classes, group=self.group)
        elif classes is not None:
            raise ValueError("mask says what is pasted, and so does classes: give one of them")
        return MixedBatch(
            self._augmented(class_mix(source_images, target_images, mask)),
            class_mix(source_labels.long(), labels.long(), mask),
            class_mix(torch.ones_like(weight), weight, mask),
        )

    def mixed(
        self,
        source_images: Tensor,
        source_labels: Tensor,
        target_images: Tensor,
        labels: Tensor,
        weight: Tensor,
        *,
        classes: Sequence[Sequence[int]] | None = None,
        mask: Tensor | None = None,
        box: CropBox | None = None,
    ) -> tuple[Tensor, Parts]:
        """Loss on what :meth:`mix` gives.

        Args:
            source_images, source_labels, target_images, labels, weight: of :meth:`mix`.
            classes, mask: of :meth:`mix`; None: drawn.
            box: of the detail crop, in image pixels; None: drawn, or none for a student of one scale.

        Returns:
            The loss, a scalar, and its ``parts``.

        Raises:
            ValueError: as :meth:`mix` and :meth:`supervised`.
        """
        batch = self.mix(source_images, source_labels, target_images, labels, weight, classes=classes, mask=mask)
        return self.supervised(*batch, box=box)

    def masked(
        self,
        target_images: Tensor,
        labels: Tensor,
        weight: Tensor,
        *,
        mask: Tensor | None = None,
        box: CropBox | None = None,
    ) -> tuple[Tensor, Parts]:
        """Loss on patch-masked target images, as they are (MIC, arXiv 2212.01322, section 3.2).

        Args:
            target_images: (B, K, H, W) float.
            labels, weight: of :meth:`pseudo_label` on images without mask and augmentation.
            mask: (B, 1, H, W), True or 1 = kept; None: drawn by ``masking``, else by :func:`hrda_lib.patch_mask`.
            box: of the detail crop, in image pixels; None: drawn, or none for a student of one scale.

        Returns:
            The loss, a scalar, and its ``parts``.

        Raises:
            ValueError: shapes or types do not fit, or the mask is outside [0, 1].
        """
        self._prepare(target_images, labels)
        batch, _, height, width = target_images.shape
        if mask is None:
            total, mine = own_part(batch, self.group)
            mask = (self.masking or patch_mask)((height, width), batch=total, generator=self.generator)[mine]
        expect("mask", mask, (batch, 1, height, width))
        if readable(mask) and mask.dtype != torch.bool and not ((mask >= 0) & (mask <= 1)).all():
            raise ValueError(f"mask must be in [0, 1], 1 or True = kept, got {mask.min():.4g} to {mask.max():.4g}")
        return self._loss(self._segment(target_images * mask.to(target_images), box), labels, weight)

    def losses(
        self,
        source_images: Tensor,
        source_labels: Tensor,
        target_images: Tensor,
        *,
        target_valid: Tensor | None = None,
        source_box: CropBox | None = None,
        mixed_box: CropBox | None = None,
        mixed_classes: Sequence[Sequence[int]] | None = None,
        masked_box: CropBox | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """All terms of one step, of one call of the teacher.

        Call backward on each before asking for the next. The masked term sees the target images augmented, then masked
        (MIC's ``separatetrgaug``).

        Args:
            source_images: (B, K, H, W) float.
            source_labels: (B, H, W) uint8 or int64.
            target_images: (B, K, H, W), of the shape, dtype and device of ``source_images``.
            target_valid: (B, H, W) bool, ``valid`` of :meth:`pseudo_label`; None: True everywhere.
            source_box, mixed_box, masked_box: of each term's detail crop, in image pixels; None: drawn, or none for a
                student of one scale.
            mixed_classes: ``classes`` of :meth:`mix`; None: drawn.

        Yields:
            ("source", loss), ("mixed", loss), and with ``masking`` ("masked", loss), scalars.

        Raises:
            ValueError: shapes or types do not fit, or ``masked_box`` is given without ``masking``.
        """
        _check_batch("source_labels", source_labels, source_images)
        check_tensor("target_images", target_images)
        source, target = ((tuple(x.shape), x.dtype, x.device) for x in (source_images, target_images))
        if source != target:
            raise ValueError(
                f"source_images and target_images must have one shape, dtype and device, got {source} and {target}"
            )
        if masked_box is not None and self.masking is None:
            raise ValueError("masked_box is for the masked term; pass SelfTraining(masking=patch_mask)")

        def terms() -> Iterator[tuple[str, Tensor]]:
            yield "source", self.source(source_images, source_labels, box=source_box)[0]
            said = self.pseudo_label(target_images, valid=target_valid)
            mixed = source_images, source_labels, target_images, *said
            yield "mixed", self.mixed(*mixed, classes=mixed_classes, box=mixed_box)[0]
            if self.masking is not None:
                yield "masked", self.masked(self._augmented(target_images), *said, box=masked_box)[0]

        return terms()

    def _prepare(self, images: Tensor, labels: Tensor, whole: Tensor | None = None) -> None:
        """Check a batch; with other processes: as many images on each, and one state of the generators.

        Raises:
            ValueError: something does not fit; what processes share is refused on every one.
        """
        _check_batch("labels", labels, images)
        if whole is not None:
            expect("whole", whole, ("B", *labels.shape[-2:]), kind=LABEL_TYPES, hint="the labels of the whole batch")
            if (divisor := getattr(self.criterion, "normalize", "all")) != "all":
                raise ValueError(
                    "whole needs a criterion that divides by all pixels, normalize='all', or losses of parts do not "
                    f"add up; got normalize={divisor!r}"
                )
        if self.group is not None and readable(images) and not alike(list(images.shape), self.group):
            raise ValueError(
                f"images must be of one shape on all processes of group, got {tuple(images.shape)} here and another "
                "elsewhere"
            )
        if self._drawn_together:
            return
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(one_seed(self.group))
        state = hashlib.sha256(self.generator.get_state().numpy().tobytes()).digest()
        if not alike([int.from_bytes(state[:7], "big")], self.group):
            raise ValueError(
                "generator must have one state on all processes of group, for they draw boxes and decisions together; "
                "seed it alike, without the rank: seed_step(seed, step, rank, generator=generator)"
            )
        self._drawn_together = True

    def _augmented(self, images: Tensor) -> Tensor:
        if self.augment is None:
            return images
        augmented = self.augment(images, self.generator, **_given(self.group, self.augment, images, self.generator))
        expect("augment's answer", augmented, images.shape, like="its images")
        return augmented

    def _segment_at_box(self, images: Tensor, box: CropBox | None) -> SegmenterOutput | Tensor:
        return _checked("student", self.student(images, box=box, generator=self.generator))

    def _segment_whole(self, images: Tensor, box: CropBox | None) -> SegmenterOutput | Tensor:
        _refuse_box(box)
        output = _checked("student", self.student(images))
        if self.generator is not None and isinstance(output, SegmenterOutput) and output.detail_box is not None:
            raise ValueError(
                f"student must take box and generator, got {type(unwrap(self.student)).__name__}, whose forward does "
                "not pass them to the segmenter inside, which draws boxes of its own; pass the segmenter itself"
            )
        return output

    def _keeping_features(self, images: Tensor, box: CropBox | None) -> tuple[SegmenterOutput, Any, Tensor]:
        output = self._segment(images, box)
        if not isinstance(output, SegmenterOutput):
            raise ValueError(
                "feature_distance needs a student that returns SegmenterOutput, or whose forward takes "
                "return_features and returns (logits, features); got plain logits"
            )
        return output, output.features, output.context

    def _asked_for_features(self, images: Tensor, box: CropBox | None) -> tuple[Tensor, Any, Tensor]:
        _refuse_box(box)
        answer = self.student(images, return_features=True)
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], Tensor):
            raise ValueError(
                f"student must return (logits, features) with return_features=True, got {type(answer).__name__}"
            )
        return *answer, images

    def _loss(self, output: SegmenterOutput | Tensor, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Parts]:
        if isinstance(output, Tensor):
            loss = self._criterion_of(output, labels, weight)
            return loss, {"logits": loss.detach()}
        losses = {}
        if self.objective != "detail":
            main = "fused" if self.objective == "fused" else "context"
            logits = output.logits if main == "fused" else output.context_logits
            losses[main] = self._criterion_of(logits, labels, weight)
        if self.objective != "context":
            box = output.detail_box or CropBox(0, 0, *labels.shape[-2:])
            detail_weight = None if weight is None else crop(weight, box)
            losses["detail"] = self._criterion_of(output.detail_logits, crop(labels, box), detail_weight)
        parts = {name: loss.detach() for name, loss in losses.items()}
        if len(losses) == 1:
            return next(iter(losses.values())), parts
        main_loss, detail_loss = losses.values()
        return (1 - self.detail_weight) * main_loss + self.detail_weight * detail_loss, parts

    def _criterion_of(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        loss = self.criterion(logits, labels.long(), weight, **_given(self.group, self.criterion, None, None, None))
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            got = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"criterion must return a scalar float tensor, got {got}; reduce it by .mean()")
        return loss

    def _teacher_logits(self, answer: Any) -> Tensor:
        output = _checked("teacher", answer)
        if isinstance(output, Tensor):
            return output
        if self.objective in ("fused", "context"):
            return output.logits if self.objective == "fused" else output.context_logits
        if output.detail_box is not None:
            raise ValueError(
                "teacher must predict the detail all over the image (windows), got one crop; call eval() on it"
            )
        if self.objective == "detail":
            return output.detail_logits
        return (resize(output.context_logits, output.detail_logits.shape[-2:]) + output.detail_logits) / 2


def _arguments_of_forward(student: nn.Module) -> set[str]:
    """Their names; those of the network inside where a wrapper takes anything."""
    network = unwrap(student)
    names = parameters_of_forward(network)
    if not names:
        raise ValueError(
            f"student's forward must name its arguments, got {type(network).__name__}, which takes any: whether it "
            "takes box and generator is hidden; pass a module whose forward names them, forward(self, images, "
            "box=None, generator=None), or Adapted(student, output=...) for one that takes neither"
        )
    for inner in layers(network) if isinstance(network, Adapted) else ():
        if {"box", "generator"} <= parameters_of_forward(inner):
            raise ValueError(
                "student must take box and generator, which Adapted does not pass to the "
                f"{type(inner).__name__} inside; adapt its encoder, decoder and attention"
            )
    return names


def _check_all_are_trained(student: nn.Module, objective: Objective) -> None:
    """DistributedDataParallel waits for the gradient of every parameter, for ever of one that has none."""
    attention = getattr(unwrap(student), "attention", None)
    untrained = isinstance(attention, nn.Module) and any(p.requires_grad for p in attention.parameters())
    around = [part for part in (student, *layers(student)) if isinstance(part, DistributedDataParallel)]
    waits = any(not part.find_unused_parameters for part in around)
    if waits and untrained and objective != "fused":
        raise ValueError(
            f"objective {objective!r} gives the attention head no gradient, for which DistributedDataParallel waits; "
            "give the student a number as attention, or student.attention.requires_grad_(False) before it is wrapped, "
            "or wrap it with find_unused_parameters=True"
        )


def _checked(name: str, output: Any) -> SegmenterOutput | Tensor:
    if isinstance(output, SegmenterOutput | Tensor):
        return output
    got = f"{type(output).__name__}{tensor_in(output)}"
    raise ValueError(f"{name} must return SegmenterOutput or a logits tensor, got {got}")


def _given(group: "Group", function: Any, *arguments: object) -> dict[str, "Group"]:
    """The argument ``group`` for a function that takes it, where there is one."""
    return {"group": group} if group is not None and takes(function, *arguments, group=group) else {}


def _share_of(loss: Tensor, labels: Tensor, whole: Tensor | None) -> Tensor:
    """What the mean over a part adds to the mean over the batch."""
    return loss if whole is None else loss * (len(labels) / len(whole))


def _refuse_box(box: CropBox | None) -> None:
    if box is not None:
        raise ValueError("box needs a student whose forward takes box and generator, such as MultiResSegmenter")


def _check_batch(name: str, labels: Tensor, images: Tensor) -> None:
    expect("images", images, "BKHW")
    check_finite("images", images)
    shape = (images.shape[0], *images.shape[-2:])
    last = isinstance(labels, Tensor) and labels.shape == images.shape[:3] and seem_last(images.shape)
    hint = last or "convert with .long()"
    expect(name, labels, shape, kind=LABEL_TYPES, like="its images", hint=hint)
