import warnings

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.errors import ModelError
from tfcompress.graph.macs import count_macs, layer_macs
from tfcompress.models import build


def of(layer, *shapes, **kwargs):
    """Multiply-adds of one layer, called on inputs of the given shapes."""
    inputs = [keras.Input(shape) for shape in shapes]
    return count_macs(keras.Model(inputs, layer(*inputs, **kwargs)))


# Each number is output positions x kernel values, worked out by hand.
@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (layers.Dense(5), (7,), 7 * 5),
        (layers.Dense(5), (3, 4, 7), 3 * 4 * 7 * 5),
        (layers.Conv1D(4, 3), (10, 2), 8 * 3 * 2 * 4),
        (layers.Conv1D(4, 3, padding="causal", dilation_rate=2), (10, 2), 10 * 3 * 2 * 4),
        (layers.Conv2D(8, 3, padding="same"), (6, 5, 3), 6 * 5 * 9 * 3 * 8),
        (layers.Conv2D(8, (3, 1), strides=2, padding="same"), (7, 7, 3), 4 * 4 * 3 * 3 * 8),
        (layers.Conv2D(8, 5, strides=2), (28, 28, 1), 12 * 12 * 25 * 8),
        (layers.Conv2D(8, 3, groups=2, padding="same"), (6, 6, 4), 36 * 9 * 2 * 8),
        (layers.Conv2D(8, 3, data_format="channels_first", padding="same"), (3, 6, 5), 6 * 5 * 9 * 3 * 8),
        (layers.Conv3D(2, 3), (5, 6, 7, 3), 3 * 4 * 5 * 27 * 3 * 2),
        (layers.DepthwiseConv1D(3, depth_multiplier=2), (10, 4), 8 * 3 * 4 * 2),
        (layers.DepthwiseConv2D(3, strides=2, padding="same"), (8, 8, 6), 16 * 9 * 6),
        (layers.SeparableConv1D(5, 3), (10, 4), 8 * (3 * 4 + 4 * 5)),
        (layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2), (6, 6, 4), 36 * (9 * 8 + 8 * 5)),
        (layers.Conv1DTranspose(5, 4, strides=2), (6, 3), 6 * 4 * 3 * 5),
        (layers.Conv2DTranspose(5, 4, strides=2, padding="same"), (6, 6, 3), 36 * 16 * 3 * 5),
        (layers.Conv3DTranspose(2, 2, strides=2), (2, 3, 4, 3), 24 * 8 * 3 * 2),
        (layers.SimpleRNN(5), (7, 3), 7 * (3 * 5 + 5 * 5)),
        (layers.LSTM(5, return_sequences=True), (7, 3), 7 * 4 * (3 * 5 + 5 * 5)),
        (layers.GRU(5), (7, 3), 7 * 3 * (3 * 5 + 5 * 5)),
        (layers.GRU(5, reset_after=False), (7, 3), 7 * 3 * (3 * 5 + 5 * 5)),
        (
            layers.RNN([layers.LSTMCell(5), layers.GRUCell(2)]),
            (7, 3),
            7 * (4 * (3 * 5 + 5 * 5) + 3 * (5 * 2 + 2 * 2)),
        ),
        (layers.Bidirectional(layers.LSTM(5)), (7, 3), 2 * 7 * 4 * (3 * 5 + 5 * 5)),
        (layers.ConvLSTM1D(4, 3), (2, 6, 3), 2 * 4 * (3 * 3 * 16 + 3 * 4 * 16)),
        (layers.ConvLSTM2D(4, 3, padding="same"), (2, 6, 6, 3), 2 * 36 * (9 * 3 * 16 + 9 * 4 * 16)),
        (layers.TimeDistributed(layers.Conv2D(4, 3)), (5, 6, 6, 2), 5 * 16 * 9 * 2 * 4),
        (layers.SpectralNormalization(layers.Dense(5)), (7,), 35),
        (layers.EinsumDense("abc,cd->abd", output_shape=(3, 4)), (3, 7), 3 * 7 * 4),
        (layers.EinsumDense("...x,xy->...y", output_shape=4), (2, 3, 7), 2 * 3 * 7 * 4),
        (layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 4)), (3, 7), 3 * 7 * 2 * 4),
        (layers.BatchNormalization(), (6, 6, 4), 0),
        (layers.LayerNormalization(), (6, 6, 4), 0),
        (layers.Embedding(100, 8), (6,), 0),
        (layers.PReLU(), (6, 6, 4), 0),
        (layers.MaxPooling2D(2), (6, 6, 4), 0),
        (layers.AveragePooling2D(2), (6, 6, 4), 0),
        (layers.Flatten(), (6, 6, 4), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else None,
)
def test_one_layer(layer, shape, expected):
    assert of(layer, shape) == expected


