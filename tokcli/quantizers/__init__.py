"""Quantizers: features (b, n, d) to indices and codes. A new one is a subclass in its own file and a line here."""

from tokcli.quantizers.fsq import FSQ
from tokcli.quantizers.ibq import IBQ
from tokcli.quantizers.lfq import LFQ
from tokcli.quantizers.none import NoQuantizer
from tokcli.quantizers.quantizer import Quantized, Quantizer, mean_square, straight_through
from tokcli.quantizers.simvq import SimVQ
from tokcli.quantizers.vq import VQ

__all__ = ["QUANTIZERS", "Quantized", "Quantizer", "mean_square", "straight_through"]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "none": NoQuantizer,
    "vq": VQ,
    "fsq": FSQ,
    "lfq": LFQ,
    "simvq": SimVQ,
    "ibq": IBQ,
}
