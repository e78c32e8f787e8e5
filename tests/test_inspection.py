import keras
import numpy as np
import pytest
from helpers import shared_path, tiny_cnn
from keras import layers

from tfcompress.errors import ModelError
from tfcompress.report.inspection import inspect


def test_keras_model():
    model = tiny_cnn()
    kernel = model.get_layer("middle").kernel
    kernel.assign(np.where(np.arange(kernel.shape[-1]) < 2, 0.0, 1.0) * np.ones(kernel.shape))
    found = inspect(model)
    rows = {row.name: row for row in found.layers}
    middle = rows["middle"]
    assert (middle.kind, middle.output_shape, middle.dtype) == ("Conv2D", (8, 8, 8), "float32")
    assert middle.num_params == 3 * 3 * 8 * 8 + 8
    assert middle.num_bytes == 4 * middle.num_params
    assert middle.macs == 8 * 8 * 8 * 3 * 3 * 8
    assert middle.sparsity == 2 / 8
    assert rows["stem_relu"].sparsity is None
    assert "image" not in rows
    assert found.num_params == model.count_params() == sum(row.num_params for row in found.layers)
    assert found.macs == sum(row.macs for row in found.layers)
    assert found.file_bytes is None
    assert "middle" in str(found)


def test_file(tmp_path):
    model = tiny_cnn()
    model.save(tmp_path / "tiny.keras")
    found = inspect(tmp_path / "tiny.keras")
    assert found.file_bytes == (tmp_path / "tiny.keras").stat().st_size
    assert found.layers == inspect(model).layers


def test_shared_layers_and_nested_models_are_counted_as_keras_does():
    dense = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="inside")], name="inner")
    model = keras.Model(inputs, inner(dense(dense(inputs))))
    found = inspect(model)
    assert {row.name: row.macs for row in found.layers} == {"shared": 2 * 4 * 4, "inside": 4 * 3}
    assert found.num_params == model.count_params()


def test_model_without_a_graph_says_why_macs_are_unknown():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2, name="own")

        def call(self, x):
            return self.dense(x)

    model = Own()
    with pytest.raises(ModelError, match="has no weights yet"):
        inspect(model)
    model(np.zeros((1, 3), "float32"))
    found = inspect(model)
    assert (found.macs, found.num_params) == (None, 8)
    assert "MACs are not known" in found.notes[0]
    assert "unknown" in str(found)


def test_file_of_mlperf_tiny_counts_as_its_keras_model():
    keras_file = inspect(shared_path("models/resnet8_cifar10.h5"))
    tflite_file = inspect(shared_path("models/resnet8_cifar10_int8.tflite"))
    batch_norm = sum(row.num_params for row in keras_file.layers if row.kind == "BatchNormalization")
    assert keras_file.num_params == 78_666
    assert tflite_file.macs == keras_file.macs == 12_501_632
    assert tflite_file.num_params == 78_666 - batch_norm  # folded into the convolutions
    assert tflite_file.file_bytes == 98_496
    assert sum(row.kind == "CONV_2D" for row in tflite_file.layers) == 9
    assert all(0 < row.sparsity < 0.05 for row in tflite_file.layers if row.kind == "CONV_2D")


def test_wrong_files(tmp_path):
    (tmp_path / "text.tflite").write_text("not a model")
    with pytest.raises(ModelError, match="Not a TFLite model"):
        inspect(tmp_path / "text.tflite")
    with pytest.raises(ModelError, match="No model file"):
        inspect(tmp_path / "gone.keras")
