"""CIFAR-10 ResNet-8 of MLPerf Tiny to int8 by quantization-aware training: accuracy, size and parity of the exported
file.

    python tests/benchmarks/resnet8_qat.py --model resnet8_cifar10.h5 --data_dir DIR --seeds 3 --out resnet8_qat.json
    python tests/benchmarks/resnet8_qat.py ... --weight_bits 4 --learning_rate 5e-4 --out resnet8_w4a8.json

Trains 4 epochs of batch 128 (1,532 steps) on 49,000 of the training pictures, the other 1,000 being the validation
split; no teacher, BatchNormalization frozen. The test split is read at the end only, and chooses nothing.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
from file_parity import parity

import tfcompress as tfc
from tfcompress.files import write_json
from tfcompress.techniques.quantize import FreezeRanges, quantize_aware, round_biases
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit

BATCH = 128


def run(args, seed):
    data = tfc.load_dataset(
        "cifar10", data_dir=args.data_dir, download=False, input_range=(0, 255),
        augmentation=tfc.Augmentation(flip=True, crop=3), validation_fraction=0.02,
    )  # fmt: skip
    model = keras.saving.load_model(args.model, compile=False)
    keras.utils.set_random_seed(seed)
    aware = quantize_aware(model, data, weight_bits=args.weight_bits, calibration_samples=1000)
    # Before any training, 4 bits may fail the gate; that is a figure here, no error.
    before = tfc.export_tflite(aware, args.out.with_suffix(".before.tflite"), parity_samples=0)
    settings = TrainSettings(epochs=args.epochs, learning_rate=args.learning_rate, schedule="cosine")
    result = fit(
        aware, data, settings, batch_size=BATCH, seed=seed, label=f"seed {seed}",
        callbacks=lambda replica: [FreezeRanges(replica, after=0.8, batch_norm_after=0.0)],
    )  # fmt: skip
    round_biases(result.model)
    path = args.out.with_suffix(f".{seed}.tflite")
    exported = tfc.export_tflite(result.model, path, calibration=data)
    figures = {
        "seed": seed,
        "float_accuracy": tfc.evaluate(model, data).accuracy,
        "before_training_accuracy": tfc.evaluate(before.path, data).accuracy,
        "int8_accuracy": tfc.evaluate(path, data).accuracy,
        "qat_keras_accuracy": tfc.evaluate(result.model, data).accuracy,
        "file_bytes": exported.file_bytes,
        "gzip_bytes": exported.gzip_bytes,
        "seconds": result.seconds,
        "parity_1000_test": parity(result.model, path, data),
    }
    print(json.dumps(figures, indent=1), flush=True)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--weight_bits", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--out", type=Path, default=Path("resnet8_qat.json"))
    args = parser.parse_args()
    rows = [run(args, seed) for seed in range(args.seeds)]
    mean = float(np.mean([row["int8_accuracy"] for row in rows]))
    write_json(
        args.out,
        {"rows": rows, "mean_int8_accuracy": mean, "spread": float(np.std([row["int8_accuracy"] for row in rows]))},
    )
    print(f"int8 accuracy {mean:.4f} over {len(rows)} seeds")


if __name__ == "__main__":
    main()
