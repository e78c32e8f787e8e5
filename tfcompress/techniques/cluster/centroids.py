"""Which few values stand best for the weights of a kernel: k-means on a line.

Weights are sorted once; a cluster is then a stretch of them, and its sum the difference of two running sums. A step of
Lloyd's algorithm takes a few searches in the sorted weights, however many they are.

Invariant: what comes out holds at most as many values as asked for; zeros stay zeros and are one of the values; equal
weights stay equal. Left out: training the values (`callback.py`).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable

import numpy as np

from tfcompress.errors import InvalidArgumentError

Init = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

# A random start may end in a poor local optimum; the best of these ends counts.
STARTS = 8
# Weights that a random start chooses from; more make no better start.
_SAMPLES = 2**16
# Lloyd's algorithm always ends; the last of many steps move a centroid by less than float32 can hold.
_STEPS = 1000


def plus_plus(ordered: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Weights far from each other: each with a probability that grows with the squared distance from those before.

    Reference:
        Arthur, Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007,
        http://ilpubs.stanford.edu:8090/778/
    """
    values = ordered[:: -(-len(ordered) // _SAMPLES)]
    chosen = [rng.choice(values)]
    distance = np.square(values - chosen[0])
    for _ in range(clusters - 1):
        total = distance.sum()
        chosen.append(rng.choice(values, p=distance / total) if total > 0 else values[0])
        distance = np.minimum(distance, np.square(values - chosen[-1]))
    return np.array(chosen)


def linear(ordered: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Equal distances from the smallest to the largest weight, so that the few large weights have values of their own.

    Han et al. found it the best start for accuracy: large weights matter most.
    """
    return np.linspace(ordered[0], ordered[-1], clusters)


def density(ordered: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """As many weights between each two centroids: the quantiles of the weights."""
    return np.quantile(ordered, (np.arange(clusters) + 0.5) / clusters)


INITS: dict[str, Init] = {"k-means++": plus_plus, "linear": linear, "density": density}


def check_clusters(owner: str, clusters: int, init: str | Init, most: int) -> None:
    """Raises an `InvalidArgumentError` for the first of these arguments of `owner` that is out of its range."""
    if not isinstance(clusters, numbers.Integral) or not 2 <= clusters <= most:
        raise InvalidArgumentError(f"{owner}.clusters", f"an integer from 2 to {most}", clusters)
    if not callable(init) and not (isinstance(init, str) and init in INITS):
        raise InvalidArgumentError(f"{owner}.init", f"one of {tuple(INITS)}, or a callable", init)


def cluster_kernel(kernel: np.ndarray, clusters: int, init: str | Init = "k-means++", *, seed: int = 0) -> np.ndarray:
    """A kernel whose weights are replaced by the nearest of a few values, those of least squared error nearby.

    Args:
        kernel: Weights of any shape. Zeros stay zeros, and are one of the values.
        clusters: Values that the result may hold, at least 2.
        init: Where they start: a name in `INITS`, or a callable that takes the sorted weights, their number and a
            random generator, and gives an array of shape `(clusters,)`.
        seed: Seed of a random start.

    Returns:
        An array of the kernel's shape and type. A kernel of few values already comes back as it is.

    Example:
        >>> cluster_kernel(np.array([0.0, 1.0, 1.5, 4.0, 0.0]), 3).tolist()
        [0.0, 1.25, 1.25, 4.0, 0.0]

    Reference:
        Han et al., "Deep Compression", 2015, section 3, https://arxiv.org/abs/1510.00149
    """
    if len(np.unique(kernel)) <= clusters:
        return kernel.copy()
    nonzero = kernel[kernel != 0].astype("float64")
    centroids = k_means(nonzero, clusters - (nonzero.size < kernel.size), init, seed=seed)
    nearest = np.zeros(kernel.shape)
    nearest[kernel != 0] = centroids[np.searchsorted(_between(centroids), nonzero, side="right")]
    return nearest.astype(kernel.dtype)


def k_means(values: np.ndarray, clusters: int, init: str | Init = "k-means++", *, seed: int = 0) -> np.ndarray:
    """Centroids that Lloyd's algorithm comes to, exactly: each is the mean of the values that are nearest to it.

    Args:
        values: Numbers of any shape, at least one.
        clusters: Number of centroids, at least 1.
        init: See `cluster_kernel`. Of random starts the best of several counts.
        seed: Seed of the random generator.

    Returns:
        Sorted float64 centroids of shape `(clusters,)`; some may be nearest to no value.

    Raises:
        InvalidArgumentError: If a callable `init` gives another shape.
    """
    ordered = np.sort(values, axis=None).astype("float64")
    start = init if callable(init) else INITS[init]
    rng = np.random.default_rng(seed)
    ends = []
    for _ in range(STARTS if start is plus_plus else 1):
        first = np.sort(np.asarray(start(ordered, clusters, rng), "float64"))
        if first.shape != (clusters,):
            raise InvalidArgumentError("init", f"a callable that gives an array of shape ({clusters},)", first.shape)
        ends.append(_lloyd(ordered, first))
    return min(ends, key=lambda end: end[1])[0]


def _lloyd(ordered: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
    """The centroids that a start leads to, and the sum of squared distances to them."""
    # From the middle, which keeps the sums small and exact.
    middle = ordered.mean()
    sums = np.concatenate([[0.0], np.cumsum(ordered - middle)])
    squares = np.concatenate([[0.0], np.cumsum(np.square(ordered - middle))])
    before: np.ndarray | None = None
    for _ in range(_STEPS):
        edges = np.concatenate([[0], np.searchsorted(ordered, _between(centroids)), [len(ordered)]])
        if before is not None and np.array_equal(edges, before):
            break
        before = edges
        counts = np.diff(edges)
        # A centroid with no value stays where it is.
        means = np.diff(sums[edges]) / np.maximum(counts, 1) + middle
        centroids = np.sort(np.where(counts > 0, means, centroids))
    edges = np.concatenate([[0], np.searchsorted(ordered, _between(centroids)), [len(ordered)]])
    away = centroids - middle
    error = np.diff(squares[edges]) - 2 * away * np.diff(sums[edges]) + np.diff(edges) * np.square(away)
    return centroids, float(error.sum())


def _between(centroids: np.ndarray) -> np.ndarray:
    """The points half way between neighbours."""
    return (centroids[:-1] + centroids[1:]) / 2
