"""A `.tflite` file as C source for TensorFlow Lite Micro: the bytes, the operations to register, and how much memory.

Invariant: the array holds the bytes of the file, aligned to 16, and compiles as C11 and as C++11 and later. Left out:
the project around it, which each chip's vendor gives.
"""

from __future__ import annotations

import re

from tfcompress.errors import ExportError
from tfcompress.export import flatbuffer
from tfcompress.export.arena import activation_arena

# The names of micro_mutable_op_resolver.h of tflite-micro; operations are called CONV_2D where this says Conv2D.
_METHODS = [
    "Abs", "Add", "AddN", "ArgMax", "ArgMin", "AssignVariable", "AveragePool2D", "BatchMatMul", "BatchToSpaceNd",
    "BroadcastArgs", "BroadcastTo", "CallOnce", "Cast", "Ceil", "Concatenation", "Conv2D", "Cos", "CumSum",
    "DepthToSpace", "DepthwiseConv2D", "Dequantize", "Div", "Elu", "Equal", "Exp", "ExpandDims", "Fill", "Floor",
    "FloorDiv", "FloorMod", "FullyConnected", "Gather", "GatherNd", "Greater", "GreaterEqual", "HardSwish", "If",
    "L2Normalization", "L2Pool2D", "LeakyRelu", "Less", "LessEqual", "Log", "LogicalAnd", "LogicalNot", "LogicalOr",
    "Logistic", "LogSoftmax", "Maximum", "MaxPool2D", "MirrorPad", "Mean", "Minimum", "Mul", "Neg", "NotEqual",
    "Pack", "Pad", "PadV2", "Prelu", "Quantize", "ReadVariable", "ReduceMax", "ReduceMin", "Relu", "Relu6",
    "Reshape", "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2", "Round", "Rsqrt", "SelectV2", "Shape", "Sin",
    "Slice", "Softmax", "SpaceToBatchNd", "SpaceToDepth", "Split", "SplitV", "Squeeze", "Sqrt", "Square",
    "SquaredDifference", "StridedSlice", "Sub", "Sum", "Svdf", "Tanh", "TransposeConv", "Transpose", "Unpack",
    "UnidirectionalSequenceLSTM", "VarHandle", "While", "ZerosLike",
]  # fmt: skip
_BY_LETTERS = {name.upper(): name for name in _METHODS}
ALIGNMENT = 16
_BYTES_PER_LINE = 16
# What TensorFlow Lite Micro keeps besides the activations on a 32-bit chip, rounded up.
_BYTES_PER_TENSOR = 32
_BYTES_PER_OPERATION = 128
_BYTES_PER_CHANNEL = 8
_FIXED_BYTES = 2048


def resolver_methods(content: bytes) -> list[str]:
    """Names of the `Add...` calls of a `MicroMutableOpResolver` that a file needs.

    Args:
        content: The bytes of a `.tflite` file.

    Returns:
        Such as `["AddConv2D", "AddSoftmax"]`, sorted.

    Raises:
        ExportError: If TensorFlow Lite Micro has no such operation.
        ModelError: If `content` is no TFLite model.
    """
    names = sorted({flatbuffer.op_name(code) for code in flatbuffer.parse(content).operatorCodes})
    missing = [name for name in names if name.replace("_", "") not in _BY_LETTERS]
    if missing:
        raise ExportError(
            "TensorFlow Lite Micro cannot run the file.",
            [f"it has no operation {name}; remedy: layers that convert to others" for name in missing],
        )
    return [f"Add{_BY_LETTERS[name.replace('_', '')]}" for name in names]


