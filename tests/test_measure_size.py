import gzip
import itertools
import math

import keras
import numpy as np
import pytest
from helpers import tiny_cnn
from keras import layers

from tfcompress.errors import ModelError
from tfcompress.measure import file_size, layer_sparsity, num_nonzero, num_params
from tfcompress.measure.size import coded_size


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


def shortest_code_bits(counts):
    """Bits of the best code, tried over all sets of code lengths that a code can have (Kraft)."""
    lengths = itertools.product(range(1, len(counts)), repeat=len(counts)) if len(counts) > 1 else [(1,)]
    return min(
        sum(count * length for count, length in zip(counts, chosen, strict=True))
        for chosen in lengths
        if sum(2.0**-length for length in chosen) <= 1
    )


@pytest.mark.parametrize("counts", [[9], [5, 5], [1, 2, 3], [40, 3, 2, 1], [16, 8, 4, 2, 1, 1], [7, 7, 7, 7, 7]])
def test_huffman_bytes_are_those_of_the_best_code(counts):
    values = np.repeat(np.arange(len(counts), dtype="int8"), counts)
    coded = coded_size(np.random.default_rng(0).permutation(values))
    assert coded.huffman_bytes == math.ceil(shortest_code_bits(counts) / 8) + 2 * len(counts)
    share = np.array(counts) / sum(counts)
    assert coded.entropy_bytes == pytest.approx(-sum(counts) * (share * np.log2(share)).sum() / 8, abs=1e-12)


def test_huffman_bytes_lie_within_a_bit_of_the_entropy():
    values = np.round(np.random.default_rng(1).normal(scale=5, size=(100, 100))).astype("int8")
    coded = coded_size(values)
    table = 2 * len(np.unique(values))
    assert coded.entropy_bytes <= coded.huffman_bytes - table < coded.entropy_bytes + values.size / 8
    assert coded_size(values.astype("float32")).huffman_bytes == coded.huffman_bytes + 3 * len(np.unique(values))
