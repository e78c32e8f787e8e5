"""Arguments that the functions and the recipe stages have in common, checked without loading tf_keras.

Invariant: an error names the argument as its user writes it. Left out: what needs the model to be known.
"""

from __future__ import annotations

import importlib.util

from tfcompress.errors import InvalidArgumentError

CENTROIDS = ("kmeans_plus_plus", "linear", "density_based", "random")
SCHEMES = ("default", "prune", "cluster", "prune_cluster")


def check_pattern(
    owner: str, sparsity_m_by_n: tuple[int, int] | None, block_size: tuple[int, int], block_pooling: str
) -> None:
    """Raises an `InvalidArgumentError` for the first of these arguments of `owner` that is out of its range."""
    if sparsity_m_by_n is not None and not 0 < sparsity_m_by_n[0] < sparsity_m_by_n[1]:
        raise InvalidArgumentError(f"{owner}.sparsity_m_by_n", "(m, n) with 0 < m < n", sparsity_m_by_n)
    if min(block_size) < 1:
        raise InvalidArgumentError(f"{owner}.block_size", "a height and a width of at least 1", block_size)
    if block_pooling not in ("AVG", "MAX"):
        raise InvalidArgumentError(f"{owner}.block_pooling", "'AVG' or 'MAX'", block_pooling)
    if sparsity_m_by_n is not None and tuple(block_size) != (1, 1):
        raise InvalidArgumentError(f"{owner}.block_size", "left out with `sparsity_m_by_n`", block_size)


def check_clusters(owner: str, number_of_clusters: int, centroids: str, preserve_sparsity: bool) -> None:
    """Raises an `InvalidArgumentError` for the first of these arguments of `owner` that is out of its range."""
    least = 3 if preserve_sparsity else 2
    if number_of_clusters < least:
        raise InvalidArgumentError(f"{owner}.number_of_clusters", f"at least {least}", number_of_clusters)
    if centroids not in CENTROIDS:
        raise InvalidArgumentError(f"{owner}.centroids", f"one of {CENTROIDS}", centroids)


def check_log_dir(owner: str, log_dir: str | None) -> None:
    """Raises an `InvalidArgumentError` if summaries are asked for and TensorBoard, which writes them, is not there."""
    if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
        raise InvalidArgumentError(
            f"{owner}.log_dir", "left out, or TensorBoard be installed (`pip install tensorboard`)", log_dir
        )


def check_scheme(owner: str, scheme: str) -> None:
    """Raises an `InvalidArgumentError` if `scheme`, an argument of `owner`, is none."""
    if scheme not in SCHEMES:
        raise InvalidArgumentError(f"{owner}.scheme", f"one of {SCHEMES}", scheme)
