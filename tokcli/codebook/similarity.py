"""Codes beside codes like them: in a plane, on a grid without gaps, along a line, and by nearest neighbours."""

import numpy as np
from jaxtyping import Float, Int

from tokcli.errors import TokError
from tokcli.progress import passing

LANDMARKS = 1500  # codes that t-SNE lays out; the others go where their nearest ones went
NEAREST = 3  # landmarks that place another code
CHUNK = 1024  # codes compared at once: no (k, k) matrix
CURVE_BITS = 10  # the line passes through 1024 x 1024 cells of the plane


def tsne(points: Float[np.ndarray, "m d"], perplexity: float, seed: int) -> Float[np.ndarray, "m 2"]:
    """t-SNE (van der Maaten and Hinton 2008) on one thread: equal points give equal layouts, and busy machines no delay.

    Raises:
        TokError: fewer than 4 points, or values that are not finite.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(points) < 4 or not np.isfinite(points).all():
        raise TokError(
            "t-SNE", "needs at least 4 points, all finite", got=f"{len(points)} points", next="Choose more codes"
        )
    start = "pca" if points.shape[1] > 1 else "random"
    few = (len(points) - 1) / 3
    with threadpool_limits(1):
        layout = TSNE(init=start, perplexity=min(perplexity, few), random_state=seed)
        xy: Float[np.ndarray, "m 2"] = layout.fit_transform(points)
    return xy


def lay_out(codes: Float[np.ndarray, "k d"], *, perplexity: float = 30.0, seed: int = 0) -> Float[np.ndarray, "k 2"]:
    """A place in the plane for every code; fewer than 4 codes lie on a line.

    Beyond `LANDMARKS` codes, so many random ones are laid out by t-SNE and each other code lies between its
    `NEAREST` of them, nearer to those it is like: seconds instead of minutes for 16,384 codes.
    """
    if len(codes) < 4:
        return np.stack([np.arange(len(codes)), np.zeros(len(codes))], 1).astype(np.float32)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(codes))[:LANDMARKS])
    placed = tsne(codes[chosen], perplexity, seed)
    if len(chosen) == len(codes):
        return placed
    nearest, squares = nearest_rows(codes, codes[chosen], NEAREST)
    weights = 1 / (squares + 1e-6 * squares.mean() + 1e-12)
    weights /= weights.sum(1, keepdims=True)
    xy = (placed[nearest] * weights[..., None]).sum(1).astype(np.float32)
    xy[chosen] = placed
    return xy


def nearest_rows(
    queries: Float[np.ndarray, "q d"], rows: Float[np.ndarray, "k d"], count: int
) -> tuple[Int[np.ndarray, "q m"], Float[np.ndarray, "q m"]]:
    """The `count` nearest rows of each query, nearest first, with squared Euclidean distances; ties by row number."""
    count = min(count, len(rows))
    found = np.empty((len(queries), count), np.int64)
    squares = np.empty((len(queries), count), np.float32)
    lengths = (rows**2).sum(1)
    starts = range(0, len(queries), CHUNK)
    for start in passing(starts, len(queries), unit="row", desc="similar codes", units=lambda _: CHUNK):
        part = queries[start : start + CHUNK]
        distance = (part**2).sum(1)[:, None] - 2 * part @ rows.T + lengths
        best = np.argpartition(distance, count - 1, axis=1)[:, :count]
        value = np.take_along_axis(distance, best, 1)
        order = np.lexsort((best, value), axis=1)
        found[start : start + CHUNK] = np.take_along_axis(best, order, 1)
        squares[start : start + CHUNK] = np.take_along_axis(value, order, 1)
    return found, squares.clip(0)


def neighbours(codes: Float[np.ndarray, "k d"], count: int) -> Int[np.ndarray, "k m"]:
    """The `count` other codes nearest to each code, nearest first: fewer where the codebook is smaller."""
    count = min(count, len(codes) - 1)
    found, _ = nearest_rows(codes, codes, count + 1)
    # the code itself comes first but for equal codes, where another may; it is struck out wherever it stands
    itself = found == np.arange(len(codes))[:, None]
    itself[~itself.any(1), -1] = True
    return found[~itself].reshape(len(codes), count)


def grid_side(count: int) -> tuple[int, int]:
    """Rows and columns of the squarest grid that holds `count` cells."""
    columns = max(1, int(np.ceil(np.sqrt(count))))
    return -(-count // columns) if count else 1, columns


def fill_grid(xy: Float[np.ndarray, "k 2"]) -> Int[np.ndarray, "k 2"]:
    """Row and column of each point in the squarest grid: every cell is taken but for the end of the last row.

    The points are cut in two across the longer side of their part of the grid, each half getting as many as it has
    cells, and so on: what lay left stays left of what lay right, and near points get near cells.
    """
    rows, columns = grid_side(len(xy))
    cells = np.zeros((len(xy), 2), np.int64)
    parts = [(np.arange(len(xy)), 0, 0, rows, columns)]
    while parts:
        members, top, left, high, wide = parts.pop()
        if len(members) <= 1 or high * wide <= 1:
            cells[members] = (top, left)
            continue
        axis = 0 if wide >= high else 1
        first = (wide if axis == 0 else high) // 2
        near = (top, left, high, first) if axis == 0 else (top, left, first, wide)
        far = (top, left + first, high, wide - first) if axis == 0 else (top + first, left, high - first, wide)
        holds = _taken(*near, columns, len(xy))
        ordered = members[np.lexsort((members, xy[members, axis]))]
        parts += [(ordered[:holds], *near), (ordered[holds:], *far)]
    return cells


def _taken(top: int, left: int, high: int, wide: int, columns: int, count: int) -> int:
    """How many cells of a part of the grid lie before the end of the last row."""
    full, rest = divmod(count, columns)
    whole = min(max(full - top, 0), high) * wide
    last = min(max(rest - left, 0), wide) if top <= full < top + high else 0
    return whole + last


def along_curve(xy: Float[np.ndarray, "k 2"]) -> Int[np.ndarray, " k"]:
    """The points' numbers in the order of a Hilbert curve: neighbours on this line are near in the plane."""
    span = np.ptp(xy, axis=0).max(initial=0) or 1.0
    side = 1 << CURVE_BITS
    x, y = ((xy - xy.min(axis=0, initial=np.inf)) / span * (side - 1)).astype(np.int64).T if len(xy) else xy.T
    key = np.zeros(len(xy), np.int64)
    step = side >> 1
    while step:
        right, below = (x & step) > 0, (y & step) > 0
        key += step * step * ((3 * right) ^ below)
        # a quarter's own curve is turned or mirrored so that ends meet
        flip = ~below & right
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        x, y = np.where(below, x, y), np.where(below, y, x)
        step >>= 1
    return np.argsort(key, kind="stable")
