"""Files with 4-bit kernels without training: those of ai-edge-quantizer beside ours, bytes and accuracy. See
docs/export.md.

    pip install ai-edge-quantizer
    python tests/benchmarks/int4_files.py MODEL --data cifar10 --data_dir DIR --input_range 0,255

All are calibrated on the same training samples and read at the end on the test split. Our command `slim` takes each
file of theirs too, so that the bytes compare kernels and not debug names.
"""

import argparse
import gzip
import tempfile
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer

import tfcompress as tfc

SAMPLES = 500
ALL = qtyping.TFLOperationName.ALL_SUPPORTED


def theirs(kind, algorithm):
    """Writes a file of ai-edge-quantizer: `(float file, calibration samples, path) -> None`."""

    def write(float_file, samples, path):
        made = quantizer.Quantizer(str(float_file))
        calibrated = None
        if kind == "static":
            made.add_static_config(".*", ALL, 8, 4, algorithm_key=algorithm)
            calibrated = made.calibrate(
                {name: [{only: one[None]} for one in samples] for name, only in inputs_of(float_file).items()}
            )
        elif kind == "weight-only":
            made.add_weight_only_config(".*", ALL, 4, algorithm_key=algorithm)
        else:
            made.add_dynamic_config(".*", ALL, 4, algorithm_key=algorithm)
        path.write_bytes(made.quantize(calibrated, enable_progress_report=False).quantized_model)

    return write


def inputs_of(path):
    """The name of the only input of each signature of a file."""
    signatures = Interpreter(str(path)).get_signature_list()
    return {name: signature["inputs"][0] for name, signature in signatures.items()}


def ours(**options):
    """Writes a file of ours: `(model, calibration samples, path) -> None`; without options, by mode "int4"."""

    def write(model, samples, path):
        if options:
            model = tfc.quantize_post_training(model, samples, **options, progress=False)
            tfc.export_tflite(model, path, calibration=samples)
        else:
            tfc.export_tflite(model, path, mode="int4", calibration=samples)

    return write


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data_dir")
    parser.add_argument("--input_range", default="0,1")
    values = parser.parse_args()
    low, high = map(float, values.input_range.split(","))
    data = tfc.load_dataset(values.data, data_dir=values.data_dir, download=False, input_range=(low, high))
    model = tfc.load(values.model)
    batches = [x for x, _ in data.batches("train", SAMPLES).take(1).as_numpy_iterator()]
    samples = np.concatenate(batches)[:SAMPLES].astype("float32")
    rivals = {
        f"ai-edge-quantizer, {kind}, {algorithm}": theirs(kind, algorithm)
        for kind in ("static", "weight-only", "dynamic")
        for algorithm in ("min_max_uniform_quantize", "OCTAV", "MSE")
    }
    own = {
        "ours, mode `int4`": ours(),
        "ours, 4 bits post training": ours(weight_bits=4),
        "ours, the same with learned rounding": ours(weight_bits=4, learned_rounding=True),
    }
    print("| file | bytes | slimmed | after gzip | accuracy | seconds |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        float_file, path, slim = (Path(folder) / f"{name}.tflite" for name in ("float", "made", "slim"))
        tfc.export_tflite(model, float_file, mode="float32", slim=False)  # Theirs needs the names of its tensors.
        for name, write in {**own, **rivals}.items():
            at = time.perf_counter()
            try:
                write(*((float_file, samples) if name in rivals else (model, samples)), path)
            except Exception as error:  # noqa: BLE001 - what a rival raises is its result
                print(f"| {name} | {type(error).__name__}: {str(error)[:200]!r} |", flush=True)
                continue
            seconds = time.perf_counter() - at
            tfc.slim_tflite(path, slim)
            packed = len(gzip.compress(slim.read_bytes(), 9))
            accuracy = tfc.evaluate(slim, data).accuracy
            sizes = " | ".join(f"{one:,}" for one in (path.stat().st_size, slim.stat().st_size, packed))
            print(f"| {name} | {sizes} | {accuracy:.4f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
