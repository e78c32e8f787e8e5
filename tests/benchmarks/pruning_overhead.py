"""What pruning costs: steps of ResNet-8 with `WeightPruning` against plain `fit`, in turns, for every criterion.

    python tests/benchmarks/pruning_overhead.py --rounds 5 --out pruning_overhead.json

Each round fits the same model for as many steps once plain and once with each criterion, in an order that turns; the
figures are the medians over rounds of the ratios of both times, by the clock and by the process's CPU time, which
other programs on the machine disturb less. The schedule prunes every 50 steps, as a recipe does in 2,500.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from step_clock import step_clock

import tfcompress as tfc
from tfcompress.files import write_json
from tfcompress.techniques.prune import CRITERIA
from tfcompress.techniques.schedules import tfmot_schedules

BATCH = 32


def make():
    model = tfc.build_model("resnet", input_shape=(32, 32, 3), num_classes=10, depth=8)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def cases(names):
    """What is timed: each criterion, and by magnitude a pattern and regrowth."""
    every = {name: {"criterion": name} for name in CRITERIA}
    every |= {"l1 2:4": {"pattern": "2:4"}, "l1 regrow": {"regrow": 0.3}}
    return {name: every[name] for name in names or every}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("pruning_overhead.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(BATCH * args.steps, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, size=BATCH * args.steps)
    pruned = cases(args.cases)
    names = ["plain", *pruned]
    models = {name: make() for name in names}
    times = {name: [] for name in names}
    for number in range(args.rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            model, clock = models[name], step_clock(keras)
            callbacks = [clock]
            if name != "plain":
                start = int(model.optimizer.iterations.numpy())
                final = 0.5 if "pattern" in pruned[name] else 0.8
                schedule = tfmot_schedules().PolynomialDecay(0.0, final, start, start + args.steps - 50, frequency=50)
                callbacks = [tfc.WeightPruning(model, schedule, **pruned[name]), clock]
            model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=callbacks)
            times[name].append(clock.seconds)
        print(number, {name: np.round(values[-1], 2).tolist() for name, values in times.items()}, flush=True)
    plain = np.array(times["plain"])
    result = {"step_ms_plain": 1000 * float(np.median(plain[:, 0])) / (args.steps - 2)}
    result |= {"rounds": args.rounds, "steps": args.steps, "batch": BATCH}
    for name in pruned:
        ratios = np.array(times[name]) / plain
        result[name] = {
            "median_ratio": float(np.median(ratios[:, 0])),
            "quartiles": [float(value) for value in np.quantile(ratios[:, 0], [0.25, 0.75])],
            "cpu_median_ratio": float(np.median(ratios[:, 1])),
            "cpu_quartiles": [float(value) for value in np.quantile(ratios[:, 1], [0.25, 0.75])],
        }
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
