import numpy as np
import pytest
import tensorflow as tf

from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.measure import measure_latency


def convert(size, *, dtype=tf.float32):
    """A matrix product of `size` squared, several times."""
    matrix = np.random.default_rng(0).normal(size=(size, size)).astype("float32") / size

    @tf.function(input_signature=[tf.TensorSpec((1, size), dtype)])
    def products(x):
        x = tf.cast(x, tf.float32)
        for _ in range(4):
            x = tf.nn.relu(x @ matrix)
        return x

    return tf.lite.TFLiteConverter.from_concrete_functions([products.get_concrete_function()], products).convert()


def test_larger_takes_longer(tmp_path):
    path = tmp_path / "small.tflite"
    path.write_bytes(convert(8))
    small, large = measure_latency(path, repeats=20), measure_latency(convert(512), repeats=20)
    assert 0 < small.median_ms <= small.p90_ms
    assert small.median_ms < large.median_ms
    assert small.repeats == 20


def test_whole_number_inputs_without_a_scale():
    assert measure_latency(convert(8, dtype=tf.int32), repeats=1, warmup=0).median_ms > 0


def test_wrong_arguments(tmp_path):
    content = convert(8)
    with pytest.raises(InvalidArgumentError, match="`repeats` must be a whole number, at least 1. Received: 0"):
        measure_latency(content, repeats=0)
    with pytest.raises(InvalidArgumentError, match="`warmup` must be a whole number, at least 0"):
        measure_latency(content, warmup=-1)
    with pytest.raises(InvalidArgumentError, match="`num_threads` must be"):
        measure_latency(content, num_threads=0)
    with pytest.raises(ModelError, match="No TFLite file can be read"):
        measure_latency(tmp_path / "absent.tflite")
