"""What quantization-aware training costs: steps of ResNet-8 with fake quantization against float ones, in turns; and
TFMOT's quantization-aware model of the same weights against its float tf_keras model, in the same rounds.

    python tests/benchmarks/quantize_overhead.py --rounds 9 --out quantize_overhead.json

Figures are medians over rounds of the ratios of both times, in a round each; by the clock, and of the processor's time,
which other processes on the machine disturb less. TFMOT's model is made and trained in tf_keras, over the bridge.
"""

import argparse
from pathlib import Path

import numpy as np
from step_clock import step_clock

import tfcompress as tfc
from tfcompress.files import write_json

BATCH = 32


def compiled(library, model):
    model.compile(library.optimizers.SGD(1e-3), library.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("quantize_overhead.json"))
    args = parser.parse_args()
    import keras
    import tf_keras

    from tfcompress.techniques.tfmot.quantize import make_aware

    rng = np.random.default_rng(0)
    x = rng.uniform(size=(BATCH * args.steps, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, size=BATCH * args.steps)
    model = tfc.build_model("resnet", input_shape=(32, 32, 3), num_classes=10, depth=8)
    legacy, tfmot, _, _ = make_aware(model, "default", (), False, None)
    models = {
        "float": (keras, compiled(keras, model)),
        "ours": (keras, compiled(keras, tfc.quantize_aware(model, x[:256]))),
        "tf_keras": (tf_keras, compiled(tf_keras, legacy)),
        "tfmot": (tf_keras, compiled(tf_keras, tfmot)),
    }
    times = {name: [] for name in models}
    for number in range(args.rounds + 1):
        for name in models if number % 2 == 0 else reversed(models):
            library, one = models[name]
            clock = step_clock(library)
            one.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[clock])
            times[name].append(clock.seconds)
        print(number, {name: values[-1].round(3).tolist() for name, values in times.items()}, flush=True)
    # The first round warms up.
    seconds = {name: np.array(values[1:]) for name, values in times.items()}
    pairs = {"ours": ("ours", "float"), "tfmot": ("tfmot", "tf_keras"), "ours_against_tfmot": ("ours", "tfmot")}
    result = {"rounds": args.rounds, "steps": args.steps, "batch": BATCH}
    for name, (one, other) in pairs.items():
        ratios = seconds[one] / seconds[other]
        for at, kind in enumerate(("clock", "processor")):
            result[f"{name}_{kind}"] = [float(value) for value in np.quantile(ratios[:, at], [0.5, 0.25, 0.75])]
    medians = {name: np.median(values, axis=0) for name, values in seconds.items()}
    result["step_ms"] = {name: (1000 * one / (args.steps - 2)).tolist() for name, one in medians.items()}
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
