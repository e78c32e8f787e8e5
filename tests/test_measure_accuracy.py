import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from helpers import blob_dataset, numpy_log_softmax, shared_path, tiny_cnn

from tfcompress.data import load_dataset
from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.measure import evaluate


@pytest.fixture(scope="module")
def data():
    return blob_dataset(64)


def arrays(data, split="test"):
    batches = list(data.batches(split, 16).as_numpy_iterator())
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


def fixed(outputs):
    """A model whose outputs are its inputs, and data that makes it give `outputs`, with labels 0, 1, 2, ..."""
    outputs = np.asarray(outputs, "float32")
    model = keras.Sequential([keras.Input(outputs.shape[1:]), keras.layers.Activation("linear")])
    labels = np.arange(len(outputs), dtype="int32") % outputs.shape[1]
    return model, tf.data.Dataset.from_tensor_slices((outputs, labels)).batch(2), labels


def to_tflite(model, path):
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return path


def test_logits_equal_numpy(data):
    model = tiny_cnn()
    x, y = arrays(data)
    logits = np.asarray(model(x))
    result = evaluate(model, data, batch_size=10)
    assert result.accuracy == pytest.approx(np.mean(logits.argmax(1) == y))
    assert result.loss == pytest.approx(-np.mean(numpy_log_softmax(logits)[np.arange(len(y)), y]), rel=1e-5)
    assert result.num_samples == 32
    assert evaluate(lambda x: 2 * model(x) - model(x), data, batch_size=10).loss == pytest.approx(result.loss, rel=1e-4)


def test_probabilities_give_the_loss_of_their_logits(data):
    logits_model, softmax_model = tiny_cnn(), tiny_cnn(softmax=True)
    softmax_model.set_weights(logits_model.get_weights())
    logits, probabilities = evaluate(logits_model, data), evaluate(softmax_model, data)
    assert probabilities.accuracy == logits.accuracy
    assert probabilities.loss == pytest.approx(logits.loss, rel=1e-4)


def test_probabilities_are_known_by_their_signs_and_sums():
    model, data, labels = fixed([[0.5, 0.25, 0.25], [0.2, 0.8, 0.0]])
    assert evaluate(model, data).loss == pytest.approx(-np.log([0.5, 0.8]).mean(), rel=1e-5)
    # One row that does not sum to 1, or has a negative, makes all of them logits.
    for last in ([0.2, 0.8, 0.1], [1.2, -0.1, -0.1]):
        outputs = np.array([[0.5, 0.25, 0.25], last, [0.5, 0.25, 0.25]])
        model, data, labels = fixed(outputs)
        expected = -numpy_log_softmax(outputs)[np.arange(3), labels].mean()
        assert evaluate(model, data).loss == pytest.approx(expected, rel=1e-5)


def test_a_probability_of_zero_has_a_finite_loss():
    model, data, _ = fixed([[0.0, 1.0]])
    assert 80 < evaluate(model, data).loss < 100


def test_files_equal_the_model(data, tmp_path):
    model = tiny_cnn()
    expected = evaluate(model, data)
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    to_tflite(model, tmp_path / "model.tflite")
    for name in ("model.keras", "model.h5", "model.tflite"):
        result = evaluate(tmp_path / name, data)
        assert (result.accuracy, result.num_samples) == (expected.accuracy, expected.num_samples)
        assert result.loss == pytest.approx(expected.loss, rel=1e-4)
    assert evaluate(str(tmp_path / "model.tflite"), data).accuracy == expected.accuracy


def test_split_limit_and_batches(data):
    model = tiny_cnn()
    x, y = arrays(data, "validation")
    expected = np.mean(np.asarray(model(x)).argmax(1)[:21] == y[:21])
    assert evaluate(model, data, split="validation", batch_size=10, limit=21).accuracy == pytest.approx(expected)
    plain = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    assert evaluate(model, plain, limit=21).num_samples == 21
    assert evaluate(model, plain, limit=20).num_samples == 20
    assert evaluate(model, plain).num_samples == 32


