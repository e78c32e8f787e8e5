"""Factorization against NumPy's SVD and einsum, its choices against brute force, and what it keeps of a model."""

import itertools

import keras
import numpy as np
import pytest
from helpers import CLOSE, blob_dataset, tiny_cnn, tiny_mlp
from keras import layers

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError, RecipeError
from tfcompress.graph.macs import layer_macs
from tfcompress.measure.metrics import Metrics
from tfcompress.pipeline import execute
from tfcompress.report.plots import kept_energy
from tfcompress.techniques.factorize.candidates import WAYS
from tfcompress.techniques.factorize.ranks import Choices, within_budget
from tfcompress.techniques.factorize.stage import Factorize
from tfcompress.techniques.prune import Prune
from tfcompress.techniques.quantize.stage import Quantize

SCHEDULE = {"polynomial_decay": {"final_sparsity": 0.5}}


def built(layer, *shape):
    """The layer, built for inputs of a shape, with a bias that matters, and a batch of inputs."""
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype("float32")
    layer(x)
    if layer.use_bias:
        layer.bias.assign(np.random.default_rng(2).normal(size=layer.bias.shape))
    return layer, x


def chain(way, rank):
    """The layers of a factorization, with their weights, as a function; and the weights."""
    kernels, squared_error = way.factors(rank)
    made = way.layers(rank, [f"{way.layer.name}_{suffix}" for suffix in way.suffixes])

    def call(x):
        for layer, kernel in zip(made, kernels, strict=True):
            if not layer.built:
                layer.build(x.shape)
                layer.kernel.assign(kernel)
            if layer is made[-1] and layer.use_bias:
                layer.bias.assign(way.layer.bias)
            x = layer(x)
        return np.asarray(x)

    return call, kernels, squared_error


def error(kernel, product):
    return np.linalg.norm(kernel - product) / np.linalg.norm(kernel)


