"""How large a model is: its values, those that are not zero, and the bytes of its file.

Invariant: a value counts once, however often its layer is called. Left out: how many bits a value takes in a file; that
is what `file_size` shows.
"""

from __future__ import annotations

import dataclasses
import heapq
import os
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from tfcompress.errors import ModelError
from tfcompress.files import gzip_size


@dataclasses.dataclass(frozen=True)
class FileSize:
    """Bytes of a file.

    Args:
        file_bytes: As it is.
        gzip_bytes: After gzip at level 9, which is about what a download or an app package takes.
    """

    file_bytes: int
    gzip_bytes: int


def file_size(path: str | os.PathLike) -> FileSize:
    """Bytes of the file at `path`, as it is and compressed.

    Raises:
        ModelError: If there is no such file.
    """
    if not Path(path).is_file():
        raise ModelError(f"No file at {os.fspath(path)!r}.")
    return FileSize(Path(path).stat().st_size, gzip_size(path))


def num_params(model: keras.Model) -> int:
    """Values of all weights, trainable or not, such as the moving averages of batch normalization.

    Example:
        >>> num_params(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        8
    """
    return sum(int(np.prod(weight.shape)) for weight in model.weights)


def num_nonzero(model: keras.Model) -> int:
    """Those of `num_params` that are not zero.

    Example:
        >>> num_nonzero(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="zeros")]))
        0
    """
    return sum(int(np.count_nonzero(_values(weight))) for weight in model.weights)


def layer_sparsity(model: keras.Model) -> dict[str, float]:
    """Share of zeros in the kernels of each layer.

    Args:
        model: A built Keras model.

    Returns:
        Layer name to a share in [0, 1], in the model's order, for each layer that has a kernel (its recurrent,
        depthwise and pointwise ones included). Nested models are opened; layers of one name in several of them are
        taken together.

    Example:
        >>> layer_sparsity(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "relu", name="hidden")]))
        {'hidden': 0.0}
    """
    sizes: dict[str, int] = {}
    zeros: dict[str, int] = {}
    for layer in _leaves(model, set()):
        kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
        if kernels:
            size = sum(int(np.prod(kernel.shape)) for kernel in kernels)
            nonzero = sum(int(np.count_nonzero(_values(kernel))) for kernel in kernels)
            sizes[layer.name] = sizes.get(layer.name, 0) + size
            zeros[layer.name] = zeros.get(layer.name, 0) + size - nonzero
    return {name: zeros[name] / size for name, size in sizes.items()}


@dataclasses.dataclass(frozen=True)
class CodedSize:
    """What an array would take if each of its values were written as a code, short for those that are frequent.

    Args:
        entropy_bytes: No code of single values can take less.
        huffman_bytes: By the best code of whole bits, with the table that a reader needs: each value that occurs and,
            in a byte, the length of its code, from which canonical codes follow.
    """

    entropy_bytes: float
    huffman_bytes: int


def coded_size(values: np.ndarray) -> CodedSize:
    """Bytes of an array under ideal codes of its values.

    This is what few values (clustering) and zeros (pruning) are worth to a reader who decodes; the runtime reads plain
    arrays only, and gzip comes near.

    Args:
        values: Numbers of any shape and type.

    Example:
        >>> coded_size(np.array([0, 0, 0, 0, 1, 1, 2, 3], "int8"))
        CodedSize(entropy_bytes=1.75, huffman_bytes=10)

    Reference:
        Huffman, "A Method for the Construction of Minimum-Redundancy Codes", 1952,
        https://doi.org/10.1109/JRPROC.1952.273898
    """
    _, counts = np.unique(values, return_counts=True)
    share = counts / max(values.size, 1)
    entropy = float(-(counts * np.log2(share)).sum()) / 8
    # Every two rarest groups that are joined add a bit to the code of each of their values.
    groups = counts.tolist()
    heapq.heapify(groups)
    bits = values.size if len(groups) == 1 else 0
    while len(groups) > 1:
        joined = heapq.heappop(groups) + heapq.heappop(groups)
        bits += joined
        heapq.heappush(groups, joined)
    return CodedSize(entropy + 0.0, -(-bits // 8) + len(counts) * (values.dtype.itemsize + 1))


def _leaves(model: keras.Model, seen: set[int]) -> Iterator[keras.layers.Layer]:
    """Layers that are no models themselves, each once."""
    for layer in model.layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.Model):
            yield from _leaves(layer, seen)
        else:
            yield layer


def _values(weight: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight.value)
