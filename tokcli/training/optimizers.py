"""The optimizers of a network: AdamW and, where the recipe asks for it, Muon for the matrices of its hidden layers.

Muon (Jordan 2024) moves a matrix along its momentum with all singular values made about 1. torch's own, with the rates of Liu et
al. 2025 (arXiv 2502.16982): an update has the root mean square of AdamW's. Momentum 0.95 (Nesterov), 5 Newton-Schulz steps in
bfloat16, or in float32 on devices that have no instructions for bfloat16.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokcli.device import emulated_bfloat16
from tokcli.errors import TokError
from tokcli.recipe.sections import Optim

log = logging.getLogger("tok")
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
    if why := emulated_bfloat16(device):
        log.info("%s: Muon multiplies in float32, since %s", where, why)
    muon = torch.optim.Muon(
        hidden,
        lr=optim.muon_lr,
        weight_decay=optim.weight_decay,
        ns_steps=NEWTON_SCHULZ,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


def update(optimizer: torch.optim.Optimizer) -> None:
    """A step of one of `build_optimizers`. torch's Muon multiplies in bfloat16; where that is emulated, its step is made here."""
    if is_muon(optimizer) and emulated_bfloat16(optimizer.param_groups[0]["params"][0].device):
        muon_step(optimizer)
    else:
        optimizer.step()


def is_muon(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is torch's Muon, which older releases lack."""
    return isinstance(optimizer, getattr(torch.optim, "Muon", ()))


def _as_it_is(t: Tensor, part: Tensor | None = None) -> Tensor:
    return t if part is None else part


@torch.no_grad()
def muon_step(
    muon: torch.optim.Optimizer,
    own: Callable[[Tensor], Tensor] = _as_it_is,
    whole: Callable[[Tensor, Tensor], Tensor] = _as_it_is,
    part: Callable[[Tensor, Tensor], Tensor] = _as_it_is,
) -> None:
    """A step of `torch.optim.Muon` with products of the type that the device is fast in, on matrices that may be in parts.

    Args:
        muon: keeps its momentum as torch does; a state made by either step goes on with the other.
        own: this rank's part of a tensor.
        whole: (parameter, this rank's part of its update) -> the whole update.
        part: (parameter, its whole update) -> this rank's part.
    """
    from torch.optim._muon import _adjust_lr

    emulated = emulated_bfloat16(muon.param_groups[0]["params"][0].device)
    for group in muon.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            if not muon.state[p]:
                muon.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
            grad, weight, momentum = own(p.grad), own(p), own(muon.state[p]["momentum_buffer"])
            momentum.lerp_(grad, 1 - group["momentum"])
            direction = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            # in the products' type before it is gathered: in bfloat16 that is half as much to send
            turned = _orthogonal(whole(p, direction if emulated else direction.bfloat16()), group)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(part(p, turned), alpha=-_adjust_lr(group["lr"], group["adjust_lr_fn"], p.shape))


def _orthogonal(update: Float[Tensor, "m n"], group: Mapping[str, Any]) -> Float[Tensor, "m n"]:
    """With all singular values made about 1, by the polynomial of Jordan 2024: by torch in bfloat16, here in float32."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    (a, b, c), steps, eps = group["ns_coefficients"], group["ns_steps"], group["eps"]
    if update.dtype == torch.bfloat16:
        return _zeropower_via_newtonschulz(update, (a, b, c), steps, eps)
    tall = update.shape[0] > update.shape[1]
    x = update.T if tall else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
