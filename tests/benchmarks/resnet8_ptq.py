"""CIFAR-10 ResNet-8 of MLPerf Tiny to int8 and to 4-bit kernels without training: every method, in LiteRT.

    python tests/benchmarks/resnet8_ptq.py --model resnet8_cifar10.h5 --data_dir DIR --out resnet8_ptq.json

Calibration pictures are of the training split, without 5,000 that are held out. On those, methods are chosen: by the
share whose top class is that of the float model, since the model has seen their labels in its training. The test split
chooses nothing.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import tfcompress as tfc
from tfcompress.files import write_json

NOTHING = {"bias_correction": False}
# In the order in which they build on each other.
METHODS = {
    "converter": None,
    "min_max": {"method": "min_max", **NOTHING},
    "percentile 99.99": {"method": "percentile", "percentile": 99.99, **NOTHING},
    "percentile 99.999": {"method": "percentile", "percentile": 99.999, **NOTHING},
    "mse": {"method": "mse", **NOTHING},
    "mse, biases": {"method": "mse"},
    "mse, biases, rounding": {"method": "mse", "learned_rounding": True},
    "W4 mse": {"weight_bits": 4, "method": "mse", **NOTHING},
    "W4 mse, biases": {"weight_bits": 4, "method": "mse"},
    "W4 mse, biases, rounding": {"weight_bits": 4, "method": "mse", "learned_rounding": True},
}


def run(name, options, model, data, held_out, folder):
    started = time.monotonic()
    quantized = model if options is None else tfc.quantize_post_training(model, data, progress=True, **options)
    seconds = time.monotonic() - started
    path = folder / f"{name.replace(' ', '_').replace(',', '')}.tflite"
    exported = tfc.export_tflite(quantized, path, calibration=data)
    pictures, float_classes = held_out
    same = tfc.TFLiteRunner(path).predict(pictures).argmax(-1) == float_classes
    figures = {
        "method": name,
        "held_out_same_class": float(same.mean()),
        "test_accuracy": tfc.evaluate(path, data).accuracy,
        "file_bytes": exported.file_bytes,
        "gzip_bytes": exported.gzip_bytes,
        "quantize_seconds": round(seconds, 1),
    }
    print(json.dumps(figures), flush=True)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("resnet8_ptq.json"))
    args = parser.parse_args()
    data = tfc.load_dataset(
        "cifar10", data_dir=args.data_dir, download=False, input_range=(0, 255), validation_fraction=0.1
    )
    model = tfc.load(args.model)
    pictures = np.concatenate([x.numpy() for x, _ in data.batches("validation", 500)])
    held_out = (pictures, model.predict(pictures, batch_size=250, verbose=0).argmax(-1))
    rows = [run(name, METHODS[name], model, data, held_out, args.out.parent) for name in args.methods]
    write_json(args.out, {"float_accuracy": tfc.evaluate(model, data).accuracy, "rows": rows})


if __name__ == "__main__":
    main()
