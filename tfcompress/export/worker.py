"""The conversion worker: a process of its own that turns SavedModels into TFLite bytes, one job per line of JSON.

It runs as a script, never as an import, so that neither Keras nor this package is loaded beside TensorFlow. The first
line it sends is `{"ready": true}`; then each line read is a job and each line sent is its answer.

Invariant: nothing but answers goes to the pipe of the parent; whatever Python or C++ prints goes to stderr, which the
parent captures. The process ends when its parent does: a thread waits for the end of the job pipe, and an alarm that
needs no interpreter ends a job that hangs inside C++. Left out: restarts and timeouts of the parent's side, which are
`converter.py`'s.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

# The parent gives up first; this only has to end a worker whose parent is gone.
SECONDS_AFTER_THE_PARENT = 30


def take_pipes() -> tuple[IO[str], IO[str]]:
    """Moves the parent's pipes away from file descriptors 0 and 1, so that no print can corrupt the protocol."""
    jobs = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return jobs, answers


def read_jobs(lines: IO[str], jobs: queue.Queue[dict[str, Any]], current: dict[str, Any]) -> None:
    """Queues each job; at the end of the pipe the parent is gone or done, and so is this process."""
    for line in lines:
        jobs.put(json.loads(line))
    # A parent that was killed could not remove the job's folder.
    if "folder" in current:
        shutil.rmtree(current["folder"], ignore_errors=True)
    os._exit(0)


def convert(job: dict[str, Any]) -> None:
    """Converts `job["saved_model"]` and writes the bytes at `job["output"]`.

    Keys of the job: `saved_model`, `signature`, `output` (paths and a name), `settings` (of the mode, see `modes.py`),
    `sparse` (whether zeros are left out of the file), `calibration` (path of an .npz with one array `(samples, ...)`
    per input, called `input:<name>`, or None where there are no ranges to find), and `calibrate_only` (whether to stop
    before the quantization, at a float file that holds the ranges).
    """
    import numpy as np
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(job["saved_model"], signature_keys=[job["signature"]])
    settings = job["settings"]
    if settings["optimize"]:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if job["sparse"]:
        converter.optimizations = [*converter.optimizations, tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    converter.target_spec.supported_types = [getattr(tf, name) for name in settings["supported_types"]]
    if job["calibration"] is not None:
        with np.load(job["calibration"]) as arrays:
            samples = {name.removeprefix("input:"): arrays[name] for name in arrays.files}
        count = min(len(array) for array in samples.values())
        converter.representative_dataset = lambda: (
            {name: array[index : index + 1] for name, array in samples.items()} for index in range(count)
        )
        # Without calibration the converter refuses this set, although fake-quant gives it all it needs.
        converter.target_spec.supported_ops = [getattr(tf.lite.OpsSet, settings["supported_ops"])]
        converter._experimental_calibrate_only = job["calibrate_only"]
    if settings["io"] not in (None, "float32"):
        converter.inference_input_type = converter.inference_output_type = getattr(tf, settings["io"])
    content = converter.convert()
    Path(job["output"]).write_bytes(content)


def requantize(job: dict[str, Any]) -> None:
    """Quantizes what a conversion with `calibrate_only` wrote, which takes hundredths of a second.

    Keys of the job: `calibrated`, `output` (paths), `keep_float` (names of the nodes to leave in float; a node has the
    name of its first result), `io` ("int8" or "float32").
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize

    io = tf.int8 if job["io"] == "int8" else tf.float32
    content = mlir_quantize(
        Path(job["calibrated"]).read_bytes(),
        input_data_type=io,
        output_data_type=io,
        denylisted_nodes=job["keep_float"],
    )
    Path(job["output"]).write_bytes(content)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one job and says how it went; whatever Python raises becomes part of the answer."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(job["timeout"]) + SECONDS_AFTER_THE_PARENT)
    try:
        TASKS[job.get("task", "convert")](job)
    except Exception as error:  # noqa: BLE001 - the boundary of the process: the parent turns it into ExportError
        return {"ok": False, "kind": type(error).__name__, "message": str(error)}
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)
    return {"ok": True}


def invoke(job: dict[str, Any]) -> None:
    """Loads a file in LiteRT and runs it once on zeros, where a crash harms nobody.

    Keys of the job: `file` (its path), `resolver` (name of LiteRT's `OpResolverType`), `output` (path of an empty file
    that says it ran).
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = getattr(OpResolverType, job["resolver"])
    interpreter = Interpreter(model_path=job["file"], experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    for details in interpreter.get_input_details():
        interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    interpreter.invoke()
    Path(job["output"]).touch()


TASKS = {"convert": convert, "requantize": requantize, "invoke": invoke}


def main() -> None:
    """Imports TensorFlow, then answers jobs until the parent closes the pipe."""
    lines, answers = take_pipes()
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    current: dict[str, Any] = {}
    threading.Thread(target=read_jobs, args=(lines, jobs, current), daemon=True).start()

    import faulthandler

    faulthandler.enable()
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    print(json.dumps({"ready": True}), file=answers)
    while True:
        job = jobs.get()
        current["folder"] = job["folder"]
        reply = answer(job)
        current.clear()
        print(json.dumps(reply), file=answers)


if __name__ == "__main__":
    # A script's folder comes first on the path; here it would shadow packages that are called like our modules.
    del sys.path[0]
    main()
