"""A `.tflite` file as an app for Android takes it: with metadata and labels, and Kotlin that runs it.

The Kotlin is on LiteRT's `CompiledModel` (https://ai.google.dev/edge/litert/next/android_kotlin).

Invariant: names, shapes, scales and zero points in the Kotlin are those of the file. Left out: the app around it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfcompress.errors import ExportError

LITERT = "com.google.ai.edge.litert:litert:2.1.0"
# What TensorBuffer of LiteRT's Kotlin API writes and reads: method, type of the array.
_ACCESS = {"float32": ("Float", "FloatArray"), "int8": ("Int8", "ByteArray"), "int32": ("Int", "IntArray"),
           "bool": ("Boolean", "BooleanArray")}  # fmt: skip


def android_files(described: Mapping[str, Any], stem: str, labels_name: str | None) -> dict[str, str]:
    """The Kotlin and README for a file.

    Args:
        described: What `sidecar.describe_file` says of the file.
        stem: What the files are called after.
        labels_name: Name of the label file, None without one.

    Returns:
        Text by file name.

    Raises:
        ExportError: If an input or output has a type that LiteRT's Kotlin API does not write or read.
    """
    causes = [
        f"'{tensor['name']}' is {tensor['dtype']}; remedy: int8 or float32 inputs and outputs"
        for tensor in [*described["inputs"], *described["outputs"]]
        if tensor["dtype"] not in _ACCESS
    ]
    if causes:
        raise ExportError(f"LiteRT's Kotlin API takes {', '.join(_ACCESS)} only.", causes)
    class_name = "".join(part[:1].upper() + part[1:] for part in _words(stem)) or "Model"
    class_name = class_name if class_name[0].isalpha() else f"Model{class_name}"
    kotlin = _kotlin(described, class_name, labels_name)
    return {f"{class_name}.kt": kotlin, "README.md": _readme(described, class_name, labels_name)}


def _kotlin(described: Mapping[str, Any], class_name: str, labels_name: str | None) -> str:
    inputs, outputs = described["inputs"], described["outputs"]
    writes = [f"    {_write(tensor, position)}" for position, tensor in enumerate(inputs)]
    arguments = ", ".join(f"input{position}: {_argument(tensor)}" for position, tensor in enumerate(inputs))
    reads = [_read(tensor) for tensor in outputs]
    result = _result(outputs[0])
    value = reads[0]
    if len(outputs) > 1:
        result, value = "List<Any>", f"listOf({', '.join(reads)})"
    labels = ""
    if labels_name is not None:
        labels = (
            "\n  /** The name of each class, in the order of the output. */\n"
            f"  val labels: List<String> = context.assets.open({_text(labels_name)}).bufferedReader().use "
            "{ it.readLines() }\n"
        )
    return _KOTLIN.format(
        class_name=class_name,
        file=_text(described["file"]),
        plain_file=described["file"],
        inputs=_buffers("Input", inputs),
        outputs=_buffers("Output", outputs),
        labels=labels,
        documentation="\n".join(_document(described)),
        arguments=arguments,
        result=result,
        writes="\n".join(writes),
        value=value,
        helpers=_HELPERS if any(_is_quantized(tensor) for tensor in [*inputs, *outputs]) else "",
    )


def _buffers(kind: str, tensors: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{_text(tensor['name'])} to model.create{kind}Buffer({_text(tensor['name'])})" for tensor in tensors
    )


def _document(described: Mapping[str, Any]) -> list[str]:
    lines = []
    for position, tensor in enumerate(described["inputs"]):
        shape = "x".join(map(str, tensor["shape"]))
        size = math.prod(tensor["shape"])
        lines.append(f"   * @param input{position} {size} values of shape {shape} (channels last).")
    preprocessing = described["preprocessing"]
    if preprocessing is not None:
        lines.append(f"   * Pixels of 0 to 255 become (pixel - {preprocessing['mean']}f) / {preprocessing['std']}f.")
    return lines


def _is_quantized(tensor: Mapping[str, Any]) -> bool:
    return tensor["dtype"] == "int8" and tensor["scale"] is not None


def _argument(tensor: Mapping[str, Any]) -> str:
    return "FloatArray" if _is_quantized(tensor) else _ACCESS[tensor["dtype"]][1]


_result = _argument


def _write(tensor: Mapping[str, Any], position: int) -> str:
    value = f"input{position}"
    if _is_quantized(tensor):
        value = f"quantize({value}, {_float(tensor['scale'])}, {tensor['zero_point']})"
    return f"inputs.getValue({_text(tensor['name'])}).write{_ACCESS[tensor['dtype']][0]}({value})"


def _read(tensor: Mapping[str, Any]) -> str:
    value = f"outputs.getValue({_text(tensor['name'])}).read{_ACCESS[tensor['dtype']][0]}()"
    if _is_quantized(tensor):
        return f"dequantize({value}, {_float(tensor['scale'])}, {tensor['zero_point']})"
    return value


def _float(value: float) -> str:
    """Enough digits that Kotlin reads the same float32."""
    return f"{value:.9g}f"


def _text(value: str) -> str:
    """A string of Kotlin, which knows the escapes of JSON but takes `$` for a reference."""
    return json.dumps(value).replace("$", "\\$")


def _words(stem: str) -> list[str]:
    return "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in stem).split()


def _readme(described: Mapping[str, Any], class_name: str, labels_name: str | None) -> str:
    labels = (
        "" if labels_name is None else f"| `{labels_name}` | the name of each class; also inside the model file |\n"
    )
    assets = described["file"] if labels_name is None else f"{described['file']}` and `{labels_name}"
    stem = described["file"].removesuffix(".tflite")
    return _README.format(
        class_name=class_name, file=described["file"], stem=stem, bytes=described["bytes"], labels=labels,
        assets=assets, litert=LITERT,
    )  # fmt: skip


_KOTLIN = """// The package of your app goes here.

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.sign

