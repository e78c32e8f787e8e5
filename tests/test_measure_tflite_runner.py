import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import shared_path, tiny_cnn

from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.measure.tflite_runner import TFLiteRunner, dequantize, quantize


def convert(function, signature, *, int8=None):
    """A `.tflite` file's bytes from a TensorFlow function; int8 throughout if calibration samples are given."""
    traced = tf.function(function, input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()], traced)
    if int8 is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in int8)
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def samples(count, *shape):
    return np.random.default_rng(0).uniform(-1, 1, size=(count, *shape)).astype("float32")


@pytest.fixture(scope="module")
def matrix():
    return samples(4, 3)


@pytest.fixture(scope="module")
def int8_file(matrix):
    return convert(lambda x: tf.nn.relu(x @ matrix), [tf.TensorSpec((1, 4))], int8=samples(50, 4))


def test_float_file_equals_its_model():
    model = tiny_cnn()
    content = convert(lambda x: model(x, training=False), [tf.TensorSpec((1, 8, 8, 1))])
    x = samples(70, 8, 8, 1)
    for delegate in ("default", "none", "reference"):
        runner = TFLiteRunner(content, delegate=delegate)
        actual = runner.predict(x)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, model(x), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(runner.predict(x[:1]), model(x[:1]), rtol=1e-4, atol=1e-5)


def test_int8_file_is_fed_and_read_on_its_own_grid(int8_file, matrix):
    runner = TFLiteRunner(int8_file)
    x = samples(40, 4)
    scale, zero_point = runner.output_details["quantization"]
    outputs = runner.predict(x)
    steps = outputs / scale + zero_point
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    np.testing.assert_allclose(outputs, np.maximum(x @ matrix, 0), atol=4 * scale)
    raw = runner.predict_raw(quantize(x, runner.input_details))
    assert raw.dtype == np.int8
    np.testing.assert_array_equal(dequantize(raw, runner.output_details), outputs)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_quantize_equals_numpy(dtype):
    """Round half away from zero, then the zero point, then the limits."""
    limits, scale, zero_point = np.iinfo(dtype), 0.5, 3
    x = np.array([0.0, 0.24, 0.25, -0.25, 0.75, -0.75, 1.25, 1e9, -1e9], "float32")
    offsets = np.array([0, 0, 1, -1, 2, -2, 3, 10**10, -(10**10)])
    actual = quantize(x, {"name": "x", "dtype": dtype, "quantization": (scale, zero_point)})
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, np.clip(offsets + zero_point, limits.min, limits.max))


def test_quantize_rounds_what_is_just_below_a_half_down():
    below = np.nextafter(np.float32(0.5), np.float32(0))  # Adding 0.5 to it in float32 would give 1.
    assert quantize(np.array([below]), {"name": "x", "dtype": np.int8, "quantization": (1.0, 0)})[0] == 0


def test_dequantize_equals_numpy():
    raw = np.array([-128, -3, 0, 127], "int8")
    actual = dequantize(raw, {"quantization": (0.25, -3)})
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, [-31.25, 0.0, 0.75, 32.5])


def test_whole_number_inputs_without_a_scale():
    content = convert(lambda x: tf.cast(x * 2, tf.float32), [tf.TensorSpec((1, 3), tf.int32)])
    runner = TFLiteRunner(content)
    np.testing.assert_array_equal(runner.predict(np.array([[1.0, 2.0, 3.0]])), [[2, 4, 6]])
    with pytest.raises(DataError, match="takes whole numbers of type int32"):
        runner.predict(np.array([[1.5, 2.0, 3.0]]))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 70])
def test_any_number_of_samples(int8_file, count):
    runner, x = TFLiteRunner(int8_file), samples(70, 4)
    alone = np.concatenate([TFLiteRunner(int8_file).predict(sample[None]) for sample in x[:count]])
    np.testing.assert_array_equal(runner.predict(x[:count]), alone)


def test_a_file_whose_batch_is_built_in_runs_sample_by_sample():
    x = samples(40, 4)
    content = convert(lambda x: tf.reshape(tf.reshape(x, (1, 2, 2)) * 3.0, (1, 4)), [tf.TensorSpec((1, 4))])
    np.testing.assert_allclose(TFLiteRunner(content).predict(x), 3 * x, rtol=1e-6)
    eight = convert(lambda x: x * 3.0, [tf.TensorSpec((8, 4))])
    np.testing.assert_allclose(TFLiteRunner(eight).predict(x[:19]), 3 * x[:19], rtol=1e-6)


