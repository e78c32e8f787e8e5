"""What a training step of ResNet-8 takes: Keras's own model, and the replica that `tfcompress.training` trains in its
place, in float32 and in half precision.

    python tests/benchmarks/training_step.py --rounds 5 --out training_step.json

Each round fits every case for as many steps on the same pictures, in an order that turns. Figures are medians and
quartiles over rounds of the ratios to Keras's own float32 step, by the clock and of the processor's time, which other
processes disturb less, and images per second of processor time. Half precision pays where the processor computes in it:
`lscpu` names `amx_bf16` or `avx512_bf16` for bfloat16.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from step_clock import step_clock

import tfcompress as tfc
from tfcompress.files import write_json
from tfcompress.training.copying import copy_model

CASES = {
    "Keras": ("float32", False),
    "Keras, mixed_bfloat16": ("mixed_bfloat16", False),
    "replica": ("float32", True),
    "replica, mixed_bfloat16": ("mixed_bfloat16", True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("training_step.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    count = args.batch_size * args.steps
    x, y = rng.uniform(size=(count, 32, 32, 3)).astype("float32"), rng.integers(0, 10, size=count)
    model = tfc.build_model("resnet", input_shape=(32, 32, 3), num_classes=10, depth=8)
    replicas = {name: copy_model(model, precision, fused=fused) for name, (precision, fused) in CASES.items()}
    for replica in replicas.values():
        replica.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    times = {name: [] for name in replicas}
    for number in range(args.rounds + 1):
        for name in replicas if number % 2 else reversed(replicas):
            clock = step_clock(keras)
            replicas[name].fit(x, y, batch_size=args.batch_size, verbose=0, callbacks=[clock])
            times[name].append(clock.seconds)
        print(number, {name: values[-1].round(2).tolist() for name, values in times.items()}, flush=True)
    # The first round warms up.
    seconds = {name: np.array(values[1:]) for name, values in times.items()}
    result = {"rounds": args.rounds, "steps": args.steps, "batch_size": args.batch_size}
    for name, found in seconds.items():
        result[name] = {"images_per_second": args.batch_size * (args.steps - 2) / float(np.median(found[:, 1]))}
        for at, kind in enumerate(("clock", "processor")):
            ratios = found[:, at] / seconds["Keras"][:, at]
            result[name][kind] = [float(value) for value in np.quantile(ratios, [0.5, 0.25, 0.75])]
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
