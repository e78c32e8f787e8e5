"""Channel pruning: criteria against NumPy, budgets, rankings, statistics, and the errors of mistaken users."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.errors import DataError, InvalidArgumentError, ModelError
from tfcompress.graph.channels import channel_graph
from tfcompress.graph.macs import count_macs
from tfcompress.graph.shrink import shrink, silence
from tfcompress.measure.size import num_params
from tfcompress.techniques.channels import CRITERIA, Evidence, prune_channels, reestimate_batch_norm
from tfcompress.techniques.channels.cost import macs_cost, params_cost
from tfcompress.techniques.channels.selection import ranked, select


def network():
    """Two convolutions, each with its BatchNormalization, weights random."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, use_bias=False, name="a")(inputs)
    x = layers.ReLU(name="a_relu")(layers.BatchNormalization(name="a_norm")(x))
    x = layers.Conv2D(6, 3, name="b")(x)
    x = layers.ReLU(name="b_relu")(layers.BatchNormalization(name="b_norm")(x))
    model = keras.Model(inputs, layers.Dense(4, name="classes")(layers.GlobalAveragePooling2D()(x)), name="network")
    rng = np.random.default_rng(0)
    for name in ("a_norm", "b_norm"):
        layer = model.get_layer(name)
        layer.gamma.assign(rng.uniform(0.2, 2.0, size=layer.gamma.shape))
        layer.beta.assign(rng.normal(size=layer.beta.shape))
    return model


def samples(count=40):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 8, 8, 3)).astype("float32"), rng.integers(0, 4, size=count)


def evidence(model, **arguments):
    return Evidence(channel_graph(model), model, **arguments)


def units_of(graph, layer):
    """The units that a layer makes, in the order of its channels."""
    (member,) = (m for m in graph.members if m.layer == layer and m.makes and len(m.variable.shape) > 1)
    return member.units


def values(model, layer):
    return model.get_layer(layer).kernel.numpy().astype("float64")


@pytest.mark.parametrize("criterion, power", [("l1", 1), ("l2", 2)])
def test_norms(criterion, power):
    model = network()
    one = evidence(model)
    scores = CRITERIA[criterion](one)
    made = (np.abs(values(model, "a")) ** power).sum((0, 1, 2))
    read = (np.abs(values(model, "b")) ** power).sum((0, 1, 3))
    np.testing.assert_allclose(scores[units_of(one.graph, "a")], (made + read) ** (1 / power), rtol=1e-6)


def test_batch_norm_scale():
    model = network()
    one = evidence(model)
    scores = CRITERIA["batch_norm_scale"](one)
    np.testing.assert_allclose(scores[units_of(one.graph, "b")], np.abs(model.get_layer("b_norm").gamma))


def test_groups_without_batch_norm_are_kept_whole():
    inputs = keras.Input((4,))
    one = evidence(keras.Model(inputs, layers.Dense(2)(layers.Dense(3, name="x")(inputs))))
    assert np.isinf(CRITERIA["batch_norm_scale"](one)).all()
    with pytest.raises(ModelError, match="'batch_norm_scale' removes nothing.*no group .* has BatchNormalization fact"):
        prune_channels(one.model, macs=0.5, criterion="batch_norm_scale")
    with pytest.raises(ModelError, match="removes nothing.*every score is infinite"):
        prune_channels(one.model, macs=0.5, criterion=lambda evidence: np.full(3, np.inf))


def test_geometric_median():
    model = network()
    one = evidence(model)
    filters = values(model, "a").reshape(-1, 8).T
    expected = [sum(np.linalg.norm(row - other) for other in filters) for row in filters]
    np.testing.assert_allclose(CRITERIA["geometric_median"](one)[units_of(one.graph, "a")], expected, rtol=1e-6)


def squared_error(y, outputs):
    return tf.reduce_mean(tf.square(tf.one_hot(y, 4) - outputs), axis=1)


