"""Time and peak memory of a model of 100 MB that is loaded, carried over to tf_keras, and carried back.

python tests/benchmarks/bridge_memory.py
"""

import argparse
import resource
import tempfile
import threading
import time
from pathlib import Path

import keras
import numpy as np

import tfcompress as tfc


class PeakMemory:
    """Largest resident size of this process while it is watched, above what it was at first, in bytes."""

    def __enter__(self):
        self.first, self.peak, self._over = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(0.01):
            self.peak = max(self.peak, self._now() - self.first)

    @staticmethod
    def _now():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="ResNet50", help="a name in keras.applications (default: %(default)s)")
    options.add_argument("--size", type=int, default=96, help="height and width of its input (default: %(default)s)")
    options = options.parse_args()
    keras.utils.set_random_seed(0)
    # What TensorFlow keeps from its first use is not the model's.
    small = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    tfc.from_tf_keras(tfc.to_tf_keras(small))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        getattr(keras.applications, options.model)(
            weights=None, input_shape=(options.size, options.size, 3), classes=1000
        ).save(path)
        keras.utils.clear_session()
        seconds = {}
        with PeakMemory() as memory:
            at = time.perf_counter()
            model = tfc.load(path)
            seconds["load"] = time.perf_counter() - at
            at = time.perf_counter()
            legacy = tfc.to_tf_keras(model)
            seconds["to tf_keras"] = time.perf_counter() - at
            at = time.perf_counter()
            back = tfc.from_tf_keras(legacy)
            seconds["back"] = time.perf_counter() - at
        size = sum(weight.nbytes for weight in model.get_weights())
    x = np.random.default_rng(0).uniform(size=(2, options.size, options.size, 3)).astype("float32")
    expected, actual = (np.asarray(one(x, training=False)) for one in (model, back))
    print(f"{options.model} at {options.size}x{options.size}: {size / 1e6:.1f} MB of weights")
    print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), f"= {sum(seconds.values()):.1f} s")
    print(f"peak memory above the start: {memory.peak / 1e6:.0f} MB = {memory.peak / size:.2f} times the weights")
    difference = np.abs(expected - actual).max() / np.abs(expected).max()
    print(f"largest relative difference after both crossings: {difference:.1e}")


if __name__ == "__main__":
    main()
