"""What a teacher is worth on six tasks: a student alone, and the same student under a teacher.

    python tests/benchmarks/distill_tasks.py --data_dir DIR --seeds 0 1 2 --out distill_tasks.json

- `mnist_300_100`: LeNet-5 teaches LeNet-300-100; test accuracy.
- `mnist_64`: LeNet-5 teaches an MLP of 64 units; test accuracy.
- `text`: an LSTM teaches a bag of embeddings; sentences that are generated here, in which a negation turns a word and a
  "but" drops what came before it, so that a bag of words cannot know all; accuracy.
- `regression`: a wide MLP teaches one of 16 units a layer; targets with noise; mean squared error against those
  without.
- `segmentation`: a convolutional network teaches one of 8 channels; discs and squares, masks with noise; accuracy of
  pixels against masks without.
- `two_outputs`: MNIST's digit, and how much ink there is; a convolutional network teaches an MLP of 48 units; accuracy
  of the digit and mean squared error of the ink.

Plain and taught students start from the same weights, see the same batches and train as long; the last epoch counts.
Hyperparameters were chosen on other seeds than those reported, those of `mnist_64` also on training pictures held out;
`two_outputs` takes over the loss of `mnist_64`.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers
from measured_rows import read_rows, rows_with

import tfcompress as tfc
from tfcompress.files import write_json

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(inputs, units, outputs, seed):
    keras.utils.set_random_seed(seed)
    hidden = [layers.Dense(unit, activation="relu") for unit in units]
    return keras.Sequential([keras.Input(inputs), layers.Flatten(), *hidden, layers.Dense(outputs)])


def lenet5(seed):
    keras.utils.set_random_seed(seed)
    return tfc.build_model("lenet", input_shape=(28, 28, 1), num_classes=10)


def accuracy(model, x, y):
    return float(np.mean(model.predict(x, batch_size=1000, verbose=0).argmax(-1) == y))


def mean_squared_error(model, x, y):
    return float(np.mean((model.predict(x, batch_size=1000, verbose=0) - y) ** 2))


def mnist(data_dir):
    data = tfc.load_dataset("mnist", data_dir=data_dir, download=False)
    splits = []
    for split in ("train", "test"):
        batches = list(data.batches(split, 1000).as_numpy_iterator())
        splits.append(tuple(np.concatenate(part) for part in zip(*batches, strict=True)))
    return splits


def words(rng, count, length=24):
    """Sentences of numbered words, and whether they are kind: 0 is padding, 1 "not", 2 "but", 3 "very"."""
    x, y = np.zeros((count, length), "int32"), np.empty(count, "int32")
    worth = np.concatenate([np.zeros(4), np.tile([1, -1], 20), np.zeros(60)])
    for at in range(count):
        size = rng.integers(8, length + 1)
        sentence = rng.integers(4, len(worth), size=size)
        marks = rng.random(size) < 0.2
        sentence[marks] = rng.choice([1, 1, 2, 3], size=marks.sum())
        x[at, :size] = sentence
        sum_, turn, times = 0.0, 1, 1
        for word in sentence:
            if word == 1:
                turn = -turn
            elif word == 2:
                sum_ *= 0.25
            elif word == 3:
                times = 2
            elif worth[word]:
                sum_ += turn * times * worth[word]
                turn, times = 1, 1
        y[at] = sum_ > 0 if sum_ else rng.integers(2)
    return x, y


def lstm(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((24,), dtype="int32")
    x = layers.Embedding(104, 24)(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.LSTM(48)(x)))


def bag(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((24,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(104, 8)(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(8, activation="relu")(x)))


def curve(rng, count, noise):
    x = rng.uniform(-2, 2, size=(count, 4)).astype("float32")
    y = np.sin(2 * x[:, :1]) * x[:, 1:2] + np.abs(x[:, 2:3]) - 0.5 * x[:, 3:] ** 2
    return x, (y + noise * rng.normal(size=y.shape)).astype("float32")


def shapes(rng, count, noise):
    """Pictures of 24x24 with a disc (1) and a square (2) on a background (0), and their masks."""
    rows, columns = np.mgrid[:24, :24]
    x, y = rng.normal(0, 0.35, size=(count, 24, 24, 1)), np.zeros((count, 24, 24), "int32")
    for at in range(count):
        for shape in (1, 2):
            row, column, size = rng.integers(4, 20), rng.integers(4, 20), rng.integers(3, 6)
            distance = np.stack([rows - row, columns - column])
            norm = np.sqrt((distance**2).sum(0)) if shape == 1 else np.abs(distance).max(0)
            y[at][norm < size] = shape
        x[at, y[at] == 1] += 1.0
        x[at, y[at] == 2] -= 1.0
    wrong = rng.random(y.shape) < noise
    return x.astype("float32"), np.where(wrong, rng.integers(0, 3, size=y.shape), y).astype("int32")


def pixels(channels, depth, seed):
    keras.utils.set_random_seed(seed)
    hidden = [layers.Conv2D(channels, 3, padding="same", activation="relu") for _ in range(depth)]
    return keras.Sequential([keras.Input((24, 24, 1)), *hidden, layers.Conv2D(3, 1)])


def two_outputs(units, seed, filters=()):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((28, 28, 1))
    for count in filters:
        x = layers.MaxPooling2D()(layers.Conv2D(count, 5, padding="same", activation="relu")(x))
    x = layers.Flatten()(x)
    for unit in units:
        x = layers.Dense(unit, activation="relu")(x)
    return keras.Model(inputs, [layers.Dense(10, name="digit")(x), layers.Dense(1, name="ink")(x)])


def ink(x):
    return ((x.mean((1, 2, 3)) - x.mean()) / x.mean((1, 2, 3)).std())[:, None].astype("float32")


def tasks(data_dir):
    """For each task: data by seed, networks, losses, epochs, and what is measured."""
    soft = tfc.SoftTargets(temperature=4.0, weight=0.9)
    standardized = tfc.Standardized(tfc.SoftTargets(temperature=1.0, weight=0.9))

    def both_outputs(rng):
        (x, y), (x_test, y_test) = mnist(data_dir)
        return (x, {"digit": y, "ink": ink(x)}), (x_test, {"digit": y_test, "ink": ink(x_test)})

    def figures(model, x, y):
        digit, amount = model.predict(x, batch_size=1000, verbose=0)
        return {"digit": float(np.mean(digit.argmax(1) == y["digit"])), "ink": float(np.mean((amount - y["ink"]) ** 2))}

    return {
        "mnist_300_100": {
            "data": lambda rng: mnist(data_dir),
            "teacher": lenet5, "student": lambda seed: mlp((28, 28, 1), (300, 100), 10, seed),
            "loss": CROSS_ENTROPY, "taught": {"losses": [soft]}, "epochs": 10, "teacher_epochs": 4,
            "measure": lambda model, x, y: {"accuracy": accuracy(model, x, y)},
        },
        "mnist_64": {
            "data": lambda rng: mnist(data_dir),
            "teacher": lenet5, "student": lambda seed: mlp((28, 28, 1), (64,), 10, seed),
            "loss": CROSS_ENTROPY, "taught": {"losses": [standardized]}, "epochs": 10, "teacher_epochs": 4,
            "measure": lambda model, x, y: {"accuracy": accuracy(model, x, y)},
        },
        "text": {
            "data": lambda rng: (words(rng, 12000), words(rng, 4000)),
            "teacher": lstm, "student": bag,
            "loss": CROSS_ENTROPY, "taught": {"losses": [tfc.SoftTargets(temperature=2.0, weight=0.9)]}, "epochs": 15,
            "measure": lambda model, x, y: {"accuracy": accuracy(model, x, y)},
        },
        "regression": {
            "data": lambda rng: (curve(rng, 3000, 1.0), curve(rng, 4000, 0.0)),
            "teacher": lambda seed: mlp((4,), (128, 128), 1, seed),
            "student": lambda seed: mlp((4,), (16, 16), 1, seed),
            "loss": "mse", "taught": {"losses": [tfc.OutputMatching(weight=0.7)]}, "epochs": 60, "teacher_epochs": 15,
            "measure": lambda model, x, y: {"error": mean_squared_error(model, x, y)},
        },
        "segmentation": {
            "data": lambda rng: (shapes(rng, 400, 0.5), shapes(rng, 300, 0.0)),
            "teacher": lambda seed: pixels(24, 4, seed), "student": lambda seed: pixels(8, 3, seed),
            "loss": CROSS_ENTROPY, "taught": {"losses": [tfc.SoftTargets(temperature=2.0, weight=0.9)]}, "epochs": 30,
            "measure": lambda model, x, y: {"accuracy": accuracy(model, x, y)},
        },
        "two_outputs": {
            "data": both_outputs,
            "teacher": lambda seed: two_outputs((128,), seed, filters=(16, 32)),
            "student": lambda seed: two_outputs((48,), seed),
            "loss": {"digit": CROSS_ENTROPY, "ink": "mse"},
            "taught": {
                "losses": {"digit": [standardized], "ink": [tfc.OutputMatching(weight=0.5)]}, "hard_weight": 0.5,
            },
            "epochs": 10, "teacher_epochs": 4, "measure": figures,
        },
    }  # fmt: skip


def fit(model, loss, x, y, epochs, seed):
    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(x) // 64)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)), loss)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)


def run(task, seed):
    (x, y), test = task["data"](np.random.default_rng(seed))
    teacher, plain, taught = task["teacher"](seed + 100), task["student"](seed), task["student"](seed)
    fit(teacher, task["loss"], x, y, task.get("teacher_epochs", task["epochs"]), seed)
    fit(plain, task["loss"], x, y, task["epochs"], seed)
    fit(tfc.Distiller(taught, teacher, **task["taught"]), task["loss"], x, y, task["epochs"], seed)
    return {
        name: task["measure"](model, *test)
        for name, model in (("teacher", teacher), ("plain", plain), ("taught", taught))
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(tasks("")))
    parser.add_argument("--out", type=Path, default=Path("distill_tasks.json"))
    args = parser.parse_args()
    rows = read_rows(args.out)
    for name in args.tasks:
        for seed in args.seeds:
            if rows_with(rows, {"task": name, "seed": seed}):
                continue
            started = time.perf_counter()
            row = {"task": name, "seed": seed, **run(tasks(args.data_dir)[name], seed)}
            rows.append({**row, "seconds": round(time.perf_counter() - started)})
            print(rows[-1], flush=True)
            summary = {}
            for one in {row["task"] for row in rows}:
                of_task = rows_with(rows, {"task": one})
                summary[one] = {
                    f"{who} {figure}": [float(np.mean(found)), float(np.std(found))]
                    for who in ("teacher", "plain", "taught")
                    for figure in of_task[0][who]
                    if (found := [row[who][figure] for row in of_task])
                }
            write_json(args.out, {"rows": rows, "mean and spread": summary})


if __name__ == "__main__":
    main()