def test_taylor_and_hessian():
    model, (x, y) = network(), samples(8)
    one = evidence(model, batches=[(x[:4], y[:4]), (x[4:], y[4:])], loss=squared_error)
    # One weight at a time, by the difference that a small step makes.
    kernel, step = model.get_layer("b").kernel, 1e-2
    value = kernel.numpy()
    linear, second = np.zeros(6), np.zeros(6)
    for images, labels in one.batches:
        products = np.zeros_like(value, "float64")
        for index in np.ndindex(*value.shape):
            losses = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * step
                kernel.assign(moved)
                losses.append(float(tf.reduce_mean(squared_error(labels, model(images, training=False)))))
            products[index] = value[index] * (losses[0] - losses[1]) / (2 * step)
        kernel.assign(value)
        linear += products.sum((0, 1, 2)) ** 2
        second += (products**2).sum((0, 1, 2)) / 2
        break
    only = Evidence(one.graph, model, one.batches[:1], squared_error)
    units = units_of(one.graph, "b")
    np.testing.assert_allclose(CRITERIA["taylor"](only)[units], linear, rtol=0.05, atol=1e-3 * linear.max())
    np.testing.assert_allclose(CRITERIA["hessian"](only)[units], second, rtol=0.05, atol=1e-2 * second.max())
    assert (CRITERIA["taylor"](one)[units] >= CRITERIA["taylor"](only)[units]).all()
    assert (CRITERIA["taylor"](one) > CRITERIA["taylor"](only)).any()


