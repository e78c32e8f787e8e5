"""CIFAR-10 ResNet-8 of MLPerf Tiny at half the multiply-adds: channels removed by importance, and at random, each
trained alike under a larger teacher.

    python tests/benchmarks/resnet8_channels.py --model resnet8_cifar10.h5 --teacher resnet_large_cifar10_float.tflite \
        --data_dir DIR --seeds 0 1 2 --out runs/resnet8-channels

Half of the multiply-adds go at once, and kernels are fitted to what the whole network computes, unless
`--no-reconstruct` is given. What the teacher says about a few augmented views of each training picture is stored once,
and student and teacher see the very same pictures. Of the 50,000 training pictures 1,000 are the validation split. The
last epoch counts; the test split is read at the end only, and chooses nothing. An interrupted run goes on from its last
whole epoch. With `--epochs 0` nothing is trained, and the teacher is not asked.
"""

import argparse
import functools
from pathlib import Path

import numpy as np
from measured_rows import read_rows, rows_with

import tfcompress as tfc
from tfcompress.files import write_json
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit

SAMPLES = 2000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--criteria", nargs="+", default=["geometric_median", "random"])
    parser.add_argument("--ranking", default="isomorphic")
    parser.add_argument("--round_to", type=int, default=1)
    parser.add_argument("--reconstruct", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--weight", type=float, default=0.97)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--batch_size", type=int, default=64)
    # Half precision takes longer where widths are no multiples of 16.
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, default=Path("runs/resnet8-channels"))
    args = parser.parse_args()
    augmentation = tfc.Augmentation(flip=True, crop=4, views=args.views)
    options = {"download": False, "validation_fraction": 0.02, "input_range": (0, 255)}
    data = tfc.load_dataset("cifar10", data_dir=args.data_dir, augmentation=augmentation, **options)
    splits = [np.concatenate(part) for part in zip(*data.batches("train", 1000).as_numpy_iterator(), strict=True)]
    model = tfc.load(args.model)
    options = {"learning_rate": args.learning_rate, "optimizer": "adamw", "weight_decay": 1e-4, "warmup_steps": 200}
    options["precision"] = args.precision
    wrap = teacher_outputs = None
    if args.epochs:
        stored = tfc.cache_teacher(tfc.Teacher(args.teacher), data, args.out / "teacher", progress=True)
        losses = [tfc.Standardized(tfc.SoftTargets(temperature=args.temperature, weight=args.weight))]
        wrap, teacher_outputs = functools.partial(tfc.Distiller, teacher=stored, losses=losses), stored.lookup
    settings = {name: value for name, value in vars(args).items() if isinstance(value, int | float | str)}
    path = args.out / "figures.json"
    for seed in args.seeds:
        for criterion in args.criteria:
            row = {"seed": seed, "criterion": criterion, **settings}
            if rows_with(read_rows(path), row):
                continue
            chosen = np.random.default_rng(seed).permutation(len(splits[0]))[:SAMPLES]
            small = tfc.prune_channels(
                model, macs=0.5, criterion=criterion, ranking=args.ranking, round_to=args.round_to, seed=seed,
                data=tuple(part[chosen] for part in splits), samples=SAMPLES, reconstruct=args.reconstruct,
            )  # fmt: skip
            row |= {"macs": tfc.count_macs(small), "params": small.count_params()}
            row["test_before_training"] = tfc.evaluate(small, data, split="test").accuracy
            print(row, flush=True)
            if args.epochs:
                small = fit(
                    small, data, TrainSettings(epochs=args.epochs, **options), batch_size=args.batch_size, seed=seed,
                    wrap=wrap, teacher_outputs=teacher_outputs, label=f"{criterion} {seed}",
                    key=f"{criterion} {seed} {settings}", checkpoint=args.out / f"{criterion}-{seed}.npz",
                ).model  # fmt: skip
                small.save(args.out / f"{criterion}-{seed}.keras")
            row |= {split: tfc.evaluate(small, data, split=split).accuracy for split in ("validation", "test")}
            print(row, flush=True)
            rows = [*read_rows(path), row]
            summary = {
                name: {"mean": float(np.mean(found)), "spread": float(np.std(found))}
                for name in args.criteria
                if (found := [one["test"] for one in rows_with(rows, {"criterion": name, **settings})])
            }
            write_json(path, {"macs_before": tfc.count_macs(model), "rows": rows, "test": summary})


if __name__ == "__main__":
    main()
