"""How an exported file agrees with its Keras model on test samples, for the benchmarks that report it."""

import numpy as np

import tfcompress as tfc

PARITY_SAMPLES = 1000


def parity(model, path, data):
    """Agreement of the file with its Keras model on test samples, in steps of the file's output."""
    batches = data.batches("test", 250, limit=min(PARITY_SAMPLES, data.sizes["test"]))
    x = np.concatenate([np.asarray(batch) for batch, _ in batches])
    runner = tfc.TFLiteRunner(path)
    ours, file = np.asarray(model.predict(x, verbose=0)), runner.predict(x)
    step = runner.output_details["quantization_parameters"]["scales"][0]
    steps = np.abs(np.round(file / step) - np.round(ours / step))
    return {
        "samples": len(x),
        "equal": float(np.mean(steps == 0)),
        "within_1": float(np.mean(steps <= 1)),
        "top_1": float(np.mean(file.argmax(-1) == ours.argmax(-1))),
    }