def test_activations_where_they_are_read():
    model, (x, y) = network(), samples()
    one = evidence(model, batches=[(x, y)])
    read = keras.Model(model.input, model.get_layer("a_relu").output)(x, training=False).numpy()
    units = units_of(one.graph, "a")
    np.testing.assert_allclose(CRITERIA["activation_mean"](one)[units], np.abs(read).mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(CRITERIA["activation_nonzero"](one)[units], (read != 0).mean((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize("criterion", ["taylor", "hessian", "activation_mean", "activation_nonzero"])
def test_criteria_on_data_say_so(criterion):
    with pytest.raises(DataError, match=f"{criterion}.*Pass `data`"):
        prune_channels(network(), macs=0.5, criterion=criterion)


def test_costs_are_those_of_the_shrunk_model():
    model = network()
    graph = channel_graph(model)
    rng = np.random.default_rng(0)
    for _ in range(5):
        removed = rng.uniform(size=graph.num_units) < 0.4
        for units in graph.groups:
            removed[units[0]] = False
        small = shrink(graph, removed)
        assert macs_cost(model, graph)(removed) == pytest.approx(count_macs(small))
        assert params_cost(model, graph)(removed) == pytest.approx(num_params(small))


@pytest.mark.parametrize(
    "criterion, ranking", [*((name, "isomorphic") for name in sorted(CRITERIA)), ("l2", "global"), ("l2", "layer")]
)
def test_budget_is_met_and_nothing_more_is_removed(criterion, ranking):
    model = network()
    before = [weight.copy() for weight in model.get_weights()]
    small = prune_channels(model, macs=0.5, criterion=criterion, ranking=ranking, data=samples())
    share = count_macs(small) / count_macs(model)
    # One channel of `a` takes about an eighth of the multiply-adds with it.
    assert 0.5 - 0.13 < share <= 0.5
    for expected, actual in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_budgets_in_numbers_and_params():
    model = network()
    assert count_macs(prune_channels(model, macs=20_000)) <= 20_000
    assert num_params(prune_channels(model, params=0.6)) <= 0.6 * num_params(model)


def test_least_important_channels_go():
    model = network()
    kernel, rng = values(model, "a"), np.random.default_rng(0)
    weak = rng.permutation(8)[:4]
    kernel[..., weak] *= 1e-3
    model.get_layer("a").kernel.assign(kernel)
    reader = values(model, "b")
    reader[:, :, weak] *= 1e-3
    model.get_layer("b").kernel.assign(reader)
    small = prune_channels(model, macs=0.51, ranking="layer", exclude=["b"])
    np.testing.assert_allclose(small.get_layer("a").kernel, np.delete(kernel, weak, axis=3), rtol=1e-6)
    assert small.get_layer("b").filters == 6


def wrapped():
    """Channels of `expand` that others carry; those of wrapped layers; those of a sum."""
    inputs = keras.Input((6, 8))
    x = layers.TimeDistributed(layers.Dense(16), name="each_step")(inputs)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True), name="both_ways")(x)
    x = layers.Conv1D(16, 1, name="expand")(x)
    x = layers.BatchNormalization(name="norm")(layers.DepthwiseConv1D(3, padding="same", name="depthwise")(x))
    x = layers.Conv1D(16, 1, name="project")(x)
    x = layers.Add(name="sum")([x, layers.Conv1D(16, 1, name="branch")(x)])
    x = layers.Dense(16, name="last")(layers.GlobalAveragePooling1D(name="pool")(x))
    return keras.Model(inputs, layers.Dense(2, name="classes")(x))


@pytest.mark.parametrize(
    "excluded, kept",
    [
        ("each_step", {"each_step"}),
        ("both_ways", {"both_ways"}),
        ("expand", {"expand", "depthwise", "norm"}),
        ("depthwise", {"expand", "depthwise", "norm"}),
        ("norm", {"expand", "depthwise", "norm"}),
        ("sum", {"project", "branch"}),
        ("classes", set()),
    ],
)
def test_excluded_layers_keep_what_they_make_and_carry(excluded, kept):
    model = wrapped()
    small = prune_channels(model, macs=0.7, exclude=[excluded], ranking="layer")
    places = {"each_step", "both_ways", "expand", "depthwise", "norm", "project", "branch", "last"}
    whole = {name for name in places if small.get_layer(name).output.shape == model.get_layer(name).output.shape}
    assert whole == kept
    assert {member.layer for member in channel_graph(model).members} == places | {"classes"}


def test_ranking_by_layer_takes_the_same_share_of_each():
    graph = channel_graph(network())
    scores = np.where(np.isin(np.arange(graph.num_units), graph.groups[0]), 1e-6, 1.0)
    scores *= np.random.default_rng(0).uniform(0.5, 1.5, size=graph.num_units)
    by_layer = ranked(graph, scores, "layer")
    for units in graph.groups:
        assert sorted(by_layer[units]) == pytest.approx((np.arange(len(units)) + 0.5) / len(units))
    # Scores of a group are measured by its mean, so that scale alone decides nothing.
    means = [ranked(graph, scores, "global")[units].mean() for units in graph.groups]
    assert means == pytest.approx([1.0, 1.0])


def test_round_to_and_least_share():
    model = network()
    small = prune_channels(model, macs=0.6, round_to=2)
    assert small.get_layer("a").filters % 2 == 0 and small.get_layer("b").filters % 2 == 0
    # A multiple of 7 is left of 8 channels; 6 are fewer, and stay.
    small = prune_channels(model, macs=0.9, round_to=7)
    assert (small.get_layer("a").filters, small.get_layer("b").filters) == (7, 6)
    with pytest.raises(ModelError, match="cannot be made that small"):
        prune_channels(model, macs=0.9, round_to=7, exclude=["a"])
    graph = channel_graph(model)
    removed = select(graph, np.arange(graph.num_units, dtype=float), lambda gone: -gone.sum(), -graph.num_units + 2)
    assert [int((~removed[units]).sum()) for units in graph.groups] == [1, 1]


def test_statistics_are_those_of_the_data():
    model = network()
    x, _ = samples()
    keep = model.get_layer("a_norm").momentum
    # Other statistics before must not matter.
    model.get_layer("a_norm").moving_mean.assign(np.full(8, 7.0))
    assert reestimate_batch_norm(model, [x[:20], x[20:]]) == 2
    first = keras.Model(model.input, model.get_layer("a").output)(x, training=False).numpy()
    norm = model.get_layer("a_norm")
    np.testing.assert_allclose(norm.moving_mean, first.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, first.var((0, 1, 2)), rtol=1e-4)
    assert norm.momentum == keep


def test_a_short_batch_counts_by_its_samples():
    """And batches of different means have the variance between them, too."""
    x = np.random.default_rng(2).normal(100, 0.1, size=(33, 4)).astype("float32")
    x[:10] += 1
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="norm")])
    for batches in ([x[:32], x[32:]], [x[:10], x[10:11], x[11:]], [x]):
        reestimate_batch_norm(model, batches)
        norm = model.get_layer("norm")
        np.testing.assert_allclose(norm.moving_mean, x.mean(0, "float64"), rtol=1e-6)
        np.testing.assert_allclose(norm.moving_variance, x.astype("float64").var(0), rtol=1e-3)