def tail(matrix, rank):
    """Relative error of the best matrix of a rank, by NumPy's SVD."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return np.linalg.norm(values[rank:]) / np.linalg.norm(values)


def dense_model(*units, inputs=12, **options):
    sequence = [layers.Dense(size, name=f"dense{at}", **options) for at, size in enumerate(units, 1)]
    return keras.Sequential([keras.Input((inputs,), name="x"), *sequence], name="denses")


def conv_model(**options):
    inputs = keras.Input((9, 8, 8), name="x")
    options = {"padding": "same", "activation": "relu", **options}
    return keras.Model(inputs, layers.Conv2D(16, 3, name="conv", **options)(inputs), name="conv_model")


# --- the factors ---


@pytest.mark.parametrize("inputs, units", [(20, 7), (7, 20), (9, 9)])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_svd_of_a_dense_layer_is_the_best_there_is(inputs, units, rank):
    layer, x = built(layers.Dense(units, activation="tanh", name="y"), 3, inputs)
    call, (first, second), squared_error = chain(WAYS["svd"](layer), (rank,))
    kernel = layer.kernel.numpy()
    u, values, vt = np.linalg.svd(kernel.astype("float64"))
    np.testing.assert_allclose(first @ second, (u[:, :rank] * values[:rank]) @ vt[:rank], atol=1e-6)
    assert np.sqrt(squared_error) == pytest.approx(tail(kernel, rank), abs=1e-6)
    # Both factors are as large: each has half of every singular value.
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), np.linalg.norm(second, axis=1), rtol=1e-6)
    expected = np.tanh(x @ (first @ second) + layer.bias.numpy())
    np.testing.assert_allclose(call(x), expected, **CLOSE)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv1D(6, 1, strides=2, activation="relu"), (9, 8)),
        (layers.Conv2D(6, 1, strides=(2, 1), padding="same"), (9, 7, 8)),
        (layers.Conv2D(6, 1, groups=2, use_bias=False), (5, 5, 8)),
        (layers.Conv3D(6, 1, strides=2), (4, 5, 4, 3)),
    ],
)
def test_svd_of_a_pointwise_convolution_is_exact_at_full_rank(layer, shape):
    layer, x = built(layer, *shape)
    way = WAYS["svd"](layer)
    call, _, squared_error = chain(way, way.ranks[-1])
    np.testing.assert_allclose(call(x), np.asarray(layer(x)), **CLOSE)
    assert squared_error == 0


# Each way with each of these at full rank; the depthwise convolution has no unequal strides.
GEOMETRIES = [
    {"padding": "valid"},
    {"padding": "same", "strides": 2},
    {"padding": "valid", "strides": (2, 1)},
    {"padding": "same", "strides": (1, 2)},
    {"padding": "same", "dilation_rate": 2},
    {"padding": "valid", "dilation_rate": (1, 2)},
    {"padding": "same", "groups": 2, "use_bias": False},
    {"padding": "same", "strides": 2, "groups": 4, "kernel_size": (2, 4)},
]


@pytest.mark.parametrize(
    "method, options",
    [
        (method, options)
        for method, options in itertools.product(("spatial", "tucker", "separable"), GEOMETRIES)
        if method != "separable" or not isinstance(options.get("strides"), tuple)
    ],
)
def test_a_convolution_is_exact_at_full_rank(method, options):
    layer, x = built(layers.Conv2D(**{"filters": 8, "kernel_size": 3, "activation": "relu", **options}), 9, 8, 4)
    way = WAYS[method](layer)
    assert way.fits(layer)
    call, _, squared_error = chain(way, way.ranks[-1])
    np.testing.assert_allclose(call(x), np.asarray(layer(x)), **CLOSE)
    assert squared_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "layer, shape",
    [(layers.Conv1D(6, 3, padding="causal", dilation_rate=2), (9, 4)), (layers.Conv3D(4, 2), (4, 4, 4, 3))],
)
def test_tucker_takes_convolutions_of_any_rank(layer, shape):
    layer, x = built(layer, *shape)
    way = WAYS["tucker"](layer)
    np.testing.assert_allclose(chain(way, way.ranks[-1])[0](x), np.asarray(layer(x)), **CLOSE)


def test_spatial_is_the_best_column_times_row():
    layer, x = built(layers.Conv2D(6, (3, 2)), 7, 7, 5)
    call, (column, row), squared_error = chain(WAYS["spatial"](layer), (4,))
    kernel, product = layer.kernel.numpy(), np.einsum("hicr,jwrn->hwcn", column, row)
    best = tail(kernel.transpose(0, 2, 1, 3).reshape(15, 12), 4)
    assert error(kernel, product) == pytest.approx(best, abs=1e-6) == pytest.approx(np.sqrt(squared_error), abs=1e-6)
    layer.kernel.assign(product)
    np.testing.assert_allclose(call(x), np.asarray(layer(x)), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2])
def test_separable_is_the_best_for_each_input_channel(groups):
    layer, x = built(layers.Conv2D(6, 3, groups=groups), 7, 7, 4)
    call, (depthwise, pointwise), squared_error = chain(WAYS["separable"](layer), (2,))
    kernel = layer.kernel.numpy()
    lost = 0.0
    for group, channel in itertools.product(range(groups), range(4 // groups)):
        outputs = slice(group * 6 // groups, (group + 1) * 6 // groups)
        values = np.linalg.svd(kernel[:, :, channel, outputs].reshape(9, -1), compute_uv=False)
        lost += np.square(values[2:]).sum()
    assert squared_error == pytest.approx(lost / np.square(kernel).sum(), abs=1e-6)
    # The kernel that the two are worth: the second one's inputs are two for each channel.
    of_group = depthwise.reshape(3, 3, groups, 4 // groups, 2)
    mixed = pointwise.reshape(4 // groups, 2, groups, 6 // groups)
    product = np.einsum("hwgcm,cmgn->hwcgn", of_group, mixed).reshape(3, 3, 4 // groups, 6)
    layer.kernel.assign(product)
    np.testing.assert_allclose(call(x), np.asarray(layer(x)), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [(1, 1), (2, 3), (1, 4)])
def test_tucker_against_einsum(groups, rank):
    layer, x = built(layers.Conv2D(8, 3, groups=groups), 7, 7, 4 if groups == 2 else 6)
    way = WAYS["tucker"](layer)
    call, (first, core, last), squared_error = chain(way, rank)
    kernel = layer.kernel.numpy()
    product, lower, upper = np.zeros_like(kernel), 0.0, 0.0
    per_group = 8 // groups
    for group in range(groups):
        ins, mids = (slice(group * size, (group + 1) * size) for size in rank)
        outs = slice(group * per_group, (group + 1) * per_group)
        product[..., outs] = np.einsum("cr,hwrs,sn->hwcn", first[0, 0][:, ins], core[..., mids], last[0, 0][:, outs])
        part = kernel[..., outs].astype("float64")
        tails = [
            np.square(np.linalg.svd(np.moveaxis(part, axis, 0).reshape(part.shape[axis], -1), compute_uv=False)[r:])
            for axis, r in ((2, rank[0]), (3, rank[1]))
        ]
        lower += max(tails[0].sum(), tails[1].sum())
        upper += tails[0].sum() + tails[1].sum()
    square = np.square(kernel).sum()
    assert error(kernel, product) ** 2 == pytest.approx(squared_error, abs=1e-6)
    # The higher-order SVD is between these bounds, and the iteration only makes it better.
    assert lower / square - 1e-6 <= squared_error <= upper / square + 1e-6
    at = np.flatnonzero((way.ranks == rank).all(1))[0]
    assert squared_error <= way.errors[at] + 1e-12
    layer.kernel.assign(product)
    np.testing.assert_allclose(call(x), np.asarray(layer(x)), **CLOSE)


def test_the_iteration_beats_the_higher_order_svd():
    layer, _ = built(layers.Conv2D(12, 3), 7, 7, 12)
    way = WAYS["tucker"](layer)
    at = np.flatnonzero((way.ranks == (3, 3)).all(1))[0]
    assert way.factors((3, 3))[1] < way.errors[at] - 1e-3


# --- the choice of ranks ---


def random_choices(seed, count=40):
    rng = np.random.default_rng(seed)
    return Choices(rng.integers(1, 30, count), rng.integers(1, 30, count), rng.choice(np.linspace(0, 1, 9), count))


@pytest.mark.parametrize("seed", range(4))
def test_bounds_against_brute_force(seed):
    choices = random_choices(seed)
    rows = list(zip(choices.num_params, choices.macs, choices.errors, strict=True))
    for bound in (0.3, 0.6):
        best = min(row for row in rows if row[2] <= bound)
        assert rows[choices.within_error(bound)] == best
    for limit in (5, 15):
        best = min((row[2], row[0], row[1]) for row in rows if row[0] <= limit)
        found = rows[choices.within_params(limit)]
        assert (found[2], found[0], found[1]) == best
    assert choices.within_params(0) is None and choices.within_error(-1) is None


@pytest.mark.parametrize("seed", range(6))
def test_a_budget_over_layers_is_spent_best_where_ranks_cost_the_same(seed):
    rng = np.random.default_rng(seed)
    squares = [np.sort(rng.exponential(size=5))[::-1] for _ in range(3)]
    errors = [1 - np.cumsum(each) / each.sum() for each in squares]
    costs = [np.arange(1, 6)] * 3
    whole = [5, 5, 5]
    for budget in range(3, 15):
        picks = within_budget(costs, errors, whole, budget)
        total = sum(5 if pick is None else costs[at][pick] for at, pick in enumerate(picks))
        lost = sum(0.0 if pick is None else errors[at][pick] for at, pick in enumerate(picks))
        best = min(
            sum(errors[at][pick] for at, pick in enumerate(combination))
            for combination in itertools.product(range(5), repeat=3)
            if sum(pick + 1 for pick in combination) <= budget
        )
        assert total <= budget and lost == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_a_budget_over_layers_is_nearly_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    steps = rng.integers(2, 9, 3)
    errors = [np.sort(rng.uniform(size=6))[::-1] for _ in range(3)]
    costs = [step * np.arange(1, 7) for step in steps]
    whole = [int(5.5 * step) for step in steps]
    for budget in range(sum(steps), sum(whole), 5):
        picks = within_budget(costs, errors, whole, budget)
        total = sum(whole[at] if pick is None else costs[at][pick] for at, pick in enumerate(picks))
        assert total <= budget
        # Nothing that still fits makes any layer better.
        for at, pick in enumerate(picks):
            if pick is not None:
                spare = budget - total + costs[at][pick]
                assert errors[at][costs[at] <= spare].min() == errors[at][pick]


def test_energy_and_error_take_the_lowest_rank_that_keeps_them():
    model = dense_model(40, 40, inputs=40)
    # Singular values that fall by a tenth, so that low ranks are enough.
    rng = np.random.default_rng(0)
    for layer in model.layers:
        u, _, vt = np.linalg.svd(rng.normal(size=(40, 40)))
        layer.kernel.assign((u * 0.9 ** np.arange(40)) @ vt)
    values = np.linalg.svd(model.layers[0].kernel.numpy(), compute_uv=False)
    energies = np.cumsum(values**2) / np.sum(values**2)
    rank = int(np.argmax(energies >= 0.95)) + 1
    for arguments in ({"energy": 0.95}, {"error": np.sqrt(0.05)}):
        row = tfc.factorization_plan(model, **arguments).layers[0]
        assert row.rank == (rank,) and row.method == "svd"
        assert row.kept_energy == pytest.approx(energies[rank - 1], abs=1e-6)
        assert row.num_params_after == rank * 80 + 40


def test_ratio_takes_the_highest_rank_that_fits():
    plan = tfc.factorization_plan(dense_model(40, 10, inputs=60), ratio=0.5)
    # 60 x 40 + 40 = 2440 parameters: 100 r + 40 <= 1220; 40 x 10 + 10 = 410: 50 r + 10 <= 205.
    assert [row.rank for row in plan.layers] == [(11,), (3,)]


@pytest.mark.parametrize("method", ["auto", "spatial", "tucker", "separable"])
def test_ratio_of_a_convolution_against_brute_force(method):
    model = conv_model()
    row = tfc.factorization_plan(model, ratio=0.6, method=method).layers[0]
    best = (np.inf,)
    for name in ("spatial", "tucker") if method == "auto" else (method,):
        way = WAYS[name](model.get_layer("conv"))
        for at, rank in enumerate(way.ranks):
            if sum(size[at] for size in way.sizes) + 16 <= 0.6 * model.count_params():
                best = min(best, (way.errors[at], name, tuple(rank)))
    assert (row.method, row.rank) == best[1:]


@pytest.mark.parametrize("budget", ["params", "macs"])
def test_a_budget_is_met_and_used(budget):
    model = tiny_cnn()
    before = model.count_params() if budget == "params" else tfc.count_macs(model)
    made = tfc.factorize(model, **{budget: 0.6})
    after = made.count_params() if budget == "params" else tfc.count_macs(made)
    assert 0.5 * before < after <= 0.6 * before


@pytest.mark.parametrize(
    "arguments",
    [{"ratio": 0.5}, {"params": 0.6}, {"macs": 0.6}, {"error": 0.8}, {"ratio": 0.6, "method": "separable"}],
)
@pytest.mark.parametrize(
    "model",
    [
        tiny_cnn,
        lambda: dense_model(30, 20, 30, inputs=30),
        lambda: conv_model(strides=2, groups=2),
        lambda: conv_model(strides=(1, 2), padding="valid"),
    ],
    ids=["cnn", "dense", "grouped", "strided"],
)
def test_the_plan_tells_the_size_of_the_model(model, arguments):
    model = model()
    plan = tfc.factorization_plan(model, **arguments)
    assert (plan.num_params_before, plan.macs_before) == (model.count_params(), tfc.count_macs(model))
    if all(row.method is None for row in plan.layers):
        assert (plan.num_params_after, plan.macs_after) == (plan.num_params_before, plan.macs_before)
        with pytest.raises(ModelError, match="no layer that factorization makes smaller"):
            tfc.factorize(model, **arguments)
        return
    made = tfc.factorize(model, **arguments)
    assert (plan.num_params_after, plan.macs_after) == (made.count_params(), tfc.count_macs(made))
    for row in plan.layers:
        assert row.num_params_after <= row.num_params_before and row.macs_after <= row.macs_before
        assert bool(row.reason) == (row.method is None)
        chained = [
            each
            for each in made.layers
            if each.name in (row.layer, f"{row.layer}_u", f"{row.layer}_core", f"{row.layer}_depthwise")
        ]
        assert sum(each.count_params() for each in chained) == row.num_params_after
        assert sum(layer_macs(made)[each.name] for each in chained) == row.macs_after


def test_channels_first_counts_the_same():
    model = conv_model(data_format="channels_first", strides=2)
    plan = tfc.factorization_plan(model, ratio=0.5, method="spatial")
    assert plan.layers[0].method == "spatial"
    assert tfc.count_macs(tfc.factorize(model, ratio=0.5, method="spatial")) == plan.macs_after


# --- the model ---


def test_the_model_is_new_and_computes_the_product():
    model = dense_model(24, 20, inputs=30, activation="relu")
    before, config = [weight.copy() for weight in model.get_weights()], model.to_json()
    made = tfc.factorize(model, ratio=0.4)
    assert model.to_json() == config
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    assert [layer.name for layer in made.layers] == ["x", "dense1_u", "dense1", "dense2_u", "dense2"]
    assert made.name == model.name and made.input_shape == model.input_shape
    x = np.random.default_rng(0).normal(size=(5, 30)).astype("float32")
    expected = x
    for number in (1, 2):
        kernel, bias = model.get_layer(f"dense{number}").get_weights()
        u, values, vt = np.linalg.svd(kernel)
        rank = made.get_layer(f"dense{number}_u").units
        expected = np.maximum(expected @ ((u[:, :rank] * values[:rank]) @ vt[:rank]) + bias, 0)
    np.testing.assert_allclose(made.predict(x, verbose=0), expected, **CLOSE)


def test_settings_go_where_they_belong(tmp_path):
    options = {
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "bias_regularizer": keras.regularizers.L1(0.2),
        "bias_constraint": keras.constraints.NonNeg(),
        "activity_regularizer": keras.regularizers.L2(0.3),
        "activation": "relu",
        "trainable": False,
        "dtype": "mixed_bfloat16",
    }
    for method in ("spatial", "tucker", "separable"):
        made = tfc.factorize(conv_model(**options), ratio=0.5, method=method)
        *inner, last = made.layers[1:]
        assert last.name == "conv" and last.get_config()["activation"] == "relu"
        assert last.bias_constraint and last.bias_regularizer and last.activity_regularizer
        for layer in inner:
            assert layer.get_config()["activation"] == "linear" and not layer.use_bias
            assert layer.bias_regularizer is layer.activity_regularizer is layer.bias_constraint is None
        for layer in (*inner, last):
            given = (
                layer.depthwise_regularizer if method == "separable" and layer is not last else layer.kernel_regularizer
            )
            assert float(given.l2) == pytest.approx(0.1)
            assert not layer.trainable and layer.dtype_policy.name == "mixed_bfloat16"
        made.save(tmp_path / "made.keras")
        reloaded = keras.saving.load_model(tmp_path / "made.keras")
        x = np.ones((1, 9, 8, 8), "float32")
        np.testing.assert_array_equal(reloaded.predict(x, verbose=0), made.predict(x, verbose=0))


def test_a_shared_layer_stays_shared():
    first, second = keras.Input((16,), name="first"), keras.Input((16,), name="second")
    shared = layers.Dense(16, name="shared")
    model = keras.Model([first, second], layers.Add(name="sum")([shared(first), shared(second)]))
    plan = tfc.factorization_plan(model, ratio=0.5)
    made = tfc.factorize(model, ratio=0.5)
    assert [layer.name for layer in made.layers] == ["first", "second", "shared_u", "shared", "sum"]
    assert plan.layers[0].macs_before == 2 * 256
    assert tfc.count_macs(made) == plan.macs_after == 2 * plan.layers[0].rank[0] * 32
    x = np.random.default_rng(0).normal(size=(3, 16)).astype("float32")
    forth, back = (made.predict(list(pair), verbose=0) for pair in ((x, 2 * x), (2 * x, x)))
    np.testing.assert_allclose(forth, back, **CLOSE)


def test_nested_models_are_opened_and_their_names_told_apart():
    def inner(name):
        inputs = keras.Input((16,))
        return keras.Model(inputs, layers.Dense(16, name="dense")(inputs), name=name)

    inputs = keras.Input((16,), name="x")
    model = keras.Model(inputs, inner("b")(inner("a")(inputs)))
    made = tfc.factorize(model, ratio=0.5)
    assert [layer.name for layer in made.layers] == ["x", "dense_u", "dense", "dense_1_u", "dense_1"]
    assert [row.layer for row in tfc.factorization_plan(model, ratio=0.5).layers] == ["dense", "dense_1"]


def test_a_new_name_that_is_taken_gets_a_number():
    inputs = keras.Input((16,), name="x")
    hidden = layers.Dense(16, name="y_u")(layers.Dense(16, name="y")(inputs))
    made = tfc.factorize(keras.Model(inputs, hidden), ratio=0.5, include=["y"])
    assert [layer.name for layer in made.layers] == ["x", "y_u_1", "y", "y_u"]


def everything():
    """One layer of each kind that is left alone, and why."""
    inputs = keras.Input((6, 16), name="x")
    x = layers.TimeDistributed(layers.Dense(16), name="distributed")(inputs)
    x = layers.LSTM(16, return_sequences=True, name="lstm")(x)
    x = layers.Dense(16, name="constrained", kernel_constraint="non_neg")(x)
    x = layers.Dense(16, name="zero", kernel_initializer="zeros")(x)
    x = layers.Dense(2, name="narrow")(x)
    x = layers.Dense(16, name="excluded")(x)
    x = layers.Conv1D(16, 3, name="long")(layers.Dense(16, name="wide")(x))
    return keras.Model(inputs, x, name="everything")


def test_what_is_left_alone_says_why():
    plan = tfc.factorization_plan(everything(), ratio=0.5, method="svd", exclude=["excl*"])
    assert {row.layer: row.reason for row in plan.layers} == {
        "distributed": "layers of class TimeDistributed are not factorized",
        "lstm": "layers of class LSTM are not factorized",
        "constrained": "its kernel has a constraint, NonNeg, that a product would not keep",
        "zero": "its kernel is all zero",
        "narrow": "it has 34 parameters, and at the lowest rank still 20",
        "excluded": "excluded",
        "wide": "",
        "long": "it can be factorized by tucker only: svd is for dense layers and convolutions with kernels of size 1",
    }
    assert [row.method for row in plan.layers if not row.reason] == ["svd"]
    assert "layers of class TimeDistributed are" in str(plan)
    made = tfc.factorize(everything(), ratio=0.5, method="svd", include=["wide"])
    assert [layer.name for layer in made.layers if layer.name.endswith("_u")] == ["wide_u"]


def test_a_layer_with_lora_is_left_alone_and_an_initial_value_of_another_shape_goes():
    inputs = keras.Input((16,))
    table = keras.initializers.Constant(np.ones((16, 24)))
    model = keras.Model(inputs, [layers.Dense(24, kernel_initializer=table, name=name)(inputs) for name in "ab"])
    for layer in model.layers[1:]:
        layer.kernel.assign(np.outer(np.arange(1, 17), np.arange(1, 25)) / 100)
    model.get_layer("b").enable_lora(2)
    plan = tfc.factorization_plan(model, error=0.01)
    assert {row.layer: row.reason for row in plan.layers if row.reason} == {
        "b": "its kernel has LoRA weights beside it; merge them first"
    }
    x = np.random.default_rng(0).normal(size=(4, 16)).astype("float32")
    small = tfc.factorize(model, error=0.01)
    assert small.get_layer("a_u").units == 1
    for expected, actual in zip(model(x), small(x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_rank_that_would_be_larger_is_told():
    model = dense_model(16, inputs=16)
    model.layers[0].kernel.assign(np.eye(16))  # All singular values are equal.
    plan = tfc.factorization_plan(model, error=0.2)
    (row,) = plan.layers
    assert row.method is None and row.num_params_after == row.num_params_before
    assert row.reason.startswith("svd needs rank 16: 512 kernel values instead of 256, 512 MACs instead of 256")
    with pytest.raises(ModelError, match="'denses' has no layer that factorization makes smaller. dense1: svd needs"):
        tfc.factorize(model, error=0.2)


def test_a_layer_that_would_only_be_slower_is_left_alone():
    # With strides, Tucker's first layer runs at every input position: fewer parameters, more multiply-adds.
    model = conv_model(strides=8)
    whole = tfc.count_macs(model)
    way = WAYS["tucker"](model.get_layer("conv"))
    plan = tfc.factorization_plan(model, ratio=0.9, method="tucker")
    fewer = np.flatnonzero(np.sum(way.sizes, axis=0) + 16 <= 0.9 * model.count_params())
    closest = fewer[np.argmin(way.errors[fewer])]
    assert way.macs([((1, 9, 8, 8), (1, 2, 1, 16))])[closest] > whole >= plan.layers[0].macs_after
    assert plan.layers[0].method == "tucker" and plan.layers[0].rank != tuple(way.ranks[closest])


def test_unknown_sizes_leave_parameters_to_go_by():
    inputs = keras.Input((None, None, 8))
    model = keras.Model(inputs, layers.Conv2D(16, 3, name="conv")(inputs))
    plan = tfc.factorization_plan(model, params=0.5)
    assert plan.macs_before is plan.macs_after is plan.layers[0].macs_after is None
    assert tfc.factorize(model, params=0.5).count_params() == plan.num_params_after
    with pytest.raises(ModelError, match="depend on a size that is unknown"):
        tfc.factorize(model, macs=0.5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one of energy, error, ratio, params, macs. Received: {}"),
        ({"energy": 0.9, "params": 0.5}, "exactly one of"),
        ({"params": 1}, "`factorize.params` must be a number between 0 and 1, both excluded. Received: 1"),
        ({"error": 0.0}, "`factorize.error` must be"),
        ({"ratio": True}, "`factorize.ratio` must be"),
        ({"ratio": 0.5, "method": "qr"}, "`factorize.method` must be one of"),
        ({"ratio": 0.5, "include": "dense1"}, "`factorize.include` must be a list of patterns"),
        (
            {"ratio": 0.5, "exclude": ["nothing*"]},
            r"`factorize.exclude` must be patterns of the layer names \['dense1'",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    for function in (tfc.factorize, tfc.factorization_plan):
        with pytest.raises(InvalidArgumentError, match=message):
            function(dense_model(16, 16), **arguments)


def test_a_budget_out_of_reach_says_what_is_in_reach():
    model = dense_model(40, 40, inputs=40)
    # Rank 1 everywhere: 2 x (80 + 40) of 2 x 1640 parameters.
    with pytest.raises(ModelError, match=r"down to `params: 0.05`: at the lowest ranks it still has 0.0732"):
        tfc.factorize(model, params=0.05)
    assert tfc.factorize(model, params=0.0732).count_params() == 240


def test_a_kernel_that_is_not_finite_is_named():
    model = dense_model(16, 16)
    model.layers[0].kernel.assign(np.full((12, 16), np.nan))
    with pytest.raises(ModelError, match="kernel of layer 'dense1' is not finite"):
        tfc.factorize(model, ratio=0.5)


# --- the stage ---


def test_a_stage_trains_what_it_factorized_under_a_teacher(tmp_path, monkeypatch):
    # Without its figures, which cost a conversion and are tested with the pipeline.
    figures = dict.fromkeys(Metrics.__dataclass_fields__, 0)
    monkeypatch.setattr(execute, "keras_row", lambda stage, *_: Metrics(**{**figures, "stage": stage}))
    recipe = tfc.parse_recipe("""
        data: {batch_size: 32}
        stages:
          - factorize: {params: 0.6, teach: {temperature: 2.0}, train: {epochs: 3, learning_rate: 5.0e-3}}
        """)
    model = tiny_mlp()
    data = blob_dataset(64, shape=(8,))
    result = tfc.compress(model, data, recipe, tmp_path / "out", progress=False)
    made = tfc.factorize(model, params=0.6)
    assert [layer.name for layer in result.model.layers] == [layer.name for layer in made.layers]
    assert result.model.count_params() <= 0.6 * model.count_params()
    assert not np.allclose(result.model.get_layer("first").kernel, made.get_layer("first").kernel)


def test_a_stage_is_checked_before_training(tmp_path):
    data = blob_dataset(64, shape=(8,))
    for arguments, message in (
        ("{ratio: 1.5}", r"stages\.0\.factorize\.ratio` must be a number between 0 and 1"),
        ("{}", "must be given exactly one of energy"),
        ("{params: 0.01}", "cannot be applied. Model 'mlp' cannot be factorized down to `params: 0.01`"),
        ("{ratio: 0.5, include: [none]}", "factorize.include` must be patterns of the layer names"),
        (
            "{ratio: 0.5, method: spatial}",
            "no layer that factorization makes smaller. first: it can be factorized by svd",
        ),
    ):
        recipe = tfc.parse_recipe(f"{{train: {{epochs: 1}}, stages: [{{factorize: {arguments}}}]}}")
        with pytest.raises(RecipeError, match=message):
            tfc.compress(tiny_mlp(), data, recipe, tmp_path / "out", progress=False)


def test_zeros_of_earlier_stages_are_refused_by_name():
    def after(earlier, **arguments):
        Factorize(ratio=0.5, **arguments).check_after([earlier])

    with pytest.raises(ModelError, match="The zeros of Prune would be lost"):
        after(Prune(schedule=SCHEDULE))
    with pytest.raises(ModelError, match="The zeros of Prune"):
        after(Prune(schedule=SCHEDULE, include=("dense*", "conv")), exclude=("dense1", "conv"))
    with pytest.raises(ModelError, match="The zeros of Prune"):
        after(Prune(schedule=SCHEDULE, include=("dense?",)), exclude=("[ad]*",))
    after(Prune(schedule=SCHEDULE, include=("dense*", "conv")), exclude=("dense*", "c*"))
    after(Prune(schedule=SCHEDULE, exclude=("head*",)), include=("head_1", "head_2"))
    with pytest.raises(ModelError, match="float models only"):
        after(Quantize())


def test_the_picture_has_two_bars_for_each_factorized_layer():
    plan = tfc.factorization_plan(tiny_mlp(), ratio=0.6, exclude=["last"])
    axes = kept_energy(plan.rows()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{row.layer}\nsvd, rank {row.rank[0]}" for row in plan.layers[:2]
    ]
    energies, parameters = ([bar.get_width() for bar in bars] for bars in axes.containers)
    np.testing.assert_allclose(energies, [100 * row.kept_energy for row in plan.layers[:2]])
    np.testing.assert_allclose(
        parameters, [100 * row.num_params_after / row.num_params_before for row in plan.layers[:2]]
    )
    assert kept_energy(tfc.factorization_plan(tiny_mlp(), error=0.001).rows()) is None
