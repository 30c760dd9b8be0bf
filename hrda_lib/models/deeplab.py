"""DeepLab-v2 over ResNet-101, the network of the papers that came before."""

from collections.abc import Sequence

from torch import Tensor, nn

from hrda_lib._checks import as_counts, check_counts, expect, feature_channels, laid_out, levels_in

FILE = "to load a file: encoder.load_state_dict(torch.load(file), strict=False)"


class ResNet101(nn.Module):
    """torchvision's ResNet-101 with dilation in place of the last two strides: images -> [features at stride 8].

    Entries have torchvision's names, without ``fc``. The released code uses a variant whose stem is three 3x3
    convolutions (ResNet-v1c); torchvision has the plain stem, one 7x7 convolution.

    A file that torchvision published is loaded by ``encoder.load_state_dict(torch.load(file), strict=False)``,
    not strict because the file holds ``fc`` as well. ``.channels`` are the channels of the features, for a decoder.

    Args:
        weights: a name such as "IMAGENET1K_V1", which torchvision downloads; None: random weights.

    Raises:
        ValueError: there are no such weights, or they cannot be downloaded; images are not float (B, 3, H, W).
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        from torchvision.models import ResNet101_Weights, resnet101

        names = list(ResNet101_Weights.__members__)
        if weights is not None and weights not in names:
            raise ValueError(f"weights must be None or one of {', '.join(names)}, got {weights!r}; {FILE}")
        try:
            network = resnet101(weights=weights, replace_stride_with_dilation=[False, True, True])
        except OSError as error:
            raise ValueError(f"weights {weights!r} cannot be downloaded ({error}); {FILE}") from None
        self.channels = (network.fc.in_features,)
        for name, child in network.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features at stride 8.

        Args:
            images: (B, 3, H, W) float.

        Returns:
            A list of one tensor, (B, 2048, ceil(H/8), ceil(W/8)).

        Raises:
            ValueError: images have another shape or type.
        """
        expect("images", images, ("B", 3, "H", "W"), kind="float")
        x = images
        for child in self.children():
            x = child(x)
        return [x]


class DeepLabV2Head(nn.Module):
    r"""The sum of parallel dilated 3x3 convolutions on the last feature, without norm or activation.

    .. math::
        \hat y = \sum_r W_r *_r f

    (DeepLab, arXiv 1606.00915, section 3.2.) Dilations are those of the released code of DAFormer and HRDA, 6 and 12;
    the DeepLab paper has 6, 12, 18 and 24.

    Args:
        in_channels: channels of the feature.
        num_classes: channels of the logits.
        dilations: r of each branch.

    Raises:
        ValueError: a setting is out of its range, or the feature has other channels.

    Example:
        >>> import torch
        >>> from hrda_lib.models import DeepLabV2Head
        >>> DeepLabV2Head(64, num_classes=5)([torch.rand(2, 64, 8, 16)]).shape
        torch.Size([2, 5, 8, 16])
    """

    def __init__(self, in_channels: int, num_classes: int, *, dilations: Sequence[int] = (6, 12)) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, num_classes=num_classes)
        dilations = as_counts("dilations", dilations)
        self.in_channels = in_channels
        branches = [nn.Conv2d(in_channels, num_classes, 3, padding=r, dilation=r) for r in dilations]
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.01)
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits at the last feature's resolution.

        Args:
            features: a list or tuple whose last is (B, in_channels, h, w).

        Returns:
            (B, num_classes, h, w) raw.

        Raises:
            ValueError: the last has other channels.
        """
        got = feature_channels(features)
        if not isinstance(got, list) or got[-1:] != [self.in_channels]:
            last = features[-1] if isinstance(got, list) and features else None
            hint = laid_out(last.shape, self.in_channels) if isinstance(last, Tensor) else ""
            hint = levels_in(features, [self.in_channels]) or hint
            raise ValueError(
                f"features must be a list whose last is (B, {self.in_channels}, h, w), got channels {got}{hint}"
            )
        logits: Tensor = sum(branch(features[-1]) for branch in self.branches)
        return logits
