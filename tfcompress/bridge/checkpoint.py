"""TensorFlow checkpoints: what they hold, and whether that is all there.

Invariant: only the index is read. Left out: loading the values, which the layers do.
"""

from __future__ import annotations

import math
from pathlib import Path

import tensorflow as tf

from tfcompress.bridge.guard import SMALL, damaged, refuse

# Ten thousand variables need about 1 MB.
_INDEX_BYTES = 64 << 20


def check_checkpoint(prefix: Path) -> int:
    """Checks that a checkpoint's files hold what its index declares.

    Args:
        prefix: Its path without `.index`.

    Returns:
        The number of values in all of its variables.

    Raises:
        ModelError: If a file is missing or damaged, or the index declares more than there is.
    """
    where = repr(str(prefix))
    index = prefix.with_name(prefix.name + ".index")
    parts = [path for path in prefix.parent.glob("*") if path.name.startswith(prefix.name + ".data-")]
    if not index.is_file() or not parts:
        raise damaged(where, FileNotFoundError("its `.index` or `.data-...` files are missing"))
    if index.stat().st_size > _INDEX_BYTES:
        raise refuse(where, f"its index may have {_INDEX_BYTES:,} bytes. Received: {index.stat().st_size:,}")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise damaged(where, error) from error
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if dtypes[name] != tf.string}
    declared = sum(size * dtypes[name].size for name, size in sizes.items())
    stored = sum(path.stat().st_size for path in parts)
    if declared > stored + SMALL:
        raise refuse(where, f"its index declares {declared:,} bytes, and its files have {stored:,}")
    return sum(sizes.values())
