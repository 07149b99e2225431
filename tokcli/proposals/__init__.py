"""Proposal networks: priors over the tokens of an image. `Proposal` is the protocol, PROPOSALS names its members."""

from tokcli.proposals.ar import AutoregressiveProposal
from tokcli.proposals.conditions import CONDITIONS, ClassCondition, Condition, NoCondition, TextCondition
from tokcli.proposals.draw import Sampling
from tokcli.proposals.gpt2 import GPT2Proposal
from tokcli.proposals.nar import MaskedProposal
from tokcli.proposals.protocol import Proposal

PROPOSALS: dict[str, type[Proposal]] = {"ar": AutoregressiveProposal, "gpt2": GPT2Proposal, "nar": MaskedProposal}

__all__ = [
    "CONDITIONS",
    "PROPOSALS",
    "ClassCondition",
    "Condition",
    "NoCondition",
    "Proposal",
    "Sampling",
    "TextCondition",
]
