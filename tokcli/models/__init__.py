"""Networks that `tok` trains: encoders, feature and pixel decoders, tokenizers, discriminators."""

from tokcli.models.decoders import DECODERS, ConvDecoder, PixelDecoder, ViTDecoder
from tokcli.models.discriminators import DISCRIMINATORS, Discriminator, PatchDiscriminator
from tokcli.models.encoders import ENCODERS, ConvEncoder, Encoder, PretrainedEncoder, TeacherEncoder, ViTEncoder
from tokcli.models.maskgit import MaskGITDecoder, MaskGITEncoder
from tokcli.models.tokenizer import CodesAsFeatures, FeatureDecoder, LinearFeatures, Tokenizer

__all__ = [
    "DECODERS",
    "DISCRIMINATORS",
    "ENCODERS",
    "CodesAsFeatures",
    "ConvDecoder",
    "ConvEncoder",
    "Discriminator",
    "Encoder",
    "FeatureDecoder",
    "LinearFeatures",
    "MaskGITDecoder",
    "MaskGITEncoder",
    "PatchDiscriminator",
    "PixelDecoder",
    "PretrainedEncoder",
    "TeacherEncoder",
    "Tokenizer",
    "ViTDecoder",
    "ViTEncoder",
]