def arena_estimate(content: bytes) -> int:
    """Bytes of the tensor arena that TensorFlow Lite Micro is likely to need, rounded up to 1 KiB.

    The planned activations, and a rough share for each tensor, operation and channel. Optimized kernels (CMSIS-NN,
    ESP-NN) take scratch memory besides; `interpreter.arena_used_bytes()` says on the chip what it is.

    Args:
        content: The bytes of a `.tflite` file.
    """
    graph = flatbuffer.parse(content).subgraphs[0]
    operators = graph.operators if graph.operators is not None else ()
    quantized = [tensor.quantization for tensor in graph.tensors if tensor.quantization is not None]
    channels = sum(len(entry.scale) for entry in quantized if entry.scale is not None and len(entry.scale) > 1)
    persistent = _BYTES_PER_TENSOR * len(graph.tensors) + _BYTES_PER_OPERATION * len(operators)
    total = activation_arena(content).planned_bytes + persistent + _BYTES_PER_CHANNEL * channels + _FIXED_BYTES
    return -(-total // 1024) * 1024


def microcontroller_files(content: bytes, stem: str) -> dict[str, str]:
    """The source files for TensorFlow Lite Micro by name.

    Args:
        content: The bytes of a `.tflite` file.
        stem: What the files and names in them are called after.

    Returns:
        `<stem>_model.h` and `.cc` with the bytes, `<stem>_ops.h` with the operations, and `README.md`.

    Raises:
        ExportError: If TensorFlow Lite Micro has no such operation.
    """
    name = identifier(stem)
    guard = f"TFCOMPRESS_{name.upper()}"
    methods = resolver_methods(content)
    camel = "".join(part.capitalize() for part in name.split("_"))
    lines = [content[at : at + _BYTES_PER_LINE] for at in range(0, len(content), _BYTES_PER_LINE)]
    names = {
        "name": name,
        "camel": camel,
        "guard": guard,
        "size": len(content),
        "arena": arena_estimate(content),
        "count": len(methods),
        "calls": "\n".join(f"  if (resolver.{method}() != kTfLiteOk) return kTfLiteError;" for method in methods),
        "bytes": "\n".join("    " + " ".join(f"0x{byte:02x}," for byte in line) for line in lines),
    }
    return {
        f"{name}_model.h": _HEADER.format(**names),
        f"{name}_model.cc": _SOURCE.format(**names),
        f"{name}_ops.h": _OPERATIONS.format(**names),
        "README.md": _README.format(**names),
    }


def identifier(stem: str) -> str:
    """A name for C made of the name of a file.

    Example:
        >>> identifier("2nd model-int8")
        'm_2nd_model_int8'
    """
    name = re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_").lower() or "model"
    return f"m_{name}" if name[0].isdigit() else name


_HEADER = """#ifndef {guard}_MODEL_H_
#define {guard}_MODEL_H_

#ifdef __cplusplus
extern "C" {{
#endif

// A TensorFlow Lite model of {size} bytes, aligned as TensorFlow Lite Micro needs it.
extern const unsigned char {name}_model[];
extern const unsigned int {name}_model_len;

#ifdef __cplusplus
}}
#endif

#endif  // {guard}_MODEL_H_
"""
_SOURCE = """#include "{name}_model.h"

#ifndef __cplusplus
#include <stdalign.h>
#endif

alignas(16) const unsigned char {name}_model[] = {{
{bytes}
}};
const unsigned int {name}_model_len = {size};
"""
_OPERATIONS = """#ifndef {guard}_OPS_H_
#define {guard}_OPS_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

// An estimate: make it smaller by what interpreter.arena_used_bytes() says.
constexpr int k{camel}ArenaBytes = {arena};

using {camel}OpResolver = tflite::MicroMutableOpResolver<{count}>;

inline TfLiteStatus Register{camel}Ops({camel}OpResolver& resolver) {{
{calls}
  return kTfLiteOk;
}}

#endif  // {guard}_OPS_H_
"""
_README = """# {name} for TensorFlow Lite Micro

| file | what it is |
|---|---|
| `{name}_model.h`, `{name}_model.cc` | the model: {size:,} bytes of flash, aligned to 16 |
| `{name}_ops.h` | the {count} operations to register, and the arena: about {arena:,} bytes of RAM |
| `{name}.tflite`, `{name}.json` | the same model as a file, and its inputs, outputs, scales and zero points |
| `vectors/` | inputs and the outputs that they must give, as raw little-endian numbers |

```cpp
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"
#include "{name}_model.h"
#include "{name}_ops.h"

alignas(16) static uint8_t arena[k{camel}ArenaBytes];

static {camel}OpResolver resolver;
Register{camel}Ops(resolver);
static tflite::MicroInterpreter interpreter(tflite::GetModel({name}_model), resolver, arena, sizeof(arena));
interpreter.AllocateTensors();
// Fill interpreter.input(0)->data.int8, then:
interpreter.Invoke();
// Read interpreter.output(0)->data.int8.
```

The outputs in `vectors/` are those of LiteRT's reference kernels. Optimized kernels may differ by one step.
"""
