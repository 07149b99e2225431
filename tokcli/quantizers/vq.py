"""Vector quantization: each feature becomes its nearest code.

Cosine codes learnt by EMA are VQ-KD's (Peng et al. 2022, BEiT v2, arXiv 2208.06366, section 2.1; "Image
Understanding Makes for A Good Tokenizer", arXiv 2411.04406). Euclidean codes learnt by gradient are VQ-VAE's
and VQGAN's (van den Oord et al. 2017, equation 3; Esser et al. 2021), by EMA the same paper's appendix A.1.
Differs from them: batch statistics are applied once per optimizer step, and unused codes may be revived.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from tokcli import distributed
from tokcli.data.randomness import generator
from tokcli.errors import TokError
from tokcli.quantizers.kmeans import kmeans
from tokcli.quantizers.quantizer import Quantized, Quantizer, mean_square, straight_through
from tokcli.quantizers.revival import Farthest, farthest, gather, join, relocate
from tokcli.quantizers.search import nearest

SMOOTHING = 1e-5  # Laplace smoothing of cluster sizes, as in VQ-VAE's published code
ROWS_PER_CODE = 256  # more rows than this per code do not change k-means
DECAY = 0.99  # of the EMA of codes and, with anchors, of their frequencies
ANCHOR_PULL = 10 / (1 - 0.99)  # CVQ-VAE's constants
NEGLIGIBLE = 1e-7  # an anchor's share of a code below this is none


class Anchors(NamedTuple):
    """For some codes the nearest feature so far, and its squared distance."""

    codes: Int64[Tensor, " u"]
    distances: Float[Tensor, " u"]
    rows: Float[Tensor, "u d"]


class VQ(Quantizer):
    """Nearest of `codebook_size` learnt codes.

    Args:
        codebook_size: number of codes k.
        code_dim: width d of a code.
        metric: "cosine" compares directions: features are l2-normalised and codes have unit length.
            "euclidean" compares both as they are.
        learning: "ema" moves each code towards the mean of its features; "gradient" makes the codebook a
            parameter, pulled by the loss term `codebook` (MSE to the features, weight 1).
        decay: share of a code kept at each EMA step, in [0, 1); None: 0.99. Only with "ema".
        init: "kmeans" of the first batch (`initialise`), or "uniform" in +-1/k (cosine: then normalised).
        kmeans_iterations: rounds of that k-means.
        init_after: training steps that features pass unquantized before it. A fresh encoder sends all patches into one narrow
            cone, and codes found there leave it only over many thousands of steps.
        commitment: weight of the loss term `commitment`, the MSE of features to their (constant) codes.
        revive_after: codes without use for this many steps move to a feature of the batch; None: never.
        revive_below: codes used less than this share of the average (over the last `usage_window` steps) count as unused too,
            so that rare codes move to where many features share one; in [0, 1), only with `revive_after`.
        anchors: pull codes the more towards the nearest feature of the batch the less they are used (CVQ-VAE, Zheng and
            Vedaldi, arXiv 2307.15139, section 3.2); only with "gradient", and without `revive_after`.
        gradient: how it passes from `z_q` to `z_e`: "straight-through", or "rotation", by the rotation and scaling that take
            `z_e` to `z_q` (Fifty et al., arXiv 2410.06424, section 4).
        seed: of the initial codes.

    Raises:
        TokError: a key is out of its range, or stands where it has no effect.
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
        codebook_size: int,
        code_dim: int,
        metric: Literal["cosine", "euclidean"] = "cosine",
        learning: Literal["ema", "gradient"] = "ema",
        decay: float | None = None,
        init: Literal["kmeans", "uniform"] = "kmeans",
        kmeans_iterations: int = 10,
        init_after: int = 0,
        commitment: float = 1.0,
        revive_after: int | None = None,
        revive_below: float = 0.0,
        anchors: bool = False,
        gradient: Literal["straight-through", "rotation"] = "straight-through",
        seed: int = 0,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        if decay is not None and (learning == "gradient" or not 0 <= decay < 1):
            raise TokError(
                "quantizer.decay", "must be at least 0 and below 1, and goes with learning: ema", got=str(decay)
            )
        if anchors and (learning == "ema" or revive_after is not None):
            raise TokError("quantizer.anchors", "go with learning: gradient and without revive_after")
        if revive_after is not None and revive_after < 1:
            raise TokError("quantizer.revive_after", "must be at least 1 step, or null", got=str(revive_after))
        if not 0 <= revive_below < 1 or (revive_below and revive_after is None):
            raise TokError(
                "quantizer.revive_below", "must be in [0, 1) and goes with revive_after", got=str(revive_below)
            )
        self.revive_below = revive_below
        self.init_after = init_after if init == "kmeans" else 0
        self.metric, self.learning, self.commitment, self.gradient = metric, learning, commitment, gradient
        self.decay = DECAY if decay is None else decay
        self.kmeans_iterations, self.revive_after, self.seed = kmeans_iterations, revive_after, seed
        start = torch.rand(codebook_size, code_dim, generator=generator(seed, "codebook"), device="cpu")
        start = self.normalise((2 * start - 1) / codebook_size).to(self.initialised.device)
        if learning == "gradient":
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
        self.initialised.fill_(init != "kmeans")
        self.register_buffer("steps", torch.tensor(0))  # since the start
        # of each code: steps since the start or its last revival
        self.register_buffer("age_steps", torch.zeros(codebook_size, dtype=torch.int64))
        self._anchors: Anchors | None = None  # nearest features of little used codes, noted since the last step
        if anchors:
            self.register_buffer("frequency", torch.zeros(codebook_size))
        self.anchors = anchors
        self._far: Farthest | None = None  # candidates for revival, noted since the last step
        if learning == "ema" and metric == "euclidean":  # cosine codes are their own running mean
            self.register_buffer("cluster_size", torch.ones(codebook_size))
            self.register_buffer("cluster_sum", start.clone())

    def normalise(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        """Unit length under "cosine", unchanged under "euclidean"."""
        return F.normalize(x, dim=-1) if self.metric == "cosine" else x

    @property
    def warming(self) -> bool:
        """Whether features still pass unquantized: k-means is to come, `init_after` steps from the start."""
        return self.init_after > 0 and not self.initialised and int(self.steps) < self.init_after

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
        losses = {"commitment": self.commitment * mean_square(z, q.detach())}
        if self.learning == "gradient":
            losses["codebook"] = mean_square(q, z.detach())
        if self.training:
            self._observe(z.detach().flatten(0, 1), q.detach().flatten(0, 1), indices.flatten())
        passed = rotated(z, q) if self.gradient == "rotation" else straight_through(z, q)
        return Quantized(passed, indices, losses)

    def _observe(self, z: Float[Tensor, "m d"], q: Float[Tensor, "m d"], indices: Int64[Tensor, " m"]) -> None:
        if self.learning == "ema":
            self.note("sums", torch.zeros_like(self.codebook).index_add_(0, indices, z))
        if self.anchors:
            self._note_anchors(z)
        if self.revive_after is not None:
            errors = (z - q).square().sum(1)
            self.note("distortion", errors.new_zeros(self.codebook_size).index_add_(0, indices, errors))
            seen = Farthest(indices, errors, z)
            seen = seen if self._far is None else join(self._far, seen)
            self._far = farthest(*seen, self.codebook_size)

    def _pull(self, frequency: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The share of a code that its anchor takes."""
        return torch.exp(-frequency * self.codebook_size * ANCHOR_PULL - 1e-3)

    def _note_anchors(self, z: Float[Tensor, "m d"]) -> None:
        # only codes that an anchor can move, whatever else this step uses: frequencies fall to DECAY of themselves at most
        codes = (self._pull(DECAY * self.frequency) > NEGLIGIBLE).nonzero().flatten()
        if len(codes) == 0 or len(z) == 0:
            return
        table = self.table().detach()[codes]
        rows = z[nearest(table, z, self.metric)]
        seen = Anchors(codes, (table - rows).square().sum(1), rows)
        self._anchors = seen if self._anchors is None else _nearer(self._anchors, seen)

    def _move_to_anchors(self, counts: Int64[Tensor, " k"]) -> None:
        shares = counts / counts.sum().clamp_min(1)
        codes = (self._pull(DECAY * self.frequency) > NEGLIGIBLE).nonzero().flatten()
        self.frequency.lerp_(shares, 1 - DECAY)
        if len(codes) == 0:  # the same on every rank: counts are summed
            return
        table = self.table().detach()[codes]
        own = self._anchors or Anchors(codes, torch.full_like(table[:, 0], math.inf), table)
        both = distributed.all_gather_rows(torch.cat([own.distances[:, None], own.rows], 1))
        ranks = both.view(-1, len(codes), self.code_dim + 1)
        best = ranks[:, :, 0].argmin(0)
        rows = ranks[best, torch.arange(len(codes), device=best.device), 1:]
        pull = self._pull(self.frequency[codes])[:, None]
        self.codebook[codes] = self.codebook[codes] * (1 - pull) + rows * pull

    @torch.no_grad()
    def initialise(self, z_e: Float[Tensor, "*rows d"]) -> None:
        """k-means of the first batch's features over all ranks; does nothing once `initialised`.

        Args:
            z_e: this rank's features as the encoder gives them, (b, n, d) or (m, d); rank r of w holds the
                images [r::w] of the global batch. A rank may hold none.
        """
        if self.initialised:
            return
        rows = self.normalise(_in_sample_order(z_e.float()))
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
        if self.anchors:
            self._move_to_anchors(counts)
        if self.revive_after is not None:
            self._revive(self.revive_after)
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

    def _revive(self, after: int) -> None:
        self.age_steps += 1
        average = self.recent_counts.mean()
        unused = (self.idle_steps >= after) | (self.recent_counts < self.revive_below * average)
        idle = (unused & (self.age_steps >= after)).nonzero().flatten()
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


def _nearer(a: Anchors, b: Anchors) -> Anchors:
    """Of two features per code the nearer one; the earlier of equals."""
    later = b.distances < a.distances
    return Anchors(a.codes, torch.where(later, b.distances, a.distances), torch.where(later[:, None], b.rows, a.rows))


def rotated(z: Float[Tensor, "*shape d"], q: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """The value of `q`, bit for bit, with the gradient of s R z, where s R takes z to q and is a constant.

    R = I - 2 r r^T + 2 q' e^T, e and q' the directions of z and q, r that of e + q' (arXiv 2410.06424, equation 4).
    """
    e, to = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
    r = F.normalize(e + to, dim=-1)
    scale = (q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp_min(1e-12)).detach()
    turned = z - 2 * r * (r * z).sum(-1, keepdim=True) + 2 * to * (e * z).sum(-1, keepdim=True)
    return q.detach() + (scale * turned - (scale * turned).detach())
