"""Do codes mean something? How often a code's tokens come from images of one class, against chance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from tokcli.pictures.plots import BLUE, INK, new_figure, save_figure

SHUFFLED = "#a9a9b0"


class Purity(NamedTuple):
    """How single-minded codes are.

    Args:
        tokens: labelled tokens of each code.
        owner: the class most of them come from, -1 where there are none; ties go to the lower number.
        purity: that class's share of them, in [0, 1]; 0 where there are none.
        shuffled: the same after the images' classes were dealt out anew: what chance gives a code of that size.
    """

    tokens: Int[np.ndarray, " k"]
    owner: Int[np.ndarray, " k"]
    purity: Float[np.ndarray, " k"]
    shuffled: Float[np.ndarray, " k"]

    def mean(self) -> tuple[float, float]:
        """Purity over all tokens (each token counts its code's share), and what chance gives."""
        total = max(1, int(self.tokens.sum()))
        return float(self.tokens @ self.purity) / total, float(self.tokens @ self.shuffled) / total


def class_counts(
    indices: Int[np.ndarray, "N n"], labels: Int[np.ndarray, " N"], codebook_size: int, classes: int
) -> Int[np.ndarray, "k c"]:
    """Tokens of each code by the class of their image; images without a class are left out."""
    known = labels >= 0
    pairs = indices[known].astype(np.int64) * classes + labels[known][:, None]
    return np.bincount(pairs.reshape(-1), minlength=codebook_size * classes).reshape(codebook_size, classes)


def measure_purity(
    indices: Int[Tensor, "N n"], labels: Int[Tensor, " N"], codebook_size: int, seed: int = 0
) -> Purity | None:
    """Purity of every code; None where no image has a class."""
    codes, of = indices.cpu().numpy(), labels.cpu().numpy()
    classes = int(of.max(initial=-1)) + 1
    if classes < 1:
        return None
    # whole images change classes: tokens of one image are no independent draws
    dealt = of.copy()
    known = np.flatnonzero(of >= 0)
    dealt[known] = of[np.random.default_rng(seed).permutation(known)]
    counts, chance = (class_counts(codes, these, codebook_size, classes) for these in (of, dealt))
    tokens = counts.sum(1)
    owner = np.where(tokens > 0, counts.argmax(1), -1)
    return Purity(tokens, owner, *(table.max(1) / np.maximum(tokens, 1) for table in (counts, chance)))


def purity_numbers(purity: Purity, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a code: `index, tokens, class, purity, shuffled`."""
    return [
        {
            "index": i,
            "tokens": int(tokens),
            "class": classes[owner] if 0 <= owner < len(classes) else "",
            "purity": f"{pure:.6g}",
            "shuffled": f"{chance:.6g}",
        }
        for i, (tokens, owner, pure, chance) in enumerate(zip(*purity, strict=True))
    ]


def draw_purity(purity: Purity, path: str | Path, *, title: str = "") -> Path:
    """Each code's purity over its number of tokens, with what shuffled classes give in grey; 1080 x 660 px."""
    figure = new_figure(7.2, 4.4)
    axes = figure.add_axes((0.13, 0.13, 0.84, 0.78))
    used = purity.tokens > 0
    real, chance = purity.mean()
    looks: tuple[tuple[Any, str, float, str], ...] = (
        (purity.shuffled, SHUFFLED, chance, "classes shuffled among images"),
        (purity.purity, BLUE, real, "as labelled"),
    )
    for values, colour, mean, name in looks:
        dots: dict[str, Any] = {"s": 14, "alpha": 0.6, "linewidth": 0, "color": colour}
        axes.scatter(purity.tokens[used], values[used], label=f"{name}: {mean:.1%} of tokens", **dots)
    axes.set(xscale="log", ylim=(0, 1.18), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_yticklabels([f"{share:.0%}" for share in (0, 0.25, 0.5, 0.75, 1)])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    axes.set_xlabel("tokens of the code")
    axes.set_ylabel("share of its commonest class")
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=INK, ncols=2, handletextpad=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#dddddf", linewidth=0.6)
    axes.set_axisbelow(True)
    return save_figure(figure, path)
