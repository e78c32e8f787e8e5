"""What a training has beside the student's weights, within the file of those: the optimizer, and what trains along.

`BackupAndRestore` goes on from it as from a plain model's file; whoever loads the file into the student does not see
it.

Invariant: a state is read as a whole or, where it is another optimizer's, not at all. Left out: other files than HDF5.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

_GROUP = "_distiller"


def write_state(path: Any, variables: Sequence[keras.Variable]) -> None:
    """Adds the values of some variables to a file of weights."""
    if not str(path).endswith(".h5"):
        return
    with h5py.File(Path(path), "a") as file:
        group = file.create_group(_GROUP)
        for at, variable in enumerate(variables):
            group.create_dataset(str(at), data=keras.ops.convert_to_numpy(variable))


def read_state(path: Any, variables: Sequence[keras.Variable]) -> None:
    """Reads them back, where the file has them; warns where they are of other variables."""
    if not str(path).endswith(".h5"):
        return
    with h5py.File(Path(path), "r") as file:
        if _GROUP not in file:
            return
        group = file[_GROUP]
        values = [_read(group[str(at)]) for at in range(len(group))]
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        warnings.warn(
            f"{str(path)!r} holds the state of another training, with other variables than this one has by now: the "
            "student's weights are read, and neither the optimizer nor what trains along. Compile this one as that one "
            "was, and where features of networks without a graph are compared, train on a batch first.",
            stacklevel=3,
        )
        return
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _read(dataset: Any) -> np.ndarray:
    value = dataset[()]
    # HDF5 does not know bfloat16, and gives its bytes.
    return value.view(tf.bfloat16.as_numpy_dtype) if value.dtype.kind == "V" else value
