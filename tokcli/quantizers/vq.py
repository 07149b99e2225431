"""Vector quantization: each feature becomes its nearest code.

Cosine codes learnt by EMA are VQ-KD's (Peng et al. 2022, BEiT v2, arXiv 2208.06366, section 2.1; "Image
Understanding Makes for A Good Tokenizer", arXiv 2411.04406). Euclidean codes learnt by gradient are VQ-VAE's
and VQGAN's (van den Oord et al. 2017, equation 3; Esser et al. 2021), by EMA the same paper's appendix A.1.
Differs from them: batch statistics are applied once per optimizer step, and unused codes may be revived.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from tokcli import distributed
from tokcli.data.randomness import generator
from tokcli.errors import TokError
from tokcli.quantizers import anchors
from tokcli.quantizers.kmeans import Farthest, farthest, gather, join, kmeans, relocate
from tokcli.quantizers.quantizer import CodebookSize, Quantized, Quantizer, mean_square, straight_through
from tokcli.quantizers.search import nearest
from tokcli.recipe.sections import Share

SMOOTHING = 1e-5  # Laplace smoothing of cluster sizes, as in VQ-VAE's published code
ROWS_PER_CODE = 256  # more rows than this per code do not change k-means
DECAY = 0.99  # of the EMA of codes
RESCUE_BELOW = {"revive": 0.0, "kmeans": 0.5}


def _defaults(learning: str, rescue: str | None) -> dict[str, Any]:
    """What null stands for in the keys that others decide; null where they do not apply."""
    return {
        "decay": DECAY if learning == "ema" else None,
        "rescue_after": Quantizer.usage_window if rescue in RESCUE_BELOW else None,
        "rescue_below": RESCUE_BELOW.get(str(rescue)),
    }


class VQ(Quantizer):
    """The nearest of `codebook_size` learned codes.

    Args:
        codebook_size: number of codes k.
        code_dim: width d of a code.
        metric: "cosine" compares directions: features are l2-normalised and codes have unit length.
            "euclidean" compares both as they are.
        learning: "ema" moves each code towards the mean of its features; "gradient" makes the codebook a
            parameter, pulled by the loss term `codebook` (MSE to the features, weight 1).
        decay: share of a code kept at each EMA step, in [0, 1); only with "ema", where null is 0.99.
        init: how codes are initialised: by "kmeans" on the first batch, or "uniform" in +-1/k (cosine: then normalised).
        kmeans_iterations: rounds of that k-means.
        init_after: training steps before the codes are initialised, in which features are not quantized. A fresh encoder maps
            all patches into one narrow cone, and codes found there need many thousands of steps to leave it.
        commitment: weight of the loss term `commitment`, the MSE of features to their (constant) codes.
        rescue: what happens to unused codes; None: nothing. "revive" moves each of them to the farthest feature of a code that
            many features share. "anchors" pulls codes towards the nearest feature of the batch, more strongly the less they are
            used (CVQ-VAE, Zheng and Vedaldi, arXiv 2307.15139, section 3.2); only with "gradient". "kmeans" initialises the
            whole codebook again.
        rescue_after: for "revive", steps without use after which a code is revived; for "kmeans", steps between two
            initialisations; null: 100. The other ways do not read it.
        rescue_below: for "revive", codes used less than this share of the average (over the last `usage_window` steps) count as
            unused too, so that rare codes move to where many features share one; for "kmeans", the share of codes in use
            below which the codebook is initialised again. null: 0 for "revive", 0.5 for "kmeans".
        gradient: how the gradient of `z_q` reaches `z_e`: "straight-through", or "rotation", by the rotation and scaling that
            take `z_e` to `z_q` (Fifty et al., arXiv 2410.06424, section 4).
        seed: seed of the initial codes.

    Raises:
        TokError: a key stands where it has no effect.
    """

    training_only = (*Quantizer.training_only, "steps", "age_steps", "cluster_size", "cluster_sum", "frequency")

    codebook: Tensor
    steps: Tensor
    age_steps: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor
    frequency: Tensor

    def __init__(
        self,
        *,
        codebook_size: CodebookSize,
        code_dim: PositiveInt,
        metric: Literal["cosine", "euclidean"] = "cosine",
        learning: Literal["ema", "gradient"] = "ema",
        decay: Share | None = None,
        init: Literal["kmeans", "uniform"] = "kmeans",
        kmeans_iterations: PositiveInt = 10,
        init_after: NonNegativeInt = 0,
        commitment: NonNegativeFloat = 1.0,
        rescue: Literal["revive", "anchors", "kmeans"] | None = None,
        rescue_after: PositiveInt | None = None,
        rescue_below: Share | None = None,
        gradient: Literal["straight-through", "rotation"] = "straight-through",
        seed: int = 0,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        defaults = _defaults(learning, rescue)
        if decay is not None and learning == "gradient":
            raise TokError(
                "quantizer.decay",
                "goes with learning: ema",
                got=f"{decay} and {learning}",
                next="Leave it out, or set quantizer.learning to ema",
            )
        if rescue == "anchors" and learning == "ema":
            raise TokError(
                "quantizer.rescue",
                "anchors go with learning: gradient",
                next="Set quantizer.learning to gradient, or another rescue",
            )
        for key, value in {"rescue_after": rescue_after, "rescue_below": rescue_below}.items():
            if value is not None and rescue not in ("revive", "kmeans"):
                raise TokError(
                    f"quantizer.{key}",
                    "goes with rescue: revive or kmeans",
                    got=f"{value} and {rescue}",
                    next="Leave it out, or set quantizer.rescue to revive",
                )
        self.rescue, self.starts_once = rescue, rescue != "kmeans"
        self._warmed = False  # known to be initialised for good
        self.rescue_after = defaults["rescue_after"] if rescue_after is None else rescue_after
        self.rescue_below = defaults["rescue_below"] if rescue_below is None else rescue_below
        self.init_after = init_after if init == "kmeans" else 0
        self.metric, self.learning, self.commitment, self.gradient = metric, learning, commitment, gradient
        self.decay = defaults["decay"] if decay is None else decay
        self.kmeans_iterations, self.seed = kmeans_iterations, seed
        start = torch.rand(codebook_size, code_dim, generator=generator(seed, "codebook"), device="cpu")
        start = self.normalise((2 * start - 1) / codebook_size).to(self.initialised.device)
        if learning == "gradient":
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
        self.initialised.fill_(init != "kmeans")
        self.register_buffer("steps", torch.tensor(0))  # since the start
        # of each code: steps since the start, the last k-means or its last revival
        self.register_buffer("age_steps", torch.zeros(codebook_size, dtype=torch.int64))
        self._anchors: anchors.Anchors | None = None  # nearest features of little used codes, noted since the last step
        if rescue == "anchors":
            self.register_buffer("frequency", torch.zeros(codebook_size))
        self._far: Farthest | None = None  # candidates for revival, noted since the last step
        if learning == "ema" and metric == "euclidean":  # cosine codes are their own running mean
            self.register_buffer("cluster_size", torch.ones(codebook_size))
            self.register_buffer("cluster_sum", start.clone())

    @staticmethod
    def settled(name: str, keys: dict[str, Any]) -> dict[str, Any]:
        """With the defaults of `decay`, `rescue_after` and `rescue_below`, which depend on other keys."""
        values = _defaults(keys["learning"], keys["rescue"])
        return keys | {key: value for key, value in values.items() if keys[key] is None}

    def normalise(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        """Unit length under "cosine", unchanged under "euclidean"."""
        return F.normalize(x, dim=-1) if self.metric == "cosine" else x

    @property
    def warming(self) -> bool:
        """Whether features still pass unquantized: k-means is to come, `init_after` steps from the start."""
        if self.init_after == 0 or self._warmed:
            return False
        self._warmed = self.starts_once and bool(
            self.initialised
        )  # the answer is on the device: asked no more than needed
        return not self.initialised and int(self.steps) < self.init_after

    def table(self) -> Float[Tensor, "k d"]:
        """All codes as they are compared and returned."""
        return self.normalise(self.codebook) if self.learning == "gradient" else self.codebook

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """The code of each index in [0, k)."""
        return F.embedding(indices.long(), self.table().float())

    def quantize(self, z: Float[Tensor, "b n d"]) -> Quantized:
        """Nearest code, straight-through; terms `commitment` and, for gradient learning, `codebook`."""
        z = self.normalise(z)
        if self.training and self.warming:
            return Quantized(
                z, torch.zeros(z.shape[:2], dtype=torch.int64, device=z.device), {"commitment": z.sum() * 0}
            )
        table = self.table()
        indices = nearest(z.detach().flatten(0, 1), table.detach(), self.metric).view(z.shape[:2])
        q = F.embedding(indices, table)
        losses = {"commitment": self.commitment * mean_square(z, q.detach())} if self.commitment else {}
        if self.learning == "gradient":
            losses["codebook"] = mean_square(q, z.detach())
        passed = rotated(z, q) if self.gradient == "rotation" else straight_through(z, q)
        return Quantized(passed, indices, losses)

    def observe(self, z: Float[Tensor, "m d"], z_q: Float[Tensor, "m d"], indices: Int64[Tensor, " m"]) -> None:
        """Note cluster sums, anchors and candidates for revival."""
        if self.warming:
            return
        z = self.normalise(z)
        if self.learning == "ema":
            self.note("sums", torch.zeros_like(self.codebook).index_add_(0, indices, z))
        if self.rescue == "anchors":
            seen = anchors.nearest_features(self.table().detach(), anchors.movable(self.frequency), z, self.metric)
            self._anchors = anchors.nearer(self._anchors, seen)
        if self.rescue == "revive":
            errors = (z - z_q).square().sum(1)
            self.note("distortion", errors.new_zeros(self.codebook_size).index_add_(0, indices, errors))
            far = Farthest(indices, errors, z)
            far = far if self._far is None else join(self._far, far)
            self._far = farthest(*far, self.codebook_size)

    def _move_to_anchors(self, counts: Int64[Tensor, " k"]) -> None:
        codes = anchors.movable(self.frequency)
        self.frequency.lerp_(counts / counts.sum().clamp_min(1), 1 - anchors.DECAY)
        if len(codes) == 0:  # the same on every rank: counts are summed
            return
        rows = anchors.over_ranks(self._anchors, codes, self.table().detach())
        share = anchors.pull(self.frequency[codes], self.codebook_size)[:, None]
        self.codebook[codes] = self.codebook[codes] * (1 - share) + rows * share

    @torch.no_grad()
    def initialise(self, z_e: Float[Tensor, "*rows d"], counted: Bool[Tensor, "b n"] | None = None) -> None:
        """k-means of the first batch's features over all ranks; does nothing once `initialised`.

        Args:
            z_e: this rank's features as the encoder gives them, (b, n, d) or (m, d); rank r of w holds the
                images [r::w] of the global batch. A rank may hold none.
            counted: for (b, n, d), which features are clustered; None: all. Where none is, nothing happens.
        """
        if self.initialised:
            return
        if counted is None:
            rows = _in_sample_order(z_e.float())
        else:
            rows = _in_sample_order(torch.cat([z_e.float(), counted[..., None]], -1))
            rows = rows[rows[:, -1] > 0, :-1]
        if len(rows) == 0:
            return
        rows = self.normalise(rows)
        random = generator(self.seed, "k-means")
        most = ROWS_PER_CODE * self.codebook_size
        if len(rows) > most:
            rows = rows[torch.randperm(len(rows), generator=random)[:most].to(rows.device)]
        codes = kmeans(
            rows, self.codebook_size, metric=self.metric, iterations=self.kmeans_iterations, generator=random
        )
        # All ranks computed the same; taking rank 0's word keeps unlike machines from starting apart.
        codes = distributed.all_reduce_sum(codes if distributed.is_main() else torch.zeros_like(codes))
        self.codebook.copy_(codes)
        self.initialised.fill_(True)
        self.age_steps.zero_()
        self.restart_training_state()

    @torch.no_grad()
    def refine(self, z_e: Float[Tensor, "*rows d"], seen: Int64[Tensor, " k"]) -> None:
        """One step of mini-batch k-means, so that a codebook can start from more features than fit into memory.

        Each code moves to the mean of all features that fell to it so far (Sculley, "Web-scale k-means clustering", 2010,
        algorithm 1, a batch at once); under "cosine" it keeps unit length (spherical k-means).

        Args:
            z_e: this rank's features, as for `initialise`.
            seen: features per code so far on all ranks; counted on here.
        """
        rows = self.normalise(z_e.detach().float().flatten(0, -2))
        table = self.table().detach().float()
        indices = nearest(rows, table, self.metric)
        counts = distributed.all_reduce_sum(torch.bincount(indices, minlength=self.codebook_size))
        sums = distributed.all_reduce_sum(torch.zeros_like(table).index_add_(0, indices, rows))
        seen += counts
        moved = table + (sums - counts[:, None] * table) / seen.clamp_min(1)[:, None]
        self.codebook.copy_(self.normalise(moved))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """EMA, anchors, revival, from what all ranks saw since the last call."""
        k, d = self.codebook_size, self.code_dim
        if self.warming:
            self._pending.clear()
            self.steps += 1
            return
        counts = self.collect("counts", (k,), torch.int64)
        if self.learning == "ema":
            self._move_to_means(counts, self.collect("sums", (k, d)))
        self.count_uses(counts)
        self.age_steps += 1
        if self.rescue == "anchors":
            self._move_to_anchors(counts)
        elif self.rescue == "revive":
            self._revive()
        elif self.rescue == "kmeans" and int(self.age_steps.min()) >= self.rescue_after:
            used = int((self.idle_steps < self.usage_window).sum())
            self.initialised.fill_(used >= self.rescue_below * self.codebook_size)  # the same on every rank
        self._pending.clear()
        self._far = self._anchors = None

    def _move_to_means(self, counts: Int64[Tensor, " k"], sums: Float[Tensor, "k d"]) -> None:
        if self.metric == "cosine":
            moved = F.normalize(self.codebook.lerp(F.normalize(sums, dim=1), 1 - self.decay), dim=1)
            self.codebook.copy_(torch.where(counts[:, None] > 0, moved, self.codebook))
            return
        self.cluster_size.lerp_(counts.float(), 1 - self.decay)
        self.cluster_sum.lerp_(sums, 1 - self.decay)
        total = self.cluster_size.sum()
        size = (self.cluster_size + SMOOTHING) / (total + self.codebook_size * SMOOTHING) * total
        self.codebook.copy_(self.cluster_sum / size[:, None])

    def _revive(self) -> None:
        average = self.recent_counts.mean()
        unused = (self.idle_steps >= self.rescue_after) | (self.recent_counts < self.rescue_below * average)
        idle = (unused & (self.age_steps >= self.rescue_after)).nonzero().flatten()
        if len(idle) == 0:  # the same on every rank: counts are summed
            return
        distortion = self.collect("distortion", (self.codebook_size,))
        far = self._far or Farthest(idle[:0], distortion[:0], self.codebook.detach()[:0])
        moved, rows = relocate(idle, distortion, farthest(*gather(far), self.codebook_size))
        self.codebook[moved] = rows
        self.age_steps[moved] = 0
        self.recent_counts[moved] = average  # judged by what it does from here on
        if hasattr(self, "cluster_size"):  # or the old mean would take the code back at the next step
            self.cluster_size[moved] = 1
            self.cluster_sum[moved] = rows

    @torch.no_grad()
    def restart_training_state(self) -> None:
        """Running means as if each code had been seen once, at its place."""
        if hasattr(self, "cluster_size"):
            self.cluster_size.fill_(1)
            self.cluster_sum.copy_(self.codebook)


def _in_sample_order(z_e: Float[Tensor, "*rows d"]) -> Float[Tensor, "total d"]:
    """Rows of all ranks in the order one process would see: image i of rank r is number i * world + r."""
    samples = z_e.detach().flatten(1)
    numbers = torch.arange(len(z_e), device=z_e.device) * distributed.world_size() + distributed.rank()
    order = distributed.all_gather_rows(numbers[:, None]).flatten().argsort()
    return distributed.all_gather_rows(samples)[order].view(-1, z_e.shape[-1])


def rotated(z: Float[Tensor, "*shape d"], q: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """The value of `q`, bit for bit, with the gradient of s R z, where s R takes z to q and is a constant.

    R = I - 2 r r^T + 2 q' e^T, e and q' the directions of z and q, r that of e + q' (arXiv 2410.06424, equation 4).
    """
    e, to = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
    r = F.normalize(e + to, dim=-1)
    scale = (q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp_min(1e-12)).detach()
    turned = z - 2 * r * (r * z).sum(-1, keepdim=True) + 2 * to * (e * z).sum(-1, keepdim=True)
    return q.detach() + (scale * turned - (scale * turned).detach())
