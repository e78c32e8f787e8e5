"""Random inputs for a file that comes without data, in the types that the file itself takes.

Invariant: every number is one that the file can work with: an index lies in each table that it looks up. Left out:
inputs in the units of the Keras model, which `parity.py` draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.export import flatbuffer


def random_tensors(
    content: bytes, inputs: Sequence[Mapping[str, Any]], rng: np.random.Generator, *, samples: int | None = None
) -> list[np.ndarray]:
    """One array for each input: floats in [-1, 1), quantized integers of their whole range, indices of their tables.

    Args:
        content: The file.
        inputs: Details of its inputs, as LiteRT gives them.
        rng: Where the numbers come from.
        samples: Size of the first axis; None for the file's own.

    Returns:
        Arrays in the order of `inputs`. What is neither a float, quantized, nor an index (truth values, strings,
        positions) is zero, which is valid everywhere.

    Raises:
        ModelError: If `content` is no TFLite model.
    """
    model = flatbuffer.parse(content)
    names, limits = flatbuffer.input_names(model), flatbuffer.index_limits(model)
    arrays = []
    for details in inputs:
        shape, dtype = [int(size) for size in details["shape"]], np.dtype(details["dtype"])
        if samples is not None:
            shape[:1] = [samples]
        if dtype.kind == "f":
            arrays.append(rng.uniform(-1.0, 1.0, shape).astype(dtype))
        elif dtype.kind in "iu" and details["quantization"][0]:
            limit = np.iinfo(dtype)
            arrays.append(rng.integers(limit.min, limit.max, shape, dtype, endpoint=True))
        elif dtype.kind in "iu":
            arrays.append(rng.integers(0, limits.get(names[int(details["index"])], 1), shape, dtype))
        else:
            arrays.append(np.zeros(shape, dtype))
    return arrays
