"""What an app or a firmware must know of a `.tflite` file, as JSON, and vectors to test it with on the device.

Invariant: every figure is read from the file that it describes, and the outputs of the vectors are what that file gave.
Left out: accuracy (see `tfcompress.evaluate`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.export import flatbuffer
from tfcompress.export.random_inputs import random_tensors
from tfcompress.measure.tflite_runner import TFLiteRunner, quantize

FORMAT = 1
_RANDOM_SAMPLES = 4
_PIXELS = 255.0


def normalization(input_range: tuple[float, float]) -> tuple[float, float]:
    """The (mean, std) by which `(pixel - mean) / std` turns 0..255 into a model's input range.

    Example:
        >>> normalization((-1.0, 1.0))
        (127.5, 127.5)
    """
    low, high = input_range
    return -low * _PIXELS / (high - low), _PIXELS / (high - low)


def describe_file(
    content: bytes,
    file_name: str,
    *,
    class_names: Sequence[str] | None = None,
    input_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Describes a `.tflite` file in a form that JSON can hold.

    Args:
        content: The bytes of the file.
        file_name: What it is called.
        class_names: One name for each class.
        input_range: (low, high) that the Keras model takes for pixels of 0 to 255; None for other inputs.

    Returns:
        `file`, `sha256`, `bytes`, `inputs` and `outputs` (name, shape, dtype, scale, zero point of each), `labels`, and
        `preprocessing`.

    Raises:
        ModelError: If `content` is no TFLite model.
    """
    model = flatbuffer.parse(content)
    described: dict[str, Any] = {
        "format": FORMAT,
        "file": file_name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": [_tensor(model, index, name) for index, name in flatbuffer.input_names(model).items()],
        "outputs": [_tensor(model, index, name) for index, name in flatbuffer.outputs(model)],
        "labels": None if class_names is None else list(class_names),
        "preprocessing": None,
    }
    if input_range is not None:
        mean, std = normalization(input_range)
        described["preprocessing"] = {
            "input_range": list(map(float, input_range)),
            "mean": mean,
            "std": std,
            "steps": "x = (pixel - mean) / std for pixels of 0 to 255; then, for integer inputs, "
            "q = clip(round(x / scale) + zero_point), where halves round away from zero",
        }
    return described


def reference_vectors(content: bytes, *, delegate: str, samples: Any = None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Runs a file on a few samples, for a test on the device.

    Args:
        content: The bytes of the file.
        delegate: Kernel set to run it with: "default", "none" or "reference".
        samples: Floats `(samples, ...)` in the units of the Keras model, a list of them for several inputs; None
            takes random numbers.

    Returns:
        A description for JSON, and the raw numbers by file name: little-endian, samples one after the other, in the
        types that the file itself takes and gives.

    Raises:
        InvalidArgumentError: If the shapes of `samples` are not those of the file.
        ModelError: If LiteRT cannot run the file.
    """
    runner = TFLiteRunner(content, delegate=delegate)
    if samples is None:
        rng = np.random.default_rng(0)
        inputs = random_tensors(content, runner.inputs, rng, samples=_RANDOM_SAMPLES)
        source = "random"
    else:
        given = samples if isinstance(samples, (list, tuple)) else [samples]
        floats = [np.asarray(array, np.float32) for array in given]
        # `strict` is left to the runner, whose message names the inputs.
        inputs = [quantize(array, details) for array, details in zip(floats, runner.inputs, strict=False)]
        inputs += floats[len(inputs) :]
        source = "given"
    results = runner.predict_raw(inputs)
    outputs = results if isinstance(results, list) else [results]
    files: dict[str, bytes] = {}
    described = {"kernels": delegate, "samples": len(inputs[0]), "source": source}
    kinds = (("inputs", inputs, runner.inputs), ("outputs", outputs, runner.outputs))
    for kind, arrays, all_details in kinds:
        entries = []
        for position, array in enumerate(arrays):
            name = f"vectors/{kind.removesuffix('s')}_{position}.bin"
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            files[name] = little.tobytes()
            details = all_details[position]
            shape = list(map(int, array.shape))
            entries.append({"name": details["name"], "file": name, "dtype": array.dtype.name, "shape": shape})
        described[kind] = entries
    return described, files


def _tensor(model: Any, index: int, name: str) -> dict[str, Any]:
    tensor = model.subgraphs[0].tensors[index]
    quantization = tensor.quantization
    quantized = quantization is not None and quantization.scale is not None and len(quantization.scale) == 1
    return {
        "name": name,
        "shape": [] if tensor.shape is None else [int(size) for size in tensor.shape],
        "dtype": flatbuffer.type_name(tensor.type),
        "scale": float(quantization.scale[0]) if quantized else None,
        "zero_point": int(quantization.zeroPoint[0]) if quantized else None,
    }
