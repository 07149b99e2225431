"""What every quantizer is: `forward`, `codes`, and bookkeeping that is the same on every rank."""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from pydantic import Field
from torch import Tensor, nn

from tokcli import distributed
from tokcli.errors import TokError

MOST_CODES = 1 << 32  # token shards hold uint32
CodebookSize = Annotated[int, Field(ge=1, le=MOST_CODES)]
NEVER = 1 << 30  # idle steps of a code that was not used yet


class Quantized(NamedTuple):
    """What becomes of `z_e`: codes in float32, their indices in [0, k), and weighted loss terms by name."""

    z_q: Float[Tensor, "b n d"]
    indices: Int64[Tensor, "b n"]
    losses: dict[str, Tensor]


class Quantizer(nn.Module):
    """The base of all quantizers. A new one implements `quantize` and `codes`; the rest has defaults.

    `forward` never changes a code. What a codebook learns from the batches (means, usage, candidates for
    revival) is noted down by train-mode forwards and applied by one `after_step` per optimizer step, summed
    over ranks: micro-batches, a second forward for a discriminator and any number of ranks then give the
    codebook of one process that saw the joint batch.

    Args:
        codebook_size: number of codes k; indices are in [0, k).
        code_dim: width d of `z_e` and of a code.

    Raises:
        TokError: there are more codes than token shards can number.
    """

    eager = True  # left out of torch.compile: chunked search and bookkeeping are faster so, and exact
    replicated = (
        True  # whole on every rank, also where other parts are sharded: codes change outside of the forward pass
    )
    init_after = 0  # training steps before `initialise` is wanted
    starts_once = True  # whether codes that were initialised are never initialised again
    discrete = True  # False only for the yardstick without codes
    usage_window = 100  # steps that `health` looks back
    # buffers that an exported tokenizer leaves out
    training_only: tuple[str, ...] = ("idle_steps", "recent_counts")

    initialised: Tensor
    idle_steps: Tensor
    recent_counts: Tensor

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        if codebook_size > MOST_CODES:
            raise TokError(
                "quantizer", f"more than {MOST_CODES:,} codes", got=f"{codebook_size:,}", next="Set a smaller codebook"
            )
        self.codebook_size, self.code_dim = codebook_size, code_dim
        # saved, so that a resumed run does not initialise again and throw its codebook away
        self.register_buffer("initialised", torch.tensor(True))
        # steps since a code was last used; uses of a code, fading over usage_window steps
        self.register_buffer("idle_steps", torch.full((codebook_size,), NEVER))
        self.register_buffer("recent_counts", torch.zeros(codebook_size))
        # Not buffers: they differ between ranks until after_step, and DDP would overwrite them with rank 0's.
        self._pending: dict[str, Tensor] = {}

    def quantize(self, z: Float[Tensor, "b n d"]) -> Quantized:
        """The quantizer's own equation, in float32 with autocast off."""
        raise NotImplementedError

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """The code of each index, equal to the `z_q` that `forward` gives with it."""
        raise NotImplementedError

    def forward(self, z_e: Float[Tensor, "b n d"], counted: Bool[Tensor, "b n"] | None = None) -> Quantized:
        """Quantize features of any float type; in train mode also note what `after_step` will apply.

        Args:
            z_e: features.
            counted: which of them are counted and what a codebook of running means learns from; None: all.
        """
        with torch.autocast(z_e.device.type, enabled=False):
            quantized = self.quantize(z_e.float())
            if self.training:
                z, z_q = z_e.detach().float().flatten(0, 1), quantized.z_q.detach().flatten(0, 1)
                used = quantized.indices.flatten()
                if counted is not None:
                    kept = counted.flatten()
                    z, z_q, used = z[kept], z_q[kept], used[kept]
                counts = used.new_zeros(self.codebook_size)
                self.note("counts", counts.scatter_add_(0, used, torch.ones_like(used)))
                self.observe(z, z_q, used)
        return quantized

    def observe(self, z: Float[Tensor, "m d"], z_q: Float[Tensor, "m d"], indices: Int64[Tensor, " m"]) -> None:
        """Note what `after_step` needs beside the counts, of some of a train-mode forward's features and their codes."""

    def initialise(self, z_e: Float[Tensor, "b n d"], counted: Bool[Tensor, "b n"] | None = None) -> None:
        """Start the codebook from the first batch's features, on all ranks, while not `initialised`."""

    def after_step(self, step: int) -> None:
        """Apply what train-mode forwards noted since the last call; all ranks call it after each update."""
        counts = self.collect("counts", (self.codebook_size,), torch.int64)
        self._pending.clear()
        self.count_uses(counts)

    def note(self, name: str, value: Tensor) -> None:
        """Add to what this rank saw since the last step."""
        self._pending[name] = self._pending[name] + value if name in self._pending else value

    def collect(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """What all ranks noted under a name; zeros where nobody saw a batch."""
        noted = self._pending.get(name)
        if noted is None:
            noted = torch.zeros(shape, dtype=dtype, device=self.initialised.device)
        return distributed.all_reduce_sum(noted)

    def count_uses(self, counts: Int64[Tensor, " k"]) -> None:
        """Update the usage records by one step's uses per code, summed over ranks."""
        self.idle_steps.copy_(torch.where(counts > 0, 0, self.idle_steps + 1))
        self.recent_counts.lerp_(counts.float(), 1 / self.usage_window)

    def health(self) -> dict[str, float]:
        """How the codebook was used lately, over all ranks.

        Returns:
            codebook_usage: share of codes used at least once in the last `usage_window` steps, in [0, 1].
            codebook_usage_ever: the same since the start.
            codebook_perplexity: exp(entropy in nats) of the code frequencies, fading over that window.
            top_code_share: the most frequent code's share of these tokens, in [0, 1].
            dead_codes: number of codes not used in that window.
        """
        used = int((self.idle_steps < self.usage_window).sum())
        total = self.recent_counts.sum()
        shares = self.recent_counts / total.clamp_min(1e-12)
        entropy = -torch.special.xlogy(shares, shares).sum()
        return {
            "codebook_usage": used / self.codebook_size,
            "codebook_usage_ever": int((self.idle_steps < NEVER).sum()) / self.codebook_size,
            "codebook_perplexity": float(entropy.exp()),
            "top_code_share": float(shares.max()),
            "dead_codes": float(self.codebook_size - used),
        }

    def inference_names(self) -> Iterator[str]:
        """Names of the state that inference needs: all but the training-only buffers."""
        return (name for name in self.state_dict() if name not in self.training_only)

    def restart_training_state(self) -> None:
        """Make the training-only buffers fit a codebook that was just loaded without them."""


def straight_through(z: Float[Tensor, "*shape"], q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The value of `q`, bit for bit, with the gradient of `z` (van den Oord et al. 2017, section 3.2)."""
    return q.detach() + (z - z.detach())


def mean_square(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean squared difference, 0 for empty tensors (a rank without rows)."""
    return (a - b).square().sum() / max(a.numel(), 1)
