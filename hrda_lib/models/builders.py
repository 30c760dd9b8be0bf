"""The networks of the papers, assembled."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from hrda_lib._checks import check_counts, check_finite, expect, is_number
from hrda_lib._modules import in_eval_mode
from hrda_lib.attention_head import ScaleAttentionHead
from hrda_lib.models.daformer_head import ContextLayer, DAFormerHead
from hrda_lib.models.deeplab import DeepLabV2Head, ResNet101
from hrda_lib.models.mix_transformer import MixTransformer, MixTransformerSize
from hrda_lib.segmenter import MultiResSegmenter
from hrda_lib.sliding_window import Output, SlidingWindowInferer


class EncoderDecoder(nn.Module):
    """One scale: images (B, K, H, W) -> encoder -> decoder -> logits (B, C, h, w).

    With ``return_features`` it returns (logits, features), which is how :class:`hrda_lib.SelfTraining` gets the
    features for its feature distance.

    Args:
        encoder: a module, images -> features of any type.
        decoder: a module, those features -> logits.

    Raises:
        ValueError: one of them is no module.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module):
                raise ValueError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor, *, return_features: bool = False) -> Any:
        """Segment ``images`` at the decoder's resolution.

        Args:
            images: (B, K, H, W) float, of sides that the encoder takes.
            return_features: True: return the encoder's features too; False: logits alone.

        Returns:
            Logits (B, C, h, w), or (logits, features).
        """
        features = self.encoder(images)
        logits: Tensor = self.decoder(features)
        return (logits, features) if return_features else logits

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        *,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        output: Output = "logits",
        batch_size: int | None = 1,
        label_dtype: torch.dtype = torch.int64,
    ) -> Tensor:
        """Segment whole images of any size, in eval mode and without gradient, at pixel resolution; in any thread.

        Args:
            images: (B, K, H, W) float.
            window: window size; None: the whole image at once, as DAFormer is evaluated.
            stride: step between windows; None: half a window.
            output: "logits" (B, C, H, W), "probs" or "labels" (B, H, W).
            batch_size: windows x images at once: more memory, the same result; None: all.
            label_dtype: of labels: int64, or uint8 for up to 256 classes.

        Returns:
            (B, C, H, W) float, or labels (B, H, W).

        Raises:
            ValueError: images are not float (B, K, H, W), or a setting is out of its range.
        """
        expect("images", images, "BKHW", kind="float")
        check_finite("images", images)
        if window is None:
            window = (images.shape[-2], images.shape[-1])
        infer = SlidingWindowInferer(
            window, stride=stride, batch_size=batch_size, output=output, label_dtype=label_dtype
        )
        with in_eval_mode(self):
            return infer(images, self)


def hrda(
    encoder: str | MixTransformerSize = "mit_b5",
    num_classes: int = 19,
    *,
    embed_dims: int = 256,
    attention_embed_dims: int = 256,
    detail_size: int | tuple[int, int] = (512, 512),
    attention_classwise: bool = True,
    fixed_attention: float | None = None,
    drop_path: float = 0.1,
    dropout: float = 0.1,
    context_layer: ContextLayer = "sepaspp",
    in_channels: int = 3,
    checkpoint_stages: Collection[int] = (),
) -> MultiResSegmenter:
    """HRDA: a Mix Transformer, the DAFormer head and a light attention head at two scales.

    (HRDA, arXiv 2204.13132, section 3; 85,685,990 parameters for "mit_b5" and 19 classes.)

    Args:
        encoder: "mit_b0" to "mit_b5", or a :class:`MixTransformerSize` of your own.
        num_classes: C, channels of the logits.
        embed_dims: channels of the DAFormer head.
        attention_embed_dims: channels of the attention head.
        detail_size: detail crop and window in pixels; the paper's context crop is twice as large.
        attention_classwise: True: one attention map a class (the paper); False: one for all.
        fixed_attention: a number in [0, 1] instead of a learned attention: 0 context alone, 1 detail alone; None:
            learned.
        drop_path: largest probability of skipping a branch of the encoder, in [0, 1).
        dropout: probability of dropping a channel before each classifier, in [0, 1).
        context_layer: of :class:`DAFormerHead`.
        in_channels: channels of the images.
        checkpoint_stages: encoder stages that compute their activations anew in backward; with all four, (0, 1, 2, 3),
            the heads do so too. Empty: none.

    Returns:
        A segmenter at output stride 4, with random weights.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from hrda_lib.models import hrda
        >>> model = hrda("mit_b0", num_classes=5, embed_dims=16, attention_embed_dims=16, detail_size=(32, 32))
        >>> model.eval()(torch.rand(1, 3, 64, 64)).logits.shape
        torch.Size([1, 5, 16, 16])
    """
    if not isinstance(attention_classwise, bool):
        raise ValueError(f"attention_classwise must be True or False, got {attention_classwise!r}")
    if fixed_attention is not None and not (is_number(fixed_attention) and 0 <= fixed_attention <= 1):
        raise ValueError(f"fixed_attention must be a number in [0, 1] or None, got {fixed_attention!r}")
    check_counts(attention_embed_dims=attention_embed_dims)
    body = MixTransformer(encoder, in_channels=in_channels, drop_path=drop_path, checkpoint_stages=checkpoint_stages)
    decoder = _decoder(body, num_classes, embed_dims, context_layer, dropout)
    attention: nn.Module | float | None = fixed_attention
    if attention is None:
        maps = num_classes if attention_classwise else 1
        attention = _attention_head(body, maps, attention_embed_dims, dropout)
    return MultiResSegmenter(body, decoder, attention, detail_size=detail_size)