def test_own_criterion_and_its_mistakes():
    model = network()
    graph = channel_graph(model)
    keep = units_of(graph, "a")[:4]
    small = prune_channels(
        model, macs=0.55, criterion=lambda one: np.where(np.isin(np.arange(14), keep), np.inf, 1.0), ranking="global"
    )
    np.testing.assert_array_equal(small.get_layer("a").kernel[..., :4], model.get_layer("a").kernel[..., :4])
    for wrong in (lambda one: np.zeros(3), lambda one: np.full(14, np.nan), lambda one: np.full(14, -np.inf)):
        with pytest.raises(InvalidArgumentError, match="gives 14 numbers"):
            prune_channels(model, macs=0.5, criterion=wrong)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "one of `macs`, `params`"),
        ({"macs": 0.5, "params": 0.5}, "one of `macs`, `params`"),
        ({"macs": 0}, "share in"),
        ({"macs": 1.5}, "share in"),
        ({"macs": True}, "share in"),
        ({"macs": 0.5, "criterion": "l3"}, "one of activation_mean"),
        ({"macs": 0.5, "ranking": "local"}, "one of"),
        ({"macs": 0.5, "round_to": 0}, "at least 1"),
        ({"macs": 0.5, "samples": 0}, "at least 1"),
        (
            {"macs": 0.5, "exclude": ["nothing"]},
            r"`exclude` must be patterns of the layer names \[.* Received: 'nothing'",
        ),
        ({"macs": 0.5, "data": [1, 2]}, "tfcompress Dataset"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        prune_channels(network(), **arguments)


def test_what_cannot_be_done():
    with pytest.raises(ModelError, match="cannot be made that small"):
        prune_channels(network(), macs=0.001)
    inputs = keras.Input((4,))
    with pytest.raises(ModelError, match="no channel that may go"):
        prune_channels(keras.Model(inputs, layers.Dense(2)(inputs)), macs=0.5)


@pytest.mark.parametrize("criterion", ["l2", lambda one: np.full(14, np.sum(one.model.get_layer("b").kernel))])
def test_weights_that_are_nan_are_named(criterion):
    model = network()
    kernel = model.get_layer("b").kernel.numpy()
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("b").kernel.assign(kernel)
    with pytest.raises(ModelError, match="'b/kernel' of layer 'b' has NaN values"):
        prune_channels(model, macs=0.5, criterion=criterion)


def test_fake_quantization_comes_afterwards():
    from tfcompress.techniques.quantize import quantize_aware

    with pytest.raises(ModelError, match="quantize afterwards"):
        prune_channels(quantize_aware(network(), samples()[0]), macs=0.5)


def test_silenced_twin_agrees_without_data():
    model = network()
    x, _ = samples(4)
    graph = channel_graph(model)
    small = prune_channels(model, macs=0.5, criterion="l1", ranking="global")
    scores = ranked(graph, CRITERIA["l1"](Evidence(graph, model)), "global")
    removed = select(graph, scores, macs_cost(model, graph), 0.5 * count_macs(model))
    silence(graph, removed)
    np.testing.assert_allclose(small(x, training=False), model(x, training=False), rtol=1e-4, atol=1e-5)
