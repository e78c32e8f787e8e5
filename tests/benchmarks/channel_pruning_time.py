"""Time and memory of channel pruning against the size of the network, without data.

    python tests/benchmarks/channel_pruning_time.py EfficientNetB0 EfficientNetB3 DenseNet201 EfficientNetB7

Each network runs in a process of its own: seconds of processor time, and how much the process's largest memory grew.
"""

import resource
import subprocess
import sys
import time

import keras

import tfcompress as tfc


def measure(name):
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    small = tfc.prune_channels(model, macs=0.55)
    seconds = time.process_time() - started
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    share = tfc.count_macs(small) / tfc.count_macs(model)
    print(f"{name}: {len(model.layers)} layers, {seconds:.1f} s, {megabytes} MB more, {share:.3f} of the multiply-adds")


def main():
    if len(sys.argv) == 2:
        measure(sys.argv[1])
    for name in sys.argv[1:] if len(sys.argv) > 2 else ():
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
