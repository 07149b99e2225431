"""VQ-KD: a student encoder and a codebook learn to reconstruct a teacher's features.

BEiT v2 (arXiv 2208.06366, section 2.1), as used by "Image Understanding Makes for A Good Tokenizer for Image Generation"
(arXiv 2411.04406): student from scratch, l2-normalised codes learnt by EMA, one block of feature decoder, cosine loss.
"""

from typing import ClassVar, Literal

from tokcli.build import FEATURE_DECODERS
from tokcli.data.transforms import TRANSFORMS
from tokcli.methods.method import Families, FeatureData
from tokcli.methods.reconstruction import Reconstructing, ReconstructingRecipe
from tokcli.models import ENCODERS
from tokcli.pretrained.teacher import TEACHERS
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.sections import Component


class DistillationRecipe(ReconstructingRecipe):
    """Recipe of VQ-KD.

    Args:
        learn_from_blank: whether the codebook also learns from patches of one flat colour; if not, they take codes that it
            learned from the others.
    """

    method: Literal["vqkd"]
    data: FeatureData
    teacher: Component
    encoder: Component
    quantizer: Component
    decoder: Component
    learn_from_blank: bool = True


class Distillation(Reconstructing):
    """Student, codebook and feature decoder under a frozen teacher; see `Reconstructing`."""

    recipe_model = DistillationRecipe
    families: ClassVar[Families] = {
        "data.transform": TRANSFORMS,
        "teacher": TEACHERS,
        "encoder": ENCODERS,
        "quantizer": QUANTIZERS,
        "decoder": FEATURE_DECODERS,
    }
