"""GPT-2 (Radford et al. 2019) over codes, optionally from its language weights, as in the official code of arXiv 2411.04406.

That its tables are of this network is assumed. Codes and classes get fresh embeddings, which are the head too; that code keeps the
first rows of the table of words instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from tokcli.artifact.weights import load_strict, load_tensors
from tokcli.errors import TokError
from tokcli.pretrained.published_weights import Source, find_weights
from tokcli.proposals.ar import AutoregressiveProposal

Language = Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
PARTS = {  # Hugging Face's names of a block's parts, and whether their matrices are stored input x output
    "ln_1": ("attention_norm", False),
    "attn.c_attn": ("attention.qkv", True),
    "attn.c_proj": ("attention.out", True),
    "ln_2": ("mlp_norm", False),
    "mlp.c_fc": ("mlp.up", True),
    "mlp.c_proj": ("mlp.out", True),
}


def language_file(language: str, given: Path | None) -> Path:
    """The file of a language model's weights: the one given, else that of cache or hub.

    Raises:
        TokError: found nowhere.
    """
    source = Source(hub=(f"openai-community/{language}", "model.safetensors"))
    return given or find_weights(language, source, where=f"language model {language}", flag="--language-weights")


class GPT2Proposal(AutoregressiveProposal):
    """p(token | condition, tokens before it): LayerNorm, biases, GELU, learned positions, tied head.

    Args:
        language: weights to start from: `gpt2`, `gpt2-medium`, `gpt2-large` or `gpt2-xl`, found on the hub or given by
            --language-weights; the sizes must be theirs. null: fresh weights.
    """

    gated = False
    biased = True
    fixed_keys: ClassVar[Mapping[str, Any]] = {
        "position": "learned",
        "head": "tied",
        "qk_norm": False,
        "embedding_dropout": None,
        "scale_residual": True,
        "random_order": None,
    }

    def __init__(self, *supplied: Any, language: Language | None = None, **keys: Any) -> None:
        super().__init__(*supplied, **self.fixed_keys, **keys)
        self.language = language

    def load_published(self, given: Path | None) -> None:
        """Start from the language model that the recipe names.

        Raises:
            TokError: its weights are found nowhere, or do not fit.
        """
        if self.language is not None:
            path = language_file(self.language, given)
            self.load_language(load_tensors(path), f"language model {self.language}: {path}")

    def load_language(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take blocks, last norm and positions from a language model's weights, in Hugging Face's names.

        Raises:
            TokError: other names or shapes, or fewer positions than this network has.
        """
        state = {name.removeprefix("transformer."): t for name, t in state.items()}
        positions, needed = state.get("wpe.weight"), self.prefix + self.tokens
        if positions is None or len(positions) < needed:
            got = "none" if positions is None else str(len(positions))
            raise TokError(
                where,
                f"holds no {needed} position embeddings of a GPT-2",
                got=got,
                next="Give the weights of a GPT-2, or train on fewer tokens and a shorter condition",
            )
        found = {"position": positions[:needed]}
        for name, t in state.items():
            pieces = name.split(".")
            if pieces[0] == "ln_f":
                found[f"transformer.norm.{pieces[1]}"] = t
            elif pieces[0] == "h":
                part, last = ".".join(pieces[2:-1]), pieces[-1]
                if part in PARTS:  # others are masks that old files keep
                    ours, stored = PARTS[part]
                    found[f"transformer.blocks.{pieces[1]}.{ours}.{last}"] = t.T if stored and t.ndim == 2 else t
        fresh = {k: t for k, t in self.state_dict().items() if k.startswith(("embedding.", "text."))}
        load_strict(self, {**fresh, **found}, where)
