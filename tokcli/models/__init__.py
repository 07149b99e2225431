"""Networks that `tok` trains: encoders, feature decoders, pixel decoders, and the tokenizer made of them."""

from tokcli.models.decoders import DECODERS, ConvDecoder, PixelDecoder, ViTDecoder
from tokcli.models.encoders import ENCODERS, Encoder, ViTEncoder
from tokcli.models.feature_decoder import FeatureDecoder
from tokcli.models.tokenizer import Tokenizer

__all__ = [
    "DECODERS",
    "ENCODERS",
    "ConvDecoder",
    "Encoder",
    "FeatureDecoder",
    "PixelDecoder",
    "Tokenizer",
    "ViTDecoder",
    "ViTEncoder",
]