def test_a_file_that_mixes_its_batch_is_not_batched():
    """Resized, this file would run without an error and give other numbers."""
    x = samples(40, 4)
    content = convert(lambda x: x - tf.reduce_mean(x, axis=0, keepdims=True) + 1.0, [tf.TensorSpec((1, 4))])
    np.testing.assert_allclose(TFLiteRunner(content).predict(x), np.ones_like(x), rtol=1e-6)


def test_several_inputs_and_outputs():
    spec = tf.TensorSpec((1, 3))
    runner = TFLiteRunner(convert(lambda a, b: (a + b, tf.reduce_sum(a, axis=1)), [spec, spec]))
    a, b = samples(40, 3), 2 * samples(40, 3)
    results = runner.predict([a, b])
    by_rank = {result.ndim: result for result in results}
    np.testing.assert_allclose(by_rank[2], a + b, rtol=1e-6)
    np.testing.assert_allclose(by_rank[1], a.sum(1), rtol=1e-4, atol=1e-6)
    with pytest.raises(InvalidArgumentError, match=r"`x` must be 2 array\(s\), one for each input"):
        runner.predict(a)


def test_recurrent_state_does_not_leak_from_sample_to_sample():
    """tf_keras writes the one fused operation, which keeps its state in the file."""
    tf_keras = pytest.importorskip("tf_keras")
    inputs = tf_keras.Input((5, 3), batch_size=1)
    model = tf_keras.Model(inputs, tf_keras.layers.LSTM(4)(inputs))
    content = convert(lambda x: model(x, training=False), [tf.TensorSpec((1, 5, 3))])
    x = samples(40, 5, 3)
    expected = np.concatenate([model(sample[None]) for sample in x])
    np.testing.assert_allclose(TFLiteRunner(content).predict(x), expected, rtol=1e-4, atol=1e-5)


def test_resource_variables_do_not_leak_from_sample_to_sample():
    class Counter(tf.Module):
        def __init__(self):
            self.total = tf.Variable(tf.zeros((1, 2)))

        @tf.function(input_signature=[tf.TensorSpec((1, 2))])
        def __call__(self, x):
            self.total.assign_add(x)
            return self.total.read_value()

    counter = Counter()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([counter.__call__.get_concrete_function()], counter)
    converter.experimental_enable_resource_variables = True
    x = samples(40, 2)
    np.testing.assert_allclose(TFLiteRunner(converter.convert()).predict(x), x, rtol=1e-6)


def test_may_be_called_from_threads(int8_file):
    runner, x = TFLiteRunner(int8_file), samples(64, 4)
    expected, results = runner.predict(x), [None] * 8

    def work(at):
        results[at] = runner.predict(x)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_broken_and_missing_files(tmp_path, int8_file):
    with pytest.raises(ModelError, match="No TFLite file can be read at .*absent.tflite': No such file"):
        TFLiteRunner(tmp_path / "absent.tflite")
    with pytest.raises(ModelError, match="it is empty"):
        TFLiteRunner(b"")
    for broken in (b"junk" * 100, int8_file[: len(int8_file) // 2], int8_file[:8] + b"\xff" * (len(int8_file) - 8)):
        with pytest.raises(ModelError, match="LiteRT cannot load a model of"):
            TFLiteRunner(broken)


def test_wrong_arguments(int8_file):
    with pytest.raises(InvalidArgumentError, match="`delegate` must be one of default, none, reference"):
        TFLiteRunner(int8_file, delegate="gpu")
    with pytest.raises(InvalidArgumentError, match="`num_threads` must be a whole number, at least 1"):
        TFLiteRunner(int8_file, num_threads=0)
    runner = TFLiteRunner(int8_file)
    with pytest.raises(InvalidArgumentError, match=r"of shape \(samples, 4\), with at least one sample.*\(2, 5\)"):
        runner.predict(samples(2, 5))
    with pytest.raises(InvalidArgumentError, match="with at least one sample"):
        runner.predict(samples(0, 4))
    with pytest.raises(InvalidArgumentError, match="`x` must be of type int8"):
        runner.predict_raw(samples(2, 4))
    with pytest.raises(DataError, match="takes int8. Received: NaN or infinity"):
        runner.predict(np.full((1, 4), np.nan, "float32"))


def test_the_int8_reference_of_mlperf_tiny():
    """A file from elsewhere, whose input is on the grid of the pixels themselves."""
    runner = TFLiteRunner(shared_path("models/resnet8_cifar10_int8.tflite"))
    x = np.random.default_rng(0).integers(0, 256, size=(40, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(quantize(x, runner.input_details), (x - 128).astype("int8"))
    assert runner.predict(x).shape == (40, 10)
    assert keras.ops.all(runner.predict(x) >= 0)