def test_mixed_precision(data):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = tiny_cnn(softmax=True)
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = arrays(data)
    expected = -np.mean(np.log(np.asarray(model(x), "float64")[np.arange(len(y)), y]))
    assert evaluate(model, data).loss == pytest.approx(expected, rel=1e-2)


def test_broken_missing_and_unknown_files(data, tmp_path):
    for name in ("absent.keras", "absent.h5", "absent.tflite"):
        with pytest.raises(ModelError, match=f"No .*file.* at .*{name}"):
            evaluate(tmp_path / name, data)
    for name in ("broken.keras", "broken.h5"):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(ModelError, match=f"No model can be read from .*{name}.: it is a text file"):
            evaluate(tmp_path / name, data)
    (tmp_path / "broken.tflite").write_bytes(b"junk")
    with pytest.raises(ModelError, match="LiteRT cannot load .*broken.tflite"):
        evaluate(tmp_path / "broken.tflite", data)
    with pytest.raises(ModelError, match="No model file at 'model.onnx'"):
        evaluate("model.onnx", data)


def test_stored_code_is_not_run(data, tmp_path):
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Lambda(lambda x: keras.ops.mean(x, axis=(1, 2)))(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "lambda.keras")
    with pytest.raises(ModelError, match="lambda.keras' is not loaded: it has a Lambda layer"):
        evaluate(tmp_path / "lambda.keras", data)


def test_wrong_data_and_arguments(data):
    model = tiny_cnn()
    with pytest.raises(InvalidArgumentError, match="`limit` must be a whole number above 0"):
        evaluate(model, data, limit=0)
    with pytest.raises(InvalidArgumentError, match="`data` must be a Dataset or a tf.data.Dataset"):
        evaluate(model, np.zeros((2, 8, 8, 1)))
    with pytest.raises(InvalidArgumentError, match="must be a Keras model, another callable or the path"):
        evaluate(3, data)
    x, y = arrays(data)
    with pytest.raises(DataError, match="single samples. Add `.batch"):
        evaluate(model, tf.data.Dataset.from_tensor_slices((x, y)))
    with pytest.raises(InvalidArgumentError, match=r"elements are batches \(x, y\)"):
        evaluate(model, tf.data.Dataset.from_tensor_slices(x).batch(4))
    with pytest.raises(DataError, match=r"Labels must be in \[0, 4\).* from 4 to 7"):
        evaluate(model, tf.data.Dataset.from_tensors((x[:4], y[:4] + 4)))
    with pytest.raises(DataError, match=r"Labels must be whole numbers of shape \(4,\). Received: float32"):
        evaluate(model, tf.data.Dataset.from_tensors((x[:4], y[:4].astype("float32"))))
    with pytest.raises(DataError, match="no sample to evaluate on"):
        evaluate(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(4).take(0))


def test_outputs_that_are_no_classification():
    with pytest.raises(ModelError, match=r"must have shape \(batch, classes\). Received: \(2, 1\)"):
        evaluate(*fixed([[0.5], [1.0]])[:2])
    with pytest.raises(ModelError, match="must be finite. Received: NaN"):
        evaluate(*fixed([[np.nan, 1.0]])[:2])


def test_the_int8_reference_on_cifar10():
    """Against LiteRT alone, one sample at a time, with the file's grids by heart (input 1 and -128, output 1/256)."""
    path = shared_path("models/resnet8_cifar10_int8.tflite")
    folder = shared_path("tfds")
    data = load_dataset("cifar10", data_dir=folder, download=False, input_range=(0.0, 255.0))
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    source, target = (d[0]["index"] for d in (interpreter.get_input_details(), interpreter.get_output_details()))
    correct, loss = 0, 0.0
    for x, y in data.test.take(200).as_numpy_iterator():
        interpreter.set_tensor(source, (x - 128).astype("int8")[None])
        interpreter.invoke()
        raw = interpreter.get_tensor(target)[0].astype(int)
        correct += raw.argmax() == y
        loss -= np.log(max((raw[y] + 128) / 256, 1 / 512))
    result = evaluate(path, data, limit=200)
    assert result.accuracy == correct / 200
    assert result.loss == pytest.approx(loss / 200, rel=1e-5)
    assert result.accuracy > 0.8
