"""What the pruning callback costs: steps of ResNet-8 with `MagnitudePruning` against plain `fit`, in turns.

    python tests/benchmarks/pruning_overhead.py --rounds 9 --out pruning_overhead.json

Each round fits the same model for as many steps once plain, once pruned, in an order that alternates; the figure is the
median over rounds of the ratio of both times. The schedule prunes every 50 steps, as a recipe does in 2,500.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np

import tfcompress as tfc
from tfcompress.files import write_json
from tfcompress.techniques.schedules import tfmot_schedules

BATCH = 32


def make():
    model = tfc.build_model("resnet", input_shape=(32, 32, 3), num_classes=10, depth=8)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class StepClock(keras.callbacks.Callback):
    """Time from the end of the first step, which compiles, to the end of the last."""

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if batch == 0:
            self.started = now
        self.seconds = now - self.started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("pruning_overhead.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(BATCH * args.steps, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, size=BATCH * args.steps)
    plain, pruned = make(), make()
    times = {"plain": [], "pruned": []}
    for number in range(args.rounds):
        for name in ("plain", "pruned") if number % 2 == 0 else ("pruned", "plain"):
            clock = StepClock()
            callbacks = [clock]
            model = plain
            if name == "pruned":
                model = pruned
                start = int(pruned.optimizer.iterations.numpy())
                schedule = tfmot_schedules().PolynomialDecay(0.0, 0.8, start, start + args.steps - 50, frequency=50)
                callbacks = [tfc.MagnitudePruning(pruned, schedule), clock]
            model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=callbacks)
            times[name].append(clock.seconds)
        print(number, {name: round(values[-1], 3) for name, values in times.items()}, flush=True)
    ratios = np.array(times["pruned"]) / np.array(times["plain"])
    result = {
        "median_ratio": float(np.median(ratios)),
        "quartiles": [float(value) for value in np.quantile(ratios, [0.25, 0.75])],
        "step_ms_plain": 1000 * float(np.median(times["plain"])) / (args.steps - 1),
        "rounds": args.rounds,
        "steps": args.steps,
        "batch": BATCH,
    }
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
