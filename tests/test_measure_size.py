import gzip

import keras
import numpy as np
import pytest
from helpers import tiny_cnn
from keras import layers

from tfcompress.errors import ModelError
from tfcompress.measure import file_size, layer_sparsity, num_nonzero, num_params


def with_zeros(layer, share):
    """Makes the first `share` of a layer's kernel zero and the rest 1."""
    flat = np.ones(int(np.prod(layer.kernel.shape)), "float32")
    flat[: round(share * flat.size)] = 0
    layer.kernel.assign(flat.reshape(layer.kernel.shape))


def test_counts_every_value_once():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared", kernel_initializer="ones")
    model = keras.Model(inputs, layers.BatchNormalization(name="bn")(shared(shared(inputs))))
    assert num_params(model) == 16 + 4 + 4 * 4
    # Biases, beta and the moving mean start at 0; gamma and the moving variance at 1.
    assert num_nonzero(model) == 16 + 4 + 4


def test_sparsity_of_each_layer():
    model = tiny_cnn()
    with_zeros(model.get_layer("middle"), 0.75)
    with_zeros(model.get_layer("depthwise"), 0.5)
    sparsity = layer_sparsity(model)
    assert list(sparsity) == ["stem", "middle", "depthwise", "hidden", "classes"]
    assert sparsity["middle"] == 0.75
    assert sparsity["depthwise"] == 0.5
    assert sparsity["hidden"] == 0


def test_sparsity_of_separable_recurrent_and_nested_layers():
    inputs = keras.Input((6, 6, 2))
    inner = keras.Sequential([inputs, layers.SeparableConv2D(3, 3, name="separable")], name="inner")
    x = layers.Reshape((4, 12), name="reshape")(inner(inputs))
    model = keras.Model(inputs, layers.LSTM(2, name="lstm")(x))
    separable, lstm = inner.get_layer("separable"), model.get_layer("lstm")
    separable.depthwise_kernel.assign(np.zeros((3, 3, 2, 1)))
    separable.pointwise_kernel.assign(np.ones((1, 1, 2, 3)))
    lstm.cell.kernel.assign(np.ones((12, 8)))
    lstm.cell.recurrent_kernel.assign(np.zeros((2, 8)))
    assert layer_sparsity(model) == {"separable": 18 / (18 + 6), "lstm": 16 / (96 + 16)}


def test_file_size(tmp_path):
    path = tmp_path / "zeros.bin"
    path.write_bytes(bytes(10_000))
    size = file_size(path)
    assert size.file_bytes == 10_000
    assert len(gzip.decompress(gzip.compress(bytes(10_000), 9))) == 10_000
    assert 0 < size.gzip_bytes < 100
    with pytest.raises(ModelError, match="No file at .*absent"):
        file_size(tmp_path / "absent")
