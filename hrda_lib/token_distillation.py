"""Keep the student's features close to the tokens of a frozen foundation model."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, smooth_l1_loss

from hrda_lib._checks import (
    at_least_float32,
    check_counts,
    check_finite,
    check_up_to,
    expect,
    laid_out,
    last_map,
    pair,
)
from hrda_lib._modules import copied
from hrda_lib.geometry import resize


class TokenDistillation(nn.Module):
    r"""Distance between the student's features, projected, and the tokens of a frozen foundation model.

    .. math::
        L = \lambda\, \frac{1}{N} \sum_{j} \left( 0.9\, (1 - c_j) + 0.1\, s_j \right), \qquad
        c_j = \cos(P(F)_j, T_j), \qquad s_j = \frac{1}{D} \sum_{d} \mathrm{smooth}_{L_1}(P(F)_{jd} - T_{jd})

    with T the last tokens of the reference on the image resized to ``size``, and P two 1x1 convolutions with layer norm
    and GELU between them, four times as wide as F, bilinearly resized to the grid of T (VFM-UDA++, arXiv 2503.10685,
    its released code). The counterpart of :class:`hrda_lib.FeatureDistance`, which holds on to classes of things; this
    takes no labels, so that it is for source and target images.

    Args:
        reference: images -> features, with ``.channels``, such as :class:`hrda_lib.models.ViTFeatures`; copied, frozen
            and always in eval mode. The last of several features are its tokens.
        in_channels: channels of the student's last features.
        weight: :math:`\lambda`, 0 or more.
        size: (height, width) or side of the images that the reference sees, whole patches; 406 is 29 patches of 14, as
            published, where other proportions are stretched to a square; None: the images as they are.

    Call it with the student's features on ``images`` (a tensor, or a sequence or dictionary whose last one is taken)
    and the images (B, K, H, W), without strong augmentation if it shall be as published. Its projection trains: give
    ``distillation.project.parameters()`` to the optimiser.

    Raises:
        ValueError: a setting is out of its range, the reference states no channels or cannot be copied, or features
            or images do not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hrda_lib import TokenDistillation
        >>> reference = nn.Conv2d(3, 8, 4, stride=4)
        >>> reference.channels = (8,)
        >>> distillation = TokenDistillation(reference, 16, size=32)
        >>> loss = distillation([torch.rand(1, 16, 4, 4)], torch.rand(1, 3, 64, 64))
        >>> 0 < loss.item() < 1
        True
    """

    def __init__(
        self,
        reference: nn.Module,
        in_channels: int,
        *,
        weight: float = 0.1,
        size: int | tuple[int, int] | None = 406,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels)
        check_up_to(math.inf, weight=weight)
        if not isinstance(reference, nn.Module):
            raise ValueError(f"reference must be a torch.nn.Module, got {type(reference).__name__}")
        channels = getattr(reference, "channels", None)
        if not isinstance(channels, (tuple, list)) or not channels:
            raise ValueError(
                f"reference must state its channels as a tuple .channels, got {type(reference).__name__} without; put "
                "hrda_lib.models.ViTFeatures around a ViT, or set reference.channels = (D,)"
            )
        check_counts(channels=channels[-1])
        self.in_channels, self.weight = in_channels, weight
        self.size = None if size is None else _whole_patches(pair("size", size), getattr(reference, "patch", 1))
        way_out = "pass one that copy.deepcopy can copy"
        self.reference = copied(reference, "reference", way_out)
        self.project = nn.Sequential(
            nn.Conv2d(in_channels, 4 * in_channels, 1),
            _ChannelNorm(4 * in_channels, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(4 * in_channels, channels[-1], 1),
        )
        self.reference.eval()

    def forward(self, features: Any, images: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            features: the student's: (B, in_channels, h, w), or a sequence or dictionary whose last is such a map.
            images: (B, K, H, W) float, normalised as the reference expects them.

        Raises:
            ValueError: shapes or types differ from the above, or (on the CPU) a number is not finite.
        """
        expect("images", images, "BKHW", kind="float")
        check_finite("images", images)
        feature = last_map("features", features)
        hint = laid_out(feature.shape, self.in_channels)[2:]
        expect("features", feature, (len(images), self.in_channels, "h", "w"), kind="float", hint=hint)
        check_finite("features", at_least_float32(feature.detach()).square())  # as the norm inside sees them
        with torch.no_grad():
            seen = images if self.size is None else resize(images, self.size)
            tokens = at_least_float32(last_map("reference's answer", self.reference(seen)))
        projected = at_least_float32(resize(self.project(feature), (tokens.shape[-2], tokens.shape[-1])))
        hint = "reference.channels must end in the channels of its last map"
        expect("reference's answer", tokens, projected.shape, hint=hint)
        apart = smooth_l1_loss(projected, tokens, reduction="none").mean(dim=1)
        loss: Tensor = (0.9 * (1 - cosine_similarity(projected, tokens)) + 0.1 * apart).mean()
        return self.weight * loss

    def train(self, mode: bool = True) -> "TokenDistillation":
        """As ``nn.Module.train``; the reference stays in eval mode.

        Args:
            mode: True for training.
        """
        super().train(mode)
        self.reference.eval()
        return self


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _whole_patches(size: tuple[int, int], patch: int) -> tuple[int, int]:
    if any(side % patch for side in size):
        raise ValueError(
            f"size must be whole patches of {patch}, as the reference has them, got {size}; take size={29 * patch}, "
            "29 patches as published"
        )
    return size
