"""What simplification saves: parameters and MACs of the Keras model, bytes of the file.

    python tests/benchmarks/simplify.py --resnet8 resnet8_cifar10.h5

Prints the table of docs/simplify.md; about 10 minutes on two cores. Dead channels are made by setting a quarter of
each BatchNormalization's `gamma` to zero at random; those of a residual stage are dead only where all of its layers
agree.
"""

import argparse
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

import tfcompress as tfc


def settled(model, seed=0):
    """Statistics as training leaves them, at random."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "moving_variance" in variable.path or "gamma" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif "moving_mean" in variable.path or "beta" in variable.path:
            variable.assign(rng.normal(scale=0.1, size=variable.shape))
    return model


def with_dead_channels(model, share=0.25, seed=0):
    """A share of each normalization's channels without scale, and with an offset that a ReLU makes zero."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta = (keras.ops.convert_to_numpy(one).copy() for one in (layer.gamma, layer.beta))
            dead = rng.choice(len(gamma), int(share * len(gamma)), replace=False)
            gamma[dead], beta[dead] = 0, np.minimum(beta[dead], 0)
            layer.gamma.assign(gamma)
            layer.beta.assign(beta)
    return model


def mobilenet():
    return settled(keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10))


def row(name, model, pixels):
    started = time.perf_counter()
    _, certificate = tfc.simplify_with_certificate(model)
    seconds = time.perf_counter() - started
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("float32", "int8"):
            for simplify in (False, True):
                result = tfc.export_tflite(
                    model,
                    Path(folder) / "model.tflite",
                    mode=mode,
                    calibration=pixels,
                    parity_samples=16,
                    simplify=simplify,
                )
                files.append(result.file_bytes)
    before, after = zip(certificate.num_params, certificate.macs, strict=True)
    sizes = [f"{old:,} to {new:,}" for old, new in (*zip(before, after, strict=True), files[:2], files[2:])]
    print(f"| {name} | {' | '.join(sizes)} | {certificate.random_difference:.0e} | {seconds:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resnet8", required=True, help="the Keras model of MLPerf Tiny")
    path = parser.parse_args().resnet8
    rng = np.random.default_rng(0)
    print("| network | parameters | MACs | float32 file, B | int8 file, B | largest difference | seconds |")
    print("|---|---|---|---|---|---|---|")
    small, large = (rng.uniform(0, high, (64, size, size, 3)).astype("float32") for size, high in ((32, 255), (96, 1)))
    row("ResNet-8", tfc.load(path), small)
    row("ResNet-8, dead channels", with_dead_channels(tfc.load(path)), small)
    row("MobileNetV2 0.35, 96x96", mobilenet(), large)
    row("MobileNetV2 0.35, 96x96, dead channels", with_dead_channels(mobilenet()), large)


if __name__ == "__main__":
    main()