def _decoder(
    body: MixTransformer, num_classes: int, embed_dims: int, context_layer: ContextLayer, dropout: float
) -> DAFormerHead:
    return DAFormerHead(
        body.widths,
        num_classes,
        embed_dims=embed_dims,
        context_layer=context_layer,
        dropout=dropout,
        checkpoint=_keeps_nothing(body),
    )


def _keeps_nothing(body: MixTransformer) -> bool:
    return body.checkpoint_stages >= {0, 1, 2, 3}


def _attention_head(body: MixTransformer, maps: int, embed_dims: int, dropout: float) -> ScaleAttentionHead:
    keep_nothing = _keeps_nothing(body)
    head = ScaleAttentionHead(body.widths, maps, embed_dims=embed_dims, dropout=dropout, checkpoint=keep_nothing)
    # as in the released code, like the decoder
    nn.init.kaiming_normal_(cast(nn.Conv2d, head.fuse[0]).weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(cast(Tensor, head.classifier.bias))
    return head


def daformer(
    encoder: str | MixTransformerSize = "mit_b5",
    num_classes: int = 19,
    *,
    embed_dims: int = 256,
    drop_path: float = 0.1,
    dropout: float = 0.1,
    context_layer: ContextLayer = "sepaspp",
    in_channels: int = 3,
    checkpoint_stages: Collection[int] = (),
) -> EncoderDecoder:
    """DAFormer: a Mix Transformer and the DAFormer head at one scale, images -> logits at stride 4.

    (DAFormer, arXiv 2111.14887, section 3.2.)

    Args:
        encoder: "mit_b0" to "mit_b5", or a :class:`MixTransformerSize` of your own.
        num_classes: C, channels of the logits.
        embed_dims: channels of the head.
        drop_path: largest probability of skipping a branch of the encoder, in [0, 1).
        dropout: probability of dropping a channel before the classifier, in [0, 1).
        context_layer: of :class:`DAFormerHead`.
        in_channels: channels of the images.
        checkpoint_stages: of :func:`hrda`. Empty: none.

    Returns:
        A network with random weights.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from hrda_lib.models import daformer
        >>> model = daformer("mit_b0", num_classes=5, embed_dims=16)
        >>> model(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 5, 16, 16])
        >>> model.predict(torch.rand(1, 3, 50, 70), output="labels").shape
        torch.Size([1, 50, 70])
    """
    body = MixTransformer(encoder, in_channels=in_channels, drop_path=drop_path, checkpoint_stages=checkpoint_stages)
    return EncoderDecoder(body, _decoder(body, num_classes, embed_dims, context_layer, dropout))


def deeplab_v2(
    num_classes: int = 19, *, dilations: Sequence[int] = (6, 12), weights: str | None = None
) -> EncoderDecoder:
    """DeepLab-v2: ResNet-101 and summed dilated convolutions at one scale, images -> logits at stride 8.

    (DeepLab, arXiv 1606.00915; the network of DACS and of the papers' comparisons.)

    Args:
        num_classes: C, channels of the logits.
        dilations: of :class:`DeepLabV2Head`.
        weights: of :class:`ResNet101`; None: random weights.

    Returns:
        A network at output stride 8.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> import torch
        >>> from hrda_lib import MultiResSegmenter, ScaleAttentionHead
        >>> from hrda_lib.models import deeplab_v2
        >>> network = deeplab_v2(num_classes=5)  # one scale; and around it two:
        >>> attention = ScaleAttentionHead(network.encoder.channels, 5)
        >>> model = MultiResSegmenter(
        ...     network.encoder, network.decoder, attention, detail_size=(32, 32), output_stride=8
        ... )
        >>> model.eval()(torch.rand(1, 3, 64, 64)).logits.shape
        torch.Size([1, 5, 8, 8])
    """
    encoder = ResNet101(weights)
    return EncoderDecoder(encoder, DeepLabV2Head(*encoder.channels, num_classes, dilations=dilations))
