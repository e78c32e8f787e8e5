"""LeNet-5 on MNIST with 16 values in each kernel: `WeightClustering` against TFMOT's clustering of the same weights.

    python tests/benchmarks/cluster_lenet.py --data-dir DIR --seeds 3 --out cluster_lenet.json

For each seed a float network is trained to the end of its learning rate, then clustered by each way with the same
optimizer, rate and epochs. Every result becomes an int8 file twice: by the plain converter after training, as TFMOT's
guide has it, and with one scale for each clustered kernel (`quantize_post_training`). Written for each file: test
accuracy, bytes, bytes after gzip, Huffman and entropy bytes of its weights, and the most integers in one kernel.
"""

import argparse
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tf_keras

import tfcompress as tfc
from tfcompress.export import flatbuffer
from tfcompress.files import write_json

BATCH = 128


def arrays(data, split):
    batches = list(data.batches(split, 1000).as_numpy_iterator())
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


def compile_for(library, model, rate):
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(library.optimizers.Adam(rate), loss, metrics=["accuracy"])


def train(library, model, x, y, epochs, rate, callbacks=()):
    compile_for(library, model, rate)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))


def ways(model, x, y, args):
    """Name to a function that clusters the trained float model."""

    def ours():
        clustered = keras.models.clone_model(model)
        clustered.set_weights(model.get_weights())
        callbacks = [tfc.WeightClustering(clustered, args.clusters)]
        train(keras, clustered, x, y, args.epochs, args.rate, callbacks)
        return clustered

    def tfmot():
        return tfc.tfmot_cluster(
            model,
            lambda legacy, callbacks: train(tf_keras, legacy, x, y, args.epochs, args.rate, callbacks),
            number_of_clusters=args.clusters,
        )

    return {
        "tfmot": tfmot,
        "float": lambda: model,
        "ours": ours,
        "one-shot": lambda: tfc.cluster(model, args.clusters),
    }


def measure(path, data):
    ledger = tfc.size_ledger(path)
    return {
        "accuracy": tfc.evaluate(path, data).accuracy,
        "file_bytes": ledger.file_bytes,
        "gzip_bytes": ledger.gzip_bytes,
        "huffman_bytes_of_weights": ledger.huffman_bytes,
        "entropy_bytes_of_weights": ledger.entropy_bytes,
        "most_values_in_a_kernel": most_values(path),
    }


def most_values(path):
    model = flatbuffer.parse(path.read_bytes())
    counts = []
    for tensor in model.subgraphs[0].tensors:
        content = model.buffers[tensor.buffer].data
        if content is not None and flatbuffer.type_name(tensor.type) == "int8" and len(tensor.shape) > 1:
            counts.append(len(np.unique(np.frombuffer(bytes(content), "int8"))))
    return max(counts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--float-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = tfc.load_dataset("mnist", data_dir=args.data_dir, download=False)
    x, y = arrays(data, "train")
    rows = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        keras.utils.set_random_seed(seed)
        model = tfc.build_model("lenet", input_shape=data.input_shape, num_classes=data.num_classes)
        steps = args.float_epochs * -(-len(x) // BATCH)
        train(keras, model, x, y, args.float_epochs, keras.optimizers.schedules.CosineDecay(1e-3, steps))
        for name, make in ways(model, x, y, args).items():
            keras.utils.set_random_seed(seed)
            started = time.perf_counter()
            clustered = make()
            seconds = time.perf_counter() - started
            for quantized in (False, True):
                last = tfc.quantize_post_training(clustered, data) if quantized else clustered
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "model.tflite"
                    tfc.export_tflite(last, path, mode="int8", calibration=data)
                    scales = "one" if quantized else "converter"
                    row = {"seed": seed, "way": name, "scales": scales, **measure(path, data), "seconds": seconds}
                rows.append(row)
                print(row, flush=True)
                write_json(args.out, {"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows})


if __name__ == "__main__":
    main()