def test_attention():
    projections = 5 * 8 * 6 + 7 * 4 * 6 + 7 * 4 * 10 + 5 * 10 * 8
    products = 5 * 7 * 2 * (3 + 5)
    assert of(layers.MultiHeadAttention(2, 3, value_dim=5), (5, 8), (7, 4)) == projections + products
    query, value, mask = keras.Input((5, 8)), keras.Input((7, 4)), keras.Input((5, 7))
    named = layers.MultiHeadAttention(2, 3, value_dim=5)(attention_mask=mask, value=value, query=query)
    assert count_macs(keras.Model([query, value, mask], named)) == projections + products
    query, value = keras.Input((5, 8)), keras.Input((7, 8))
    assert count_macs(keras.Model([query, value], layers.Attention()([query, value]))) == 5 * 7 * (8 + 8)
    assert count_macs(keras.Model([query, value], layers.Dot(axes=2)([query, value]))) == 5 * 7 * 8


def test_shared_layer_counts_once_a_call():
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    inputs = keras.Input((6, 6, 4))
    model = keras.Model(inputs, shared(layers.MaxPooling2D(2, name="pool")(shared(inputs))))
    assert layer_macs(model) == {"shared": (36 + 9) * 9 * 4 * 4, "pool": 0}


def test_nested_model_counts_at_the_size_it_is_called_with():
    inner_input = keras.Input((None, None, 3))
    inner = keras.Model(inner_input, layers.Conv2D(4, 3, padding="same", name="conv")(inner_input), name="inner")
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D(name="pool")(inner(inputs)))
    assert layer_macs(model) == {"conv": 36 * 9 * 3 * 4, "pool": 0}
    frames = keras.Input((5, 6, 6, 3))
    fixed = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(4, 3, padding="same")])
    assert count_macs(keras.Model(frames, layers.TimeDistributed(fixed)(frames))) == 5 * 36 * 9 * 3 * 4


def test_operations_between_layers_count_nothing():
    inputs = keras.Input((7,), name="x")
    model = keras.Model(inputs, layers.Dense(5, name="dense")(inputs * 2.0 + 1.0))
    assert layer_macs(model) == {"dense": 35}


class Half(layers.Conv2D):
    """Extends a known layer."""


class Custom(layers.Layer):
    """Has a matrix, and extends nothing known."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 5), name="matrix")

    def call(self, x):
        return keras.ops.matmul(x, self.matrix)


def test_custom_layers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of(Half(8, 3, padding="same"), (6, 6, 3)) == 36 * 9 * 3 * 8
    with pytest.warns(UserWarning, match="'custom' is counted as 0 multiply-adds: its class Custom extends no Keras"):
        assert of(Custom(name="custom"), (7,)) == 0


def test_unknown_sizes_and_missing_graphs_are_errors():
    inputs = keras.Input((None, None, 3))
    with pytest.raises(ModelError, match="layer 'conv' depend on a size that is unknown.*Build the model with a fixed"):
        count_macs(keras.Model(inputs, layers.Conv2D(4, 3, name="conv")(inputs)))

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError, match="must be a functional or Sequential model"):
        count_macs(Subclassed())


def test_the_model_stays_as_it_was():
    model = build("resnet", input_shape=(8, 8, 1), num_classes=3, width=4)
    before, config = model.get_weights(), model.get_config()
    count_macs(model)
    assert model.get_config() == config
    assert model.layers[1].output is not None  # Raises once a layer has two calls.
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_known_networks():
    # Caffe's LeNet-5: 24^2*25*20 + 8^2*25*20*50 + 800*500 + 500*10.
    assert count_macs(build("lenet", input_shape=(28, 28, 1), num_classes=10)) == 288_000 + 1_600_000 + 400_000 + 5_000
    stem = 32 * 32 * 27 * 16
    stage1 = 2 * 32 * 32 * 9 * 16 * 16
    stage2 = 16 * 16 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    stage3 = 8 * 8 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
    expected = stem + stage1 + stage2 + stage3 + 640
    assert expected == 12_501_632  # The 12.5 million of MLPerf Tiny's image classification.
    assert count_macs(build("resnet", input_shape=(32, 32, 3), num_classes=10)) == expected


def test_both_ways_to_downsample_cost_the_same():
    arguments = {"input_shape": (8, 8, 1), "num_classes": 3, "widths": (2, 4), "strides": (1, 2)}
    expected = 64 * 9 * 2 + 16 * 9 * 2 * 4 + 4 * 3
    assert (
        count_macs(build("cnn", **arguments)) == count_macs(build("cnn", **arguments, downsample="stride")) == expected
    )
