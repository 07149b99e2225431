"""The optimizers of a network: AdamW and, where the recipe asks for it, Muon for the matrices of its hidden layers.

Muon (Jordan 2024) moves a matrix along its momentum with all singular values made about 1. torch's own, with the rates of Liu et
al. 2025 (arXiv 2502.16982): an update has the root mean square of AdamW's. Momentum 0.95 (Nesterov), 5 Newton-Schulz steps in
bfloat16.
"""

from typing import Any

import torch
from torch import nn

from tokcli.device import tell_if_emulated
from tokcli.errors import TokError
from tokcli.recipe.sections import Optim

NEWTON_SCHULZ = 5  # steps of an update of torch's Muon


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trainable 2-D weights of hidden layers, each once.

    A network declares its hidden layers: modules with a true attribute `hidden_layer`, such as a transformer's blocks.
    """
    found: dict[int, nn.Parameter] = {}
    for part in module.modules():
        if getattr(part, "hidden_layer", False):
            found |= {id(p): p for p in part.parameters() if p.requires_grad and p.ndim == 2}
    return list(found.values())


def muon_matrices(module: nn.Module, optim: Optim, where: str = "optim") -> list[nn.Parameter]:
    """The parameters that Muon trains; none with `name: adamw`.

    Args:
        where: the recipe's section, for messages.

    Raises:
        TokError: the recipe asks for Muon, and the network has no hidden matrices.
    """
    if optim.name == "adamw":
        return []
    found = hidden_matrices(module)
    if not found:
        raise TokError(
            f"{where}.name", "the network has no matrices of hidden layers", got="muon", next=f"Set {where}.name=adamw"
        )
    return found


def parameter_groups(module: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """What AdamW trains: matrices and kernels decay; norms, biases, position embeddings, tokens and codebooks only where all do.

    A module with an attribute `lr_scale` has groups of its own, whose learning rate is that many times the others'.
    """
    apart = {id(p) for p in (hidden_matrices(module) if optim.name == "muon" else [])}
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad and id(p) not in apart]
    undecayed = {
        n for n, p in trainable if p.ndim < 2 or any(word in n for word in ("position", "class_token", "codebook"))
    }
    if optim.decay == "all":
        undecayed = set()
    scales = {
        id(p): scale
        for part in module.modules()
        if (scale := getattr(part, "lr_scale", None))
        for p in part.parameters()
    }
    groups = []
    for scale in sorted({1.0, *(scales.get(id(p), 1.0) for _, p in trainable)}, reverse=True):
        own = [(name, p) for name, p in trainable if scales.get(id(p), 1.0) == scale]
        for names, decay in ((False, optim.weight_decay), (True, 0.0)):
            params = [p for name, p in own if (name in undecayed) == names]
            groups.append({"params": params, "weight_decay": decay} | ({} if scale == 1.0 else {"lr_scale": scale}))
    return groups


def build_optimizers(
    module: nn.Module, optim: Optim, device: torch.device, where: str = "optim"
) -> list[torch.optim.Optimizer]:
    """AdamW for all trainable parameters; or for all but the hidden matrices, and Muon for these.

    Args:
        device: where the module is.
        where: the recipe's section, for messages.

    Raises:
        TokError: see `muon_matrices`.
    """
    hidden = muon_matrices(module, optim, where)
    adamw = torch.optim.AdamW(
        parameter_groups(module, optim),
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=device.type in ("cpu", "cuda"),
    )
    if optim.muon_lr is None:
        return [adamw]
    tell_if_emulated(f"{where}.name", device, "adamw")
    muon = torch.optim.Muon(
        hidden,
        lr=optim.muon_lr,
        weight_decay=optim.weight_decay,
        ns_steps=NEWTON_SCHULZ,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]
