"""The networks of the papers and their published weights. Imported by examples, never by a primitive."""

from hrda_lib.models.builders import EncoderDecoder, daformer, deeplab_v2, hrda
from hrda_lib.models.daformer_head import DAFormerHead
from hrda_lib.models.deeplab import DeepLabV2Head, ResNet101
from hrda_lib.models.encoder_weights import load_encoder_weights
from hrda_lib.models.mix_transformer import MixTransformer, MixTransformerSize
from hrda_lib.models.reference_checkpoints import load_reference_checkpoint, to_reference_state_dict
from hrda_lib.models.timm_encoder import TimmEncoder
from hrda_lib.models.vit import DeconvHead, SimplePyramid, ViTFeatures

__all__ = [
    "DAFormerHead",
    "DeconvHead",
    "DeepLabV2Head",
    "EncoderDecoder",
    "MixTransformer",
    "MixTransformerSize",
    "ResNet101",
    "SimplePyramid",
    "TimmEncoder",
    "ViTFeatures",
    "daformer",
    "deeplab_v2",
    "hrda",
    "load_encoder_weights",
    "load_reference_checkpoint",
    "to_reference_state_dict",
]
