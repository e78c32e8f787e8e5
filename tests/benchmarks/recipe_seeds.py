"""A recipe over several seeds: mean and spread of what it promises.

    python tests/benchmarks/recipe_seeds.py configs/digits.yaml --seeds 3 --out runs/digits-seeds
    python tests/benchmarks/recipe_seeds.py configs/mnist.yaml --seeds 3 --out runs/mnist-seeds --set data.data_dir=DIR

Writes `figures.json` beside the runs: for each seed the teacher's and the exported file's accuracy and bytes, the share
of zeros among the pruned kernels of the exported file, and its parity with the Keras model on test samples.
"""

import argparse
from pathlib import Path

import numpy as np
from file_parity import parity

import tfcompress as tfc
from tfcompress.bridge.load import load
from tfcompress.files import write_json
from tfcompress.pipeline.inputs import load_data
from tfcompress.techniques.prune import prunable_kernels


def figures(recipe, out):
    result = tfc.run(recipe, out, progress=True)
    rows = {row.stage: row for row in result.rows}
    last, teacher = rows["export-int8"], rows["teacher"]
    model = load(sorted((out / "stages").glob("*quantize"))[0] / "model.keras")
    return {
        "seed": recipe.seed,
        "teacher_accuracy": teacher.accuracy,
        "int8_accuracy": last.accuracy,
        "points_lost": 100 * (teacher.accuracy - last.accuracy),
        "teacher_float_bytes": teacher.file_bytes,
        "int8_bytes": last.file_bytes,
        "int8_gzip_bytes": last.gzip_bytes,
        "times_smaller": teacher.file_bytes / last.file_bytes,
        "pruned_zeros_in_file": pruned_zeros(result.exports["int8"], model),
        "parity": parity(model, result.exports["int8"], load_data(recipe.data)),
        "seconds": sum(row.seconds for row in result.rows),
    }


def pruned_zeros(path, model):
    """Share of zeros, in the exported integers, of the kernels that pruning is for."""
    file = tfc.audit_tflite(path.read_bytes())
    kernels = [constant for constant in file.weights if constant.role == "kernel"]
    layers = [layer for layer in model.layers if getattr(layer, "kernel", None) is not None]
    pruned = {kernel.layer.name for kernel in prunable_kernels(model)}
    # Both list kernels in the order in which they run, and a chain has only one such order.
    zeros = total = 0
    for layer, kernel in zip(layers, kernels, strict=True):
        assert layer.kernel.shape.num_elements() == np.prod(kernel.shape), "not the same kernel"
        if layer.name in pruned:
            total += int(np.prod(kernel.shape))
            zeros += round(kernel.zeros * int(np.prod(kernel.shape)))
    return zeros / total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        recipe = tfc.load_recipe(args.recipe, [*args.set, f"seed={seed}"])
        rows.append(figures(recipe, args.out / f"seed{seed}"))
        keys = [key for key, value in rows[0].items() if isinstance(value, float | int) and key != "seed"]
        summary = {
            key: {"mean": float(np.mean([row[key] for row in rows])), "std": float(np.std([row[key] for row in rows]))}
            for key in keys
        }
        write_json(args.out / "figures.json", {"recipe": args.recipe, "rows": rows, "summary": summary})
        print(rows[-1], flush=True)
    print(summary)


if __name__ == "__main__":
    main()
