"""Weight pruning beyond magnitude: criteria, patterns, budgets, regrowth, rewinding; against NumPy, and resumed."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    CLOSE,
    BatchEnds,
    OwnStep,
    blob_dataset,
    blobs,
    cross_entropy,
    tiny_cnn,
    tiny_mlp,
    trained_on_one_and_two_replicas,
    whole_and_resumed,
)

from tfcompress.errors import InvalidArgumentError, ModelError, TrainingError
from tfcompress.techniques.kernels import find_kernels
from tfcompress.techniques.listening import OptimizerListener
from tfcompress.techniques.masks import HoldMasks
from tfcompress.techniques.prune import (
    CRITERIA,
    Pattern,
    SensitivityBudget,
    WeightPruning,
    choose_masks,
    prunable_kernels,
)
from tfcompress.techniques.prune.budgets import erk
from tfcompress.techniques.schedules import PruningRounds, tfmot_schedules
from tfcompress.train_settings import TrainSettings
from tfcompress.training.fit import fit

PATTERNS = (None, "2:4", "4:8", "1x4", "1x16")


def schedule_to(final=0.5, end_step=8):
    return tfmot_schedules().PolynomialDecay(0.0, final, 0, end_step, frequency=2)


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def train(model, callbacks, *, trainer=None, epochs=3, optimizer="adam", **options):
    trainer = trainer or model
    trainer.compile(optimizer, cross_entropy(), **options)
    x, y = blobs(shape=(8,))
    trainer.fit(x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def check_pattern(kernel, pattern):
    """Zeros in groups along the inputs of a dense kernel `(inputs, outputs)`."""
    columns = kernel.T
    if ":" in pattern:
        left, width = map(int, pattern.split(":"))
        assert ((columns.reshape(-1, width) == 0).sum(1) == width - left).all()
    else:
        blocks = columns.reshape(-1, int(pattern.removeprefix("1x"))) == 0
        assert (blocks.all(1) | ~blocks.any(1)).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_and_pattern_at_every_batch_end(criterion, pattern, tmp_path):
    model = tiny_mlp()
    schedule = schedule_to()
    pruning = WeightPruning(model, schedule, criterion=criterion, pattern=pattern, include=["second"])
    ends = BatchEnds(model.get_layer("second").kernel)
    train(model, [pruning, ends])
    unit = {None: 1, "2:4": 2, "4:8": 4, "1x4": 4, "1x16": 16}[pattern]
    before = np.zeros((16, 16), bool)
    sparsity = 0.0
    for step, kernel in enumerate(ends.seen, 1):
        should_prune, due = schedule(tf.constant(step))
        sparsity = float(due) if should_prune else sparsity
        assert (kernel == 0).sum() == round(sparsity * 256 / unit) * unit
        assert (kernel == 0)[before].all()  # What is pruned stays pruned.
        before = kernel == 0
    assert sparsity == 0.5
    if pattern:
        check_pattern(ends.seen[-1], pattern)
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(values(reloaded.get_layer("second").kernel), ends.seen[-1])
    # And through a later training.
    train(reloaded, [HoldMasks(reloaded)], epochs=1)
    np.testing.assert_array_equal(values(reloaded.get_layer("second").kernel) == 0, before)


def numpy_training(start, x, y, steps, rate, prune_at):
    """SGD on the mean squared error of a linear layer, and what criteria see of it; masks after step `prune_at`."""
    weights = start.astype(np.float64)
    sums = {"taylor": 0, "movement": 0, "hessian": 0}
    for step in range(1, steps + 1):
        rows = slice(8 * (step - 1), 8 * step)
        gradient = 2 * x[rows].T @ (x[rows] @ weights - y[rows]) / y[rows].size
        sums["taylor"] += np.abs(weights * gradient)
        sums["movement"] += -weights * gradient
        sums["hessian"] += gradient**2
        weights = weights - rate * gradient
        if step == prune_at:
            break
    sums["hessian"] = sums["hessian"] * weights**2
    return weights, sums


@pytest.mark.parametrize("how", ["plain", "jit", "own_step", "two_steps_per_execution"])
@pytest.mark.parametrize("criterion", ["taylor", "movement", "hessian"])
def test_gradients_are_those_of_the_training(criterion, how):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, use_bias=False, name="only")])
    kernel = model.layers[0].kernel
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8)).astype("float32"), rng.normal(size=(32, 8)).astype("float32")
    weights, sums = numpy_training(values(kernel), x, y, 4, 0.1, prune_at=4)
    order = np.argsort(sums[criterion].ravel())
    expected = weights.ravel().copy()
    expected[order[:24]] = 0
    trainer = OwnStep(model) if how == "own_step" else model
    options = {"jit": {"jit_compile": True}, "two_steps_per_execution": {"steps_per_execution": 2}}.get(how, {})
    trainer.compile(keras.optimizers.SGD(0.1), "mse", **options)
    pruning = WeightPruning(model, lambda step: (step == 4, 24 / 64), criterion=criterion, include=["only"])
    trainer.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[pruning])
    np.testing.assert_allclose(values(kernel).ravel(), expected, **CLOSE)
    # The optimizer is as it was.
    assert "apply" not in trainer.optimizer.__dict__


def test_a_second_fit_goes_on_in_the_schedule_where_gradients_are_accumulated():
    model = tiny_mlp()
    pruning = WeightPruning(model, schedule_to(0.5, end_step=6), include=["second"])
    ends = BatchEnds(model.get_layer("second").kernel)
    model.compile(keras.optimizers.Adam(gradient_accumulation_steps=4), cross_entropy())
    x, y = blobs(shape=(8,))
    for _ in range(2):
        model.fit(x, y, batch_size=len(x) // 8, verbose=0, callbacks=[pruning, ends])
    sparsities = [float(np.mean(kernel == 0)) for kernel in ends.seen]
    assert sparsities == sorted(sparsities) and sparsities[5:] == [0.5] * (len(sparsities) - 5)


def test_weights_that_become_no_numbers_are_named():
    model = tiny_mlp()
    pruning = WeightPruning(model, schedule_to(), include=["second"])
    with pytest.raises(ModelError, match="Kernel 'second' holds weights that are NaN or infinite"):
        train(model, [pruning], optimizer=keras.optimizers.SGD(1e38))


@pytest.mark.parametrize("first", [0, 1])
def test_two_listeners_leave_the_optimizer_as_it_was(first):
    variable = keras.Variable([1.0])
    optimizer = keras.optimizers.SGD(0.5)
    calls = []

    def listener(name):
        def step(apply, gradients, variables):
            calls.append(name)
            return apply(gradients, variables)

        return OptimizerListener(step)

    listeners = [listener(name) for name in "ab"]
    for each in listeners:
        each.install(keras.optimizers.LossScaleOptimizer(optimizer) if each is listeners[0] else optimizer)
    optimizer.apply([tf.constant([1.0])], [variable])
    assert calls == ["b", "a"]
    listeners[first].remove()
    calls.clear()
    optimizer.apply([tf.constant([1.0])])
    # Whoever goes first may take those below along; no call comes to one that was removed.
    assert "ab"[first] not in calls
    listeners[1 - first].remove()
    optimizer.apply([tf.constant([-2.0])])
    assert values(variable) == 1.0 and "apply" not in optimizer.__dict__


def test_a_distiller_gives_its_own_gradients():
    from tfcompress.techniques.distill import Distiller, SoftTargets

    student = tiny_mlp()
    distiller = Distiller(student, tiny_mlp(name="teacher"), [SoftTargets(weight=0.5)])
    ends = BatchEnds(student.get_layer("second").kernel)
    pruning = WeightPruning(student, schedule_to(), criterion="movement", include=["second"])
    train(student, [pruning, ends], trainer=distiller)
    assert np.mean(ends.seen[-1] == 0) == 0.5


def test_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = tiny_mlp()
    finally:
        keras.config.set_dtype_policy("float32")
    pruning = WeightPruning(model, schedule_to(), criterion="taylor", include=["second"])
    train(model, [pruning], optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=8.0))
    assert np.mean(values(model.get_layer("second").kernel) == 0) == 0.5


def test_two_replicas_see_the_gradients_of_both():
    models = trained_on_one_and_two_replicas(
        lambda replica: [WeightPruning(replica, schedule_to(), criterion="movement", regrow=0.3, include=["second"])]
    )
    one, two = (values(model.get_layer("second").kernel) for model in models)
    assert np.mean(two == 0) == 0.5
    np.testing.assert_allclose(two, one, **CLOSE)


def test_a_train_step_without_the_optimizer_is_an_error():
    class Stubborn(OwnStep):
        def train_step(self, data):
            return {"loss": tf.constant(0.0)}

    model = tiny_mlp()
    pruning = WeightPruning(model, schedule_to(), criterion="taylor", include=["second"])
    with pytest.raises(TrainingError, match="none came by: this model's `train_step` does not give them"):
        train(model, [pruning], trainer=Stubborn(model))


def test_a_kernel_without_a_gradient_is_an_error():
    class Partly(OwnStep):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.loss_of(x, y)
            variables = self.inner.get_layer("second").trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    for include, match in ((["first", "second"], "Received: none of .*first/kernel"), (["second"], None)):
        model = tiny_mlp()
        pruning = WeightPruning(model, schedule_to(), criterion="taylor", include=include)
        if match is None:
            train(model, [pruning], trainer=Partly(model))
            assert np.mean(values(model.get_layer("second").kernel) == 0) == 0.5
        else:
            with pytest.raises(TrainingError, match=match):
                train(model, [pruning], trainer=Partly(model))


def test_due_before_the_first_gradient_is_done_after_the_first_step():
    model = tiny_mlp()
    ends = BatchEnds(model.get_layer("second").kernel)
    schedule = tfmot_schedules().ConstantSparsity(0.5, begin_step=0, frequency=100)
    train(model, [WeightPruning(model, schedule, criterion="taylor", include=["second"]), ends], epochs=1)
    assert [float(np.mean(kernel == 0)) for kernel in ends.seen] == [0.5] * 4


def test_criteria_of_a_user():
    model = tiny_mlp()
    start = values(model.get_layer("second").kernel).copy()
    schedule = tfmot_schedules().ConstantSparsity(0.25, begin_step=0, frequency=100)
    # The largest go.
    pruning = WeightPruning(model, schedule, criterion=lambda weights: -np.abs(weights), include=["second"])
    train(model, [pruning], epochs=1)
    zeros = values(model.get_layer("second").kernel) == 0
    assert zeros.sum() == 64 and np.abs(start[zeros]).min() >= np.abs(start[~zeros]).max()
    other = tiny_mlp()
    wrong = WeightPruning(other, schedule, criterion=lambda weights: weights[0], include=["second"])
    with pytest.raises(InvalidArgumentError, match=r"scores of the shape \(16, 16\) of kernel 'second'.*shape \(16,\)"):
        train(other, [wrong], epochs=1)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1x4", "1x16"])
def test_patterns_drop_the_lowest_units(pattern):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 1, size=(12, 32))
    (keep,) = choose_masks([scores], 0.25, pattern=Pattern.parse(pattern))
    width = int(pattern.replace("x", ":").split(":")[1])
    zeros = int(pattern.split(":")[0]) if ":" in pattern else width
    units = scores.reshape(-1, width)
    costs = np.sort(units, axis=1)[:, :zeros].sum(1)
    dropped = np.argsort(costs)[: round(0.25 * scores.size / zeros)]
    expected = np.ones(units.shape, bool)
    for unit in dropped:
        expected[unit, np.argsort(units[unit])[:zeros]] = False
    np.testing.assert_array_equal(keep, expected.reshape(scores.shape))


def test_patterns_go_along_the_inputs_of_every_kind_of_layer():
    inputs = keras.Input((8, 8, 8))
    x = keras.layers.Conv2D(16, 3, padding="same", name="conv")(inputs)
    x = keras.layers.Conv2DTranspose(4, 2, name="transposed")(x)
    x = keras.layers.Reshape((-1, 4))(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.LSTM(4, name="lstm")(x)
    model = keras.Model(inputs, x)
    names = ["conv", "transposed", "attention", "lstm"]
    pruning = WeightPruning(model, lambda step: (step == 0, 0.5), pattern="2:4", include=names)
    model.compile("sgd", "mse")
    model.fit(np.zeros((2, 8, 8, 8)), np.zeros((2, 4)), verbose=0, callbacks=[pruning])
    # Each array with its inputs last.
    found = {kernel.name: values(kernel.variable) for kernel in find_kernels(model)}
    rows = {
        "conv": found["conv"].transpose(0, 1, 3, 2),
        "transposed": found["transposed"],
        "attention/query": found["attention/query/kernel"].transpose(1, 2, 0),
        "attention/attention_output": found["attention/attention_output/kernel"].transpose(2, 0, 1),
        "lstm/kernel": found["lstm/lstm_cell/kernel"].T,
        "lstm/recurrent_kernel": found["lstm/lstm_cell/recurrent_kernel"].T,
    }
    for name, array in rows.items():
        assert ((np.ascontiguousarray(array).reshape(-1, 4) == 0).sum(1) >= 2).all(), name
        assert np.mean(array == 0) == 0.5


def test_patterns_that_fit_no_kernel_or_schedule():
    with pytest.raises(ModelError, match=r"a multiple of 16 inputs.*exclude.*Received: first \(8\)\."):
        WeightPruning(tiny_mlp(), schedule_to(), pattern="1x16", include=["*"])
    with pytest.raises(ModelError, match=r"Received: depthwise \(depthwise\)"):
        WeightPruning(tiny_cnn(), schedule_to(), pattern="1x4", include=["depthwise"])
    with pytest.raises(InvalidArgumentError, match=r"one that ends at a sparsity of 0.5.*Received: 0.75"):
        WeightPruning(tiny_mlp(), schedule_to(0.75), pattern="2:4", include=["second"])
    for text in ("4:2", "2x4", "1x1", "2:4:8", 4):
        with pytest.raises(InvalidArgumentError, match="`pattern` must be `N:M`"):
            Pattern.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "l3"}, r"`WeightPruning.criterion` must be one of l1, l2, taylor.*Received: 'l3'"),
        ({"budget": "even"}, r"`WeightPruning.budget` must be one of uniform, global, erk"),
        ({"budget": "erk", "pattern": "2:4"}, "uniform or global where the pattern is N:M"),
        ({"rewind": -1}, "`WeightPruning.rewind` must be at least 0"),
        ({"regrow": 1.0}, r"`WeightPruning.regrow` must be a share in \[0, 1\)"),
        ({"regrow": 0.1, "pattern": "1x4"}, "0 with a pattern or rewinding"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        WeightPruning(tiny_mlp(), schedule_to(), include=["second"], **options)


SHAPES = [(3, 3, 8, 16), (16, 64), (400, 300), (8, 8)]


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
def test_erk_against_its_definition(sparsity):
    shares = np.array(erk(SHAPES, sparsity))
    sizes = np.array([np.prod(shape) for shape in SHAPES])
    assert shares @ sizes == pytest.approx(sparsity * sizes.sum(), rel=1e-6)
    densities = 1 - shares
    assert (densities <= 1 + 1e-9).all() and (densities > 0).all()
    # Where a kernel is not full, its density is one constant times (sum of dimensions / their product).
    raw = np.array([sum(shape) for shape in SHAPES]) / sizes
    free = densities < 1 - 1e-9
    ratios = (densities / raw)[free]
    np.testing.assert_allclose(ratios, ratios[0])
    assert (raw[~free] * ratios[0] >= 1 - 1e-9).all()


def test_sensitivity_shares_out_by_equal_change():
    changes = np.array([[0.01, 0.1, 1.0], [0.1, 1.0, 10.0], [0.0, 0.0, 0.5]])
    shapes = [(10, 10), (20, 10), (30, 10)]
    budget = SensitivityBudget(shapes, (0.5, 0.9, 1.0), changes)
    for sparsity in (0.1, 0.5, 0.85):
        shares = budget(shapes, sparsity)
        assert np.array(shares) @ [100, 200, 300] == pytest.approx(600 * sparsity, rel=1e-3)
        # The less a kernel's zeros do, the more it gets.
        assert shares[2] >= shares[0] >= shares[1]
    middle = [
        np.interp(share, [0, 0.5, 0.9, 1], [0, *curve])
        for share, curve in zip(budget(shapes, 0.85), changes, strict=True)
    ]
    assert middle[0] == pytest.approx(middle[1], rel=1e-3)
    with pytest.raises(InvalidArgumentError, match="measured on the kernels that are pruned"):
        budget(shapes[:2], 0.5)


def test_sensitivity_is_measured_and_leaves_the_model_alone():
    model = tiny_mlp()
    x, _ = blobs(64, shape=(8,))
    before = [weight.copy() for weight in model.get_weights()]
    measured = SensitivityBudget.measure(model, x, include=["first", "second"], levels=(0.5, 1.0))
    for expected, actual in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    expected = model.predict(x, verbose=0)
    kernel = model.get_layer("second").kernel
    kernel.assign(np.zeros((16, 16)))
    change = np.mean((model.predict(x, verbose=0) - expected) ** 2) / np.var(expected)
    assert measured.changes[1, 1] == pytest.approx(change, rel=1e-4)
    kernel.assign(before[2])
    pruning = WeightPruning(model, schedule_to(0.75), budget=measured, include=["first", "second"])
    train(model, [pruning])
    zeros = [np.count_nonzero(values(model.get_layer(name).kernel) == 0) for name in ("first", "second")]
    assert sum(zeros) == pytest.approx(0.75 * (128 + 256), abs=1)


def test_budgets_of_a_user():
    model = tiny_mlp()
    pruning = WeightPruning(model, schedule_to(), budget=lambda shapes, s: [s / 2, s], include=["first", "second"])
    train(model, [pruning])
    assert [np.mean(values(model.get_layer(name).kernel) == 0) for name in ("first", "second")] == [0.25, 0.5]
    pruning = WeightPruning(model, schedule_to(), budget=lambda shapes, s: [s], include=["first", "second"])
    with pytest.raises(InvalidArgumentError, match=r"`budget` must be a share in \[0, 1\] for each of 2 kernels"):
        train(model, [pruning])


def test_regrowth_brings_back_the_largest_gradients():
    """One exchange of a linear layer, against NumPy."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, use_bias=False, name="only")])
    kernel = model.layers[0].kernel
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8)).astype("float32"), rng.normal(size=(32, 8)).astype("float32")
    dead = rng.permutation(64)[:32]
    start = values(kernel).ravel().copy()
    start[dead] = 0
    kernel.assign(start.reshape(8, 8))
    # Half pruned before step 2 of a plan that ends at step 4.
    pruning = WeightPruning(model, lambda step: (step % 2 == 0, 0.5), regrow=0.5, include=["only"])
    ends = BatchEnds(kernel)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[pruning, ends])
    weights, mask = start.reshape(8, 8).astype(float), start.reshape(8, 8) != 0
    for step in (1, 2):
        rows = slice(8 * (step - 1), 8 * step)
        gradient = 2 * x[rows].T @ (x[rows] @ weights - y[rows]) / y[rows].size
        weights = (weights - 0.1 * gradient) * mask
    count = int(0.25 * 32)  # The cosine is half way at step 2 of 4.
    out = np.argsort(np.where(mask, np.abs(weights), np.inf).ravel())[:count]
    back = np.argsort(np.where(mask, -np.inf, np.abs(gradient)).ravel())[-count:]
    expected = weights.ravel().copy()
    expected[out] = 0
    np.testing.assert_allclose(ends.seen[1].ravel(), expected, **CLOSE)
    alive = (expected != 0) | np.isin(np.arange(64), back)
    np.testing.assert_array_equal(ends.seen[2].ravel() != 0, alive)
    # At the last pruning nothing is exchanged.
    np.testing.assert_array_equal(ends.seen[3] != 0, ends.seen[2] != 0)


