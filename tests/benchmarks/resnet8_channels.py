"""CIFAR-10 ResNet-8 of MLPerf Tiny at half the multiply-adds: channels removed by importance, and at random, in equal
steps, each trained alike under a larger teacher.

    python tests/benchmarks/resnet8_channels.py --model resnet8_cifar10.h5 --teacher resnet_large_cifar10_float.tflite \
        --data_dir DIR --seeds 0 1 2 --steps 4 --step_epochs 3 --epochs 24 --out resnet8_channels.json

The teacher's logits are computed once, for some augmented views of each training picture (flips and shifts, a function
of the seed), and student and teacher see the very same pictures. Of the 50,000 training pictures the last 1,000 are the
validation split. The last epoch counts; the test split is read at the end only, and chooses nothing. An interrupted run
goes on from its last whole epoch. With `--epochs 0` nothing is trained.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tfcompress as tfc
from tfcompress.files import write_json
from tfcompress.graph.macs import count_macs
from tfcompress.techniques.channels import prune_channels

BATCH, VALIDATION, TEMPERATURE = 128, 1000, 4.0


def load(data_dir):
    settings = {"download": False, "input_range": (0, 255), "validation_fraction": 0.02}
    data = tfc.load_dataset("cifar10", data_dir=data_dir, **settings)
    splits = {}
    for split in ("train", "validation", "test"):
        batches = list(data.batches(split, 1000).as_numpy_iterator())
        splits[split] = np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])
    return splits


def augmented(x, seed):
    rng = np.random.default_rng(seed)
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    views = np.empty_like(x)
    for at in range(len(x)):
        top, left = rng.integers(0, 7, size=2)
        view = padded[at, top : top + 32, left : left + 32]
        views[at] = view[:, ::-1] if rng.integers(2) else view
    return views


def teach(path, x, cache):
    """The logits of the teacher: its file ends in a softmax, so the logarithms of what it gives."""
    if cache.exists():
        return np.load(cache)
    runner = tfc.TFLiteRunner(path, num_threads=2)
    outputs = np.concatenate([runner.predict(x[at : at + 500]) for at in range(0, len(x), 500)])
    logits = np.log(np.maximum(outputs, 1e-7)) if np.allclose(outputs.sum(1), 1, atol=1e-3) else outputs
    np.save(cache, logits.astype("float16"))
    return logits


def with_logits(model):
    """The model without its softmax, which the losses of a teacher want."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    last = copy.layers[-1]
    if getattr(last, "activation", None) is keras.activations.softmax:
        last.activation = keras.activations.linear
        copy = keras.models.clone_model(copy)
        copy.set_weights(model.get_weights())
    return copy


def distillation_loss(weight):
    def loss(target, logits):
        label, teacher = target[:, 0], target[:, 1:]
        hard = keras.losses.sparse_categorical_crossentropy(label, logits, from_logits=True)
        soft = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(teacher / TEMPERATURE), logits / TEMPERATURE)
        return (1 - weight) * hard + weight * TEMPERATURE**2 * soft

    return loss


def accuracy(model, x, y):
    return float(np.mean(model.predict(x, batch_size=500, verbose=0).argmax(1) == y))


def train(model, views, targets, args, seed, saved, epochs):
    if not epochs:
        return
    keras.utils.set_random_seed(seed)
    steps = epochs * (len(views[0]) // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(1e-5, steps, warmup_target=args.learning_rate, warmup_steps=200)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-4), distillation_loss(args.weight))
    model.optimizer.build(model.trainable_variables)
    done = sorted(saved.glob("*.weights.h5")) if saved.exists() else []
    if done:
        model.load_weights(done[-1])
    saved.mkdir(parents=True, exist_ok=True)
    for epoch in range(len(done), epochs):
        at = epoch % len(views)
        order = np.random.default_rng([seed, epoch]).permutation(len(views[at]))[: len(views[at]) // BATCH * BATCH]
        data = tf.data.Dataset.from_tensor_slices(order.reshape(-1, BATCH)).map(
            lambda index, at=at: tf.numpy_function(
                lambda one: (views[at][one], targets[at][one]), [index], (tf.float32, tf.float32)
            )
        )
        data = data.map(lambda x, y: (tf.ensure_shape(x, (BATCH, 32, 32, 3)), tf.ensure_shape(y, (BATCH, 11))))
        started = time.perf_counter()
        loss = model.fit(data.prefetch(4), verbose=0).history["loss"][0]
        print(f"  epoch {epoch + 1}: loss {loss:.4f}, {time.perf_counter() - started:.0f} s", flush=True)
        partial = saved.parent / f"{saved.name}.partial.weights.h5"
        model.save_weights(partial)
        partial.rename(saved / f"{epoch + 1:03d}.weights.h5")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--criteria", nargs="+", default=["taylor", "random"])
    parser.add_argument("--ranking", default="global")
    parser.add_argument("--round_to", type=int, default=1)
    parser.add_argument("--reconstruct", action="store_true", help="fit kernels by least squares before each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1, help="in how many steps channels are removed")
    parser.add_argument("--step_epochs", type=int, default=3, help="epochs after each step but the last")
    parser.add_argument("--epochs", type=int, default=8, help="epochs after the last step")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--weight", type=float, default=0.9)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("resnet8_channels.json"))
    args = parser.parse_args()
    splits = load(args.data_dir)
    x, y = splits["train"]
    views = [augmented(x, 1000 + view) for view in range(args.views)]
    targets = []
    for at, view in enumerate(views):
        logits = teach(args.teacher, view, args.out.with_suffix(f".view{at}.npy")).astype("float32")
        print(f"view {at}: teacher {np.mean(logits.argmax(1) == y):.4f} of training labels", flush=True)
        targets.append(np.concatenate([y[:, None], logits], 1).astype("float32"))
    model = with_logits(keras.saving.load_model(args.model, compile=False))
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    for seed in args.seeds:
        for criterion in args.criteria:
            if any((row["seed"], row["criterion"]) == (seed, criterion) for row in rows):
                continue
            chosen = np.random.default_rng(seed).permutation(len(x))[:2000]
            small, whole = model, count_macs(model)
            row = {"seed": seed, "criterion": criterion, "ranking": args.ranking, "steps": args.steps}
            row |= {"step_epochs": args.step_epochs, "epochs": args.epochs, "reconstruct": args.reconstruct}
            saved = args.out.with_suffix(f".{criterion}.{seed}")
            for step in range(1, args.steps + 1):
                small = prune_channels(
                    small, macs=int(whole * 0.5 ** (step / args.steps)), criterion=criterion, ranking=args.ranking,
                    data=(x[chosen], y[chosen]), samples=2000, seed=seed, round_to=args.round_to,
                    reconstruct=args.reconstruct,
                )  # fmt: skip
                row |= {"macs": count_macs(small), "params": small.count_params()}
                row["before_validation"] = accuracy(small, *splits["validation"])
                print(row, flush=True)
                epochs = args.epochs if step == args.steps else args.step_epochs
                train(small, views, targets, args, seed + 1000 * step, saved / str(step), epochs)
            row["validation"] = accuracy(small, *splits["validation"])
            row["test"] = accuracy(small, *splits["test"])
            print(row, flush=True)
            small.save(args.out.with_suffix(f".{criterion}.{seed}.keras"))
            rows.append(row)
            summary = {
                one: {"mean": float(np.mean(found)), "spread": float(np.std(found))}
                for one in args.criteria
                if (found := [row["test"] for row in rows if row["criterion"] == one])
            }
            write_json(args.out, {"macs_before": count_macs(model), "rows": rows, "test": summary})


if __name__ == "__main__":
    main()
