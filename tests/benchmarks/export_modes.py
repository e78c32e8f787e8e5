"""Every mode of export on one model: bytes, agreement with Keras per kernel set, top class. See docs/export.md.

    python tests/benchmarks/export_modes.py MODEL --data cifar10 --data_dir DIR --input_range 0,255

About a minute on two cores for ResNet-8.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tfcompress as tfc
from tfcompress.export.modes import MODES


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data_dir")
    parser.add_argument("--input_range", default="0,1")
    parser.add_argument("--accuracy", action="store_true", help="also the accuracy on the test split")
    values = parser.parse_args()
    low, high = map(float, values.input_range.split(","))
    data = tfc.load_dataset(values.data, data_dir=values.data_dir, download=False, input_range=(low, high))
    model = tfc.load(values.model)
    print("| `mode` | bytes | after gzip | SNR (dB): default, none, reference | same top class | accuracy |")
    print("|---|---|---|---|---|---|")
    for mode in MODES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = tfc.export_tflite(model, Path(folder) / "model.tflite", mode=mode, calibration=data)
            except tfc.ExportError as error:
                print(f"| `{mode}` | {error} |", flush=True)
                continue
            ratios = ", ".join(f"{agreement.snr_db:.1f}" for agreement in result.parity.agreements)
            top = min(agreement.top1 for agreement in result.parity.agreements)
            accuracy = f"{tfc.evaluate(result.path, data).accuracy:.4f}" if values.accuracy else ""
            sizes = f"{result.file_bytes:,} | {result.gzip_bytes:,}"
            print(f"| `{mode}` | {sizes} | {ratios} | {top:.3f} | {accuracy} |", flush=True)


if __name__ == "__main__":
    main()