/** Runs {plain_file} from the app's assets. Not safe for several threads at once. */
class {class_name}(context: Context) : AutoCloseable {{
  private val model =
    CompiledModel.create(context.assets, {file}, CompiledModel.Options(Accelerator.CPU))
  private val inputs = mapOf({inputs})
  private val outputs = mapOf({outputs})
{labels}
  /**
{documentation}
   */
  fun run({arguments}): {result} {{
{writes}
    model.run(inputs, outputs)
    return {value}
  }}

  override fun close() {{
    (inputs.values + outputs.values).forEach {{ it.close() }}
    model.close()
  }}
{helpers}}}
"""
_HELPERS = """
  private fun quantize(values: FloatArray, scale: Float, zeroPoint: Int) =
    ByteArray(values.size) {
      val ratio = values[it] / scale
      val rounded = sign(ratio) * floor(abs(ratio) + 0.5f)
      (rounded + zeroPoint).coerceIn(-128f, 127f).toInt().toByte()
    }

  private fun dequantize(values: ByteArray, scale: Float, zeroPoint: Int) =
    FloatArray(values.size) { (values[it] - zeroPoint) * scale }
"""
_README = """# {stem} for Android

| file | what it is |
|---|---|
| `{file}` | the model, {bytes:,} bytes, with TensorFlow Lite Metadata |
{labels}| `{class_name}.kt` | runs it, on LiteRT's `CompiledModel` |
| `{stem}.json` | inputs, outputs, scales, zero points, labels, preprocessing, SHA-256 |
| `vectors/` | inputs and the outputs that they must give, as raw little-endian numbers |

1. Put `{assets}` into `app/src/main/assets/`. Android's build tools leave `.tflite` files uncompressed there.
2. Add LiteRT to `app/build.gradle.kts`:

   ```kotlin
   dependencies {{ implementation("{litert}") }}
   ```

3. Put `{class_name}.kt` beside your code, with your package, and run it away from the main thread:

   ```kotlin
   {class_name}(context).use {{ model -> val scores = model.run(pixels) }}
   ```

For a test on the device, write a vector's input to the model and compare its output: the machine of the export ran it
with XNNPACK, as phones do; integers may differ by one step.
"""
