"""LeNet-5 on MNIST by unstructured pruning alone: gzip of its int8 file, and its error, over several seeds.

    python tests/benchmarks/prune_lenet5.py --out runs/prune-lenet5 --set data.data_dir=DIR data.download=false

Runs configs/prune_lenet5.yaml. Writes `figures.json` (each seed, mean, spread) and `layer_sparsity.png` (the zeros of
each layer, first seed) beside the runs.
"""

import argparse
from pathlib import Path

import numpy as np

import tfcompress as tfc
from tfcompress.files import write_json
from tfcompress.measure.size import layer_sparsity
from tfcompress.report import plots

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "prune_lenet5.yaml"


def figures(recipe, out):
    result = tfc.run(recipe, out)
    rows = {row.stage: row for row in result.rows}
    teacher, file = rows["teacher"], rows["export-int8"]
    zeros = layer_sparsity(result.model)
    if recipe.seed == 0:
        plots.layer_sparsity({"01-prune": zeros}).savefig(out.parent / "layer_sparsity.png")
    return {
        "seed": recipe.seed,
        "float_error": 1 - teacher.accuracy,
        "float_bytes": teacher.file_bytes,
        "int8_error": 1 - file.accuracy,
        "int8_bytes": file.file_bytes,
        "int8_gzip_bytes": file.gzip_bytes,
        "times_smaller": teacher.file_bytes / file.gzip_bytes,
        "zeros": zeros,
        "seconds": sum(row.seconds for row in result.rows),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        recipe = tfc.load_recipe(RECIPE, [*args.set, f"seed={seed}"])
        rows.append(figures(recipe, args.out / f"seed{seed}"))
        print(rows[-1], flush=True)
        names = [name for name, value in rows[0].items() if isinstance(value, float | int) and name != "seed"]
        summary = {name: [float(f([row[name] for row in rows])) for f in (np.mean, np.std)] for name in names}
        write_json(args.out / "figures.json", {"rows": rows, "mean_and_std": summary})
    print(summary)


if __name__ == "__main__":
    main()
