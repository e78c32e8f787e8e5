"""What channel pruning predicts that a smaller model costs is what that model costs, and budgets hold."""

import keras
import numpy as np
import pytest
from keras import layers
from zoo import small

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.graph.channels import channel_graph
from tfcompress.graph.shrink import shrink
from tfcompress.measure.size import num_params
from tfcompress.techniques.channels import budget, prune_channels
from tfcompress.techniques.channels.budget import ChannelBudget
from tfcompress.techniques.channels.cost import macs_cost, params_cost

SMALL = ("lstm", "gru", "bidirectional", "transformer", "conv1d", "unet", "multi_input", "multi_output", "recommender",
         "detector", "nested", "shared_layers", "op_layers", "preprocessing")  # fmt: skip


def pooled(inputs, x):
    return keras.Model(inputs, layers.Dense(2, name="classes")(layers.GlobalAveragePooling1D()(x)))


def products_without_kernels():
    """Most of its multiply-adds are in the two products of attention, and some in those of `Dot`."""
    inputs = keras.Input((32, 4))
    x = layers.Conv1D(8, 3, padding="same", name="first")(inputs)
    x = layers.Attention(name="attention")([x, x])
    x = layers.Conv1D(8, 3, padding="same", name="second")(x)
    x = layers.Dot(axes=(2, 2), name="dot")([x, x])
    return pooled(inputs, layers.Conv1D(8, 1, name="third")(x))


def long_attention():
    """Heads whose products cost more than their kernels, with queries and values of different lengths."""
    inputs = keras.Input((64, 8))
    x = layers.Dense(16, name="embed")(inputs)
    short = layers.AveragePooling1D(4, name="short")(x)
    across = layers.MultiHeadAttention(4, 6, value_dim=5, name="across")(x, value=short)
    return pooled(inputs, layers.MultiHeadAttention(2, 4, name="within")(across, across))


def shared_attention():
    """The same heads over sequences of two lengths."""
    inputs = keras.Input((64, 8))
    x = layers.Dense(16, name="embed")(inputs)
    shared = layers.MultiHeadAttention(4, 6, name="shared")
    short = layers.AveragePooling1D(4, name="short")(x)
    return pooled(inputs, layers.Concatenate(axis=1, name="both")([shared(x, short), shared(short, x)]))


def many_kernels():
    """Kernels and matrices of biases of all kinds."""
    inputs = keras.Input((12, 8))
    x = layers.GRU(12, return_sequences=True, name="gru")(inputs)
    x = layers.TimeDistributed(layers.Dense(12), name="each_step")(x)
    x = layers.SeparableConv1D(10, 3, depth_multiplier=2, name="separable")(x)
    x = layers.DepthwiseConv1D(3, name="depthwise")(x)
    x = layers.Conv1D(12, 1, groups=2, name="two_groups")(x)
    x = layers.Conv1D(12, 1, groups=6, name="six_groups")(x)
    x = layers.Conv1DTranspose(8, 3, strides=2, name="transposed")(x)
    x = layers.PReLU(shared_axes=[1], name="slopes")(x)
    return pooled(inputs, layers.Bidirectional(layers.LSTM(6, return_sequences=True), name="both_ways")(x))


OURS = (products_without_kernels, long_attention, shared_attention, many_kernels)


@pytest.mark.parametrize("build", [*(getattr(small, name) for name in SMALL), *OURS], ids=lambda build: build.__name__)
def test_costs_are_exact(build):
    model = build()
    graph = channel_graph(model)
    macs, params = macs_cost(model, graph), params_cost(model, graph)
    nothing = np.zeros(graph.num_units, bool)
    assert (macs(nothing), params(nothing)) == (tfc.count_macs(model), num_params(model))
    for seed in range(3):
        removed = np.random.default_rng(seed).uniform(size=graph.num_units) < 0.4
        for member in graph.members:
            if not np.append(~removed, True)[member.units].any():
                removed[member.units[0]] = False
        smaller = shrink(graph, removed)
        assert (macs(removed), params(removed)) == (tfc.count_macs(smaller), num_params(smaller))


@pytest.mark.parametrize("ranking", ["layer", "global", "isomorphic"])
@pytest.mark.parametrize("share", [0.35, 0.6])
@pytest.mark.parametrize("build", OURS[1:], ids=lambda build: build.__name__)
def test_the_budget_holds_whatever_multiplies(build, share, ranking):
    model = build()
    assert tfc.count_macs(prune_channels(model, macs=share, ranking=ranking)) <= share * tfc.count_macs(model)


def test_products_that_cannot_shrink_are_no_silent_success():
    model = products_without_kernels()
    least = shrink(graph := channel_graph(model), np.arange(1, graph.num_units))
    with pytest.raises(ModelError, match=f"{tfc.count_macs(least):,} are left .*, of {tfc.count_macs(model):,}\\."):
        prune_channels(model, macs=0.5)
    assert tfc.count_macs(least) > 0.8 * tfc.count_macs(model)


def dense():
    return keras.Sequential([keras.Input((4,)), layers.Dense(20, name="hidden"), layers.Dense(3)])


def test_a_model_that_costs_more_than_predicted_loses_more(monkeypatch):
    """A layer that nobody foresaw, by hand: 30 multiply-adds that no cost has, on top of 7 for each unit."""
    monkeypatch.setattr(budget, "count_macs", lambda model: tfc.count_macs(model) + 30)
    assert prune_channels(dense(), macs=100).get_layer("hidden").units == 10
    with pytest.raises(ModelError, match="44 are left when all goes that may, of 170.*Received: 40"):
        prune_channels(dense(), macs=40)


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_shares_may_be_numbers_of_numpy(number):
    assert prune_channels(dense(), macs=number(0.5)).get_layer("hidden").units == 10
    # Rounded to float32 it would be 16,777,216.
    assert int(ChannelBudget(macs=number(0.5)).limit(2 * 16_777_217)) == 16_777_217


def test_counts_may_be_numbers_of_numpy():
    assert prune_channels(dense(), macs=np.int64(70), round_to=np.int64(5)).get_layer("hidden").units == 10
    for wrong in (np.float32("nan"), np.True_, 0.5j, "0.5"):
        with pytest.raises(InvalidArgumentError, match="share in"):
            prune_channels(dense(), macs=wrong)
