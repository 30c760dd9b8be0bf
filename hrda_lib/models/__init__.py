"""The networks of the papers and their published weights. Imported by examples, never by a primitive."""

from hrda_lib.models.builders import EncoderDecoder, daformer, hrda
from hrda_lib.models.checkpoints import load_reference_checkpoint, to_reference_state_dict
from hrda_lib.models.daformer_head import DAFormerHead
from hrda_lib.models.mix_transformer import MixTransformer, MixTransformerSize

__all__ = [
    "DAFormerHead",
    "EncoderDecoder",
    "MixTransformer",
    "MixTransformerSize",
    "daformer",
    "hrda",
    "load_reference_checkpoint",
    "to_reference_state_dict",
]
