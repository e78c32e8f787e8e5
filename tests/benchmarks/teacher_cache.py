"""What a teacher costs: steps of ResNet-8 under stored outputs, under the teacher itself and under Keras's `Distiller`,
against plain ones; and a first epoch that builds the cache against one without it.

    python tests/benchmarks/teacher_cache.py --teacher resnet_large_cifar10_float.tflite --out teacher_cache.json

Each round fits every case for an epoch on the same pictures, in an order that turns. Keras's `Distiller` takes Keras
models only, so it and ours also have a ResNet-20 as teacher. Figures are medians and quartiles over rounds of ratios of
both times, by the clock and of the processor's time, which other processes on the machine disturb less. Also written:
the bytes of a cache of 50,000 samples, 10 logits and 4 views.
"""

import argparse
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from step_clock import step_clock

import tfcompress as tfc
from tfcompress.files import write_json

BATCH = 128


def student():
    return tfc.build_model("resnet", input_shape=(32, 32, 3), num_classes=10, depth=8)


def compiled(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def cases(data, teacher, large, stored):
    """Name to a compiled model, and its batches for a number of an epoch."""
    losses = [tfc.SoftTargets(temperature=4.0, weight=0.9)]
    keras_distiller = keras.distillation.Distiller(
        teacher=large,
        student=student(),
        distillation_losses=keras.distillation.LogitsDistillation(temperature=4.0),
        student_loss_weight=0.1,
    )

    def plain(epoch):
        return data.train_batches(BATCH, seed=0, first_epoch=epoch, epochs=epoch + 1)

    def taught(epoch):
        return stored.train_batches(data, BATCH, seed=0, first_epoch=epoch, epochs=epoch + 1)

    return {
        "plain": (compiled(student()), plain),
        "stored": (compiled(tfc.Distiller(student(), stored, losses)), taught),
        "teacher file": (compiled(tfc.Distiller(student(), teacher, losses)), plain),
        "ResNet-20": (compiled(tfc.Distiller(student(), large, losses)), plain),
        "ResNet-20, Keras's": (compiled(keras_distiller), plain),
    }


def timed(action):
    before = np.array([time.perf_counter(), time.process_time()])
    result = action()
    return np.array([time.perf_counter(), time.process_time()]) - before, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("teacher_cache.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    count = BATCH * args.steps
    x, y = rng.integers(0, 256, (count + 100, 32, 32, 3), "uint8"), rng.permutation(np.arange(count + 100) % 10)
    augmentation = tfc.Augmentation(flip=True, crop=3, views=1)
    held = {"validation": (x[:50], y[:50]), "test": (x[50:100], y[50:100])}
    data = tfc.from_arrays(x[100:], y[100:], **held, input_range=(0, 255), augmentation=augmentation)
    large = tfc.build_model("resnet", input_shape=(32, 32, 3), num_classes=10, depth=20)
    teacher = tfc.Teacher(args.teacher)
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        built = [timed(lambda: tfc.cache_teacher(teacher, data, f"{folder}/first"))]
        models = cases(data, teacher, large, built[0][1])
        for number in range(args.rounds + 1):
            path = f"{folder}/{number}"
            times.setdefault("build", []).append(timed(lambda path=path: tfc.cache_teacher(teacher, data, path))[0])
            for name in models if number % 2 == 0 else reversed(models):
                model, batches = models[name]
                clock = step_clock(keras)
                model.fit(batches(number), steps_per_epoch=args.steps, verbose=0, callbacks=[clock])
                # All steps as long as those that were timed.
                times.setdefault(name, []).append(clock.seconds * args.steps / (args.steps - 2))
            print(number, {name: values[-1].round(2).tolist() for name, values in times.items()}, flush=True)
        result = {"rounds": args.rounds, "steps": args.steps, "batch": BATCH, "cache_bytes": cache_bytes(Path(folder))}
    # The first round warms up.
    seconds = {name: np.array(values[1:]) for name, values in times.items()}
    seconds["build and stored"] = seconds["build"] + seconds["stored"]
    for one, other in (
        ("stored", "plain"),
        ("build and stored", "teacher file"),
        ("ResNet-20", "plain"),
        ("ResNet-20, Keras's", "plain"),
        ("ResNet-20", "ResNet-20, Keras's"),
    ):
        ratios = seconds[one] / seconds[other]
        for at, kind in enumerate(("clock", "processor")):
            quartiles = np.quantile(ratios[:, at], [0.5, 0.25, 0.75])
            result[f"{one} / {other}, {kind}"] = [float(value) for value in quartiles]
    write_json(args.out, result)
    print(result)


def cache_bytes(folder):
    """Bytes of a cache of 50,000 samples of 10 logits in 4 views."""
    x, y = np.zeros((50_020, 1), "float32"), np.arange(50_020) % 10
    data = tfc.from_arrays(x[20:], y[20:], validation=(x[:10], y[:10]), test=(x[10:20], y[10:20]))
    tfc.cache_teacher(lambda inputs: inputs * np.ones((1, 10), "float32"), data, folder / "bytes")
    return 4 * sum(path.stat().st_size for path in (folder / "bytes").rglob("*.npy"))


if __name__ == "__main__":
    main()
