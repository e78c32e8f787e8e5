"""LeNet-300-100 on MNIST with 4 times fewer parameters by truncated SVD: accuracy before, right after, and fine-tuned.

    python tests/benchmarks/factorize_lenet300.py --data_dir DIR --seeds 3 --out factorize_lenet300.json

Trains 784-300-100-10 without augmentation, factorizes it to a quarter of its parameters, and fine-tunes that, on
labels alone and under the whole network. All trainings keep the epoch that is best on validation (6,000 of the training
pictures), which chose the learning rate, too; the test split is read at the end only, and chooses nothing.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import keras
import numpy as np

import tfcompress as tfc
from tfcompress.files import write_json
from tfcompress.report.plots import kept_energy

BATCH = 128
# An epoch has 422 steps.
COMMON = {"schedule": "cosine", "keep": "best", "steps_per_execution": 211}
TRAIN = tfc.TrainSettings(epochs=20, learning_rate=1e-3, **COMMON)
FINE_TUNE = tfc.TrainSettings(epochs=15, learning_rate=1e-3, **COMMON)


def train(model, data, settings, seed, label, teacher=None):
    def taught(student):
        return tfc.Distiller(student, tfc.Teacher(teacher), [tfc.SoftTargets(temperature=4.0, weight=0.9)])

    wrap = None if teacher is None else taught
    return tfc.fit(model, data, settings, batch_size=BATCH, seed=seed, wrap=wrap, label=f"seed {seed}, {label}")


def run(args, data, seed):
    keras.utils.set_random_seed(seed)
    start = tfc.build_model("mlp", input_shape=data.input_shape, num_classes=data.num_classes, widths=(300, 100))
    whole = train(start, data, TRAIN, seed, "whole")
    plan = tfc.factorization_plan(whole.model, params=args.params)
    factors = tfc.factorize(whole.model, params=args.params)
    tuned = train(factors, data, FINE_TUNE, seed, "on labels")
    taught = train(factors, data, FINE_TUNE, seed, "under the whole network", whole.model)
    print(plan, flush=True)
    kept_energy(plan.rows()).savefig(args.out.with_suffix(f".{seed}.png"))
    models = {"whole": whole.model, "factorized": factors, "fine_tuned": tuned.model, "taught": taught.model}
    accuracy = {name: tfc.evaluate(model, data).accuracy for name, model in models.items()}
    trained = {"whole": whole, "fine_tuned": tuned, "taught": taught}
    figures = {
        "seed": seed,
        "accuracy": accuracy,
        "points_lost": {name: 100 * (accuracy["whole"] - accuracy[name]) for name in models if name != "whole"},
        "validation_accuracy": {name: max(result.history["val_accuracy"]) for name, result in trained.items()},
        "num_params": {name: model.count_params() for name, model in models.items()},
        "layers": plan.rows(),
        "seconds": {name: result.seconds for name, result in trained.items()},
    }
    print(json.dumps({key: value for key, value in figures.items() if key != "layers"}, indent=1), flush=True)
    return figures


def summary(rows):
    return {
        figure: {
            name: {"mean": float(np.mean(values)), "std": float(np.std(values))}
            for name in rows[0][figure]
            if (values := [row[figure][name] for row in rows])
        }
        for figure in ("accuracy", "validation_accuracy", "points_lost")
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--params", type=float, default=0.25)
    parser.add_argument("--out", type=Path, default=Path("factorize_lenet300.json"))
    args = parser.parse_args()
    data = tfc.load_dataset("mnist", data_dir=args.data_dir, download=False)
    rows = []
    for seed in range(args.seeds):
        rows.append(run(args, data, seed))
        settings = {"train": dataclasses.asdict(TRAIN), "fine_tune": dataclasses.asdict(FINE_TUNE)}
        write_json(args.out, {"settings": settings, "rows": rows, "summary": summary(rows)})
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