def test_rewinding_goes_back_to_early_weights():
    model = tiny_mlp()
    ends = BatchEnds(model.get_layer("second").kernel)
    bias = BatchEnds(model.get_layer("second").bias)
    pruning = WeightPruning(model, PruningRounds(0.75, (4, 8)), rewind=2, include=["second"])
    train(model, [pruning, ends, bias])
    early = ends.seen[1]
    zeros = 0
    for step, share in ((4, 0.5), (8, 0.75)):
        kernel = ends.seen[step - 1]
        assert np.mean(kernel == 0) == share
        np.testing.assert_array_equal(kernel[kernel != 0], early[kernel != 0])
        np.testing.assert_array_equal(bias.seen[step - 1], bias.seen[1])
        zeros = (kernel == 0).sum()
    assert (ends.seen[-1] == 0).sum() == zeros
    assert (ends.seen[-1] != ends.seen[7]).any()


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "taylor"},
        {"criterion": "movement", "pattern": "2:4"},
        {"criterion": "random", "pattern": "1x4"},
        {"criterion": "hessian", "regrow": 0.3},
        {"rewind": 3, "budget": "erk", "criterion": "l2"},
    ],
    ids=str,
)
def test_a_killed_training_resumes_exactly(tmp_path, options):
    data, model = blob_dataset(shape=(8,)), tiny_mlp()
    # Prunings lie in the middle of epochs of 4 steps and at their ends.
    schedule = tfmot_schedules().PolynomialDecay(0.0, 0.5, 0, 18, frequency=3)

    def run(checkpoint, *more):
        def callbacks(replica):
            return [WeightPruning(replica, schedule, include=["second"], **options), *more]

        settings = TrainSettings(epochs=5)
        return fit(model, data, settings, batch_size=32, seed=3, callbacks=callbacks, checkpoint=checkpoint).model

    whole, resumed = whole_and_resumed(run, tmp_path / "state.npz", kill_after=3)
    assert np.mean(values(resumed.get_layer("second").kernel) == 0) == 0.5
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_kernels_of_cells_attention_and_separable_convolutions():
    inputs = keras.Input((6, 8))
    x = keras.layers.Dense(8, name="first")(inputs)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.SeparableConv1D(8, 3, name="separable")(x)
    x = keras.layers.Bidirectional(keras.layers.GRU(4), name="both")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(x))
    layers = {kernel.layer.name: [] for kernel in prunable_kernels(model)}
    for kernel in prunable_kernels(model):
        layers[kernel.layer.name].append(kernel.name.removeprefix(kernel.layer.name + "/"))
    directions = ("forward", "backward")
    assert layers == {
        "attention": [f"{part}/kernel" for part in ("query", "key", "value", "attention_output")],
        "separable": ["pointwise_kernel"],
        "both": [
            f"{way}_gru/gru_cell/{name}" for way, name in itertools.product(directions, ("kernel", "recurrent_kernel"))
        ],
    }
    # A recurrent layer is pruned wherever it stands.
    alone = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4, name="lstm"), keras.layers.Dense(2)])
    pruning = WeightPruning(alone, schedule_to(end_step=2))
    alone.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 5, 3)), rng.normal(size=(16, 2))
    alone.fit(x, y, batch_size=4, verbose=0, callbacks=[pruning])
    found = [kernel for kernel in find_kernels(alone) if kernel.layer.name == "lstm"]
    assert [float(np.mean(values(kernel.variable) == 0)) for kernel in found] == [0.5, 0.5]
    alone.fit(x, y, batch_size=4, verbose=0, callbacks=[HoldMasks(alone)])
    assert [float(np.mean(values(kernel.variable) == 0)) for kernel in found] == [0.5, 0.5]
