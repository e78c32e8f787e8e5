"""What every technique must do, on every kind of model; and that its claim outlives each technique that follows."""

import functools
import itertools

import keras
import numpy as np
import pytest
from helpers import CLOSE, blob_dataset, blobs, integer_kernels, numpy_log_softmax, tiny_mlp
from keras import layers

import tfcompress as tfc
from tfcompress.errors import RecipeError
from tfcompress.graph.channels import channel_graph
from tfcompress.graph.residual_blocks import residual_blocks
from tfcompress.graph.trace import trace
from tfcompress.measure.metrics import Metrics
from tfcompress.pipeline import execute
from tfcompress.recipe import TECHNIQUES, parse_recipe
from tfcompress.recipe.writing import recipe_to_yaml
from tfcompress.techniques.channels import CRITERIA, Evidence
from tfcompress.techniques.channels.sparsity import penalized_weights
from tfcompress.techniques.prune import prunable_kernels

# The recipe keys of each technique; a new one must be added here, and its claim below.
ARGUMENTS = {
    "cluster": "{clusters: 8}",
    "distill": "{weight: 1.0, train: {epochs: 8, learning_rate: 2.0e-2}}",
    "factorize": "{macs: 0.7, train: {epochs: 3}}",
    "learn_channel_sparsity": "{kind: growing_l2, macs: 0.5, strength: 3, train: {epochs: 8, learning_rate: 2.0e-2}}",
    "prune": "{schedule: {polynomial_decay: {final_sparsity: 0.5}}}",
    "prune_channels": "{macs: 0.8, round_to: 2}",
    "quantize": "{train: {epochs: 3, learning_rate: 1.0e-3}}",
    "quantize_post_training": "{learned_rounding: true, rounding_steps: 20}",
    "remove_blocks": "{count: 1}",
    "tfmot_cluster": "{number_of_clusters: 8}",
    "tfmot_prune": "{schedule: {polynomial_decay: {final_sparsity: 0.5}}}",
    "tfmot_quantize": "{train: {epochs: 3, learning_rate: 1.0e-3}}",
}
INTEGERS = ("quantize", "quantize_post_training", "tfmot_quantize")
CLUSTERED = ("cluster", "tfmot_cluster")
KEEPS_CLUSTERS = ("cluster", "distill", "prune_channels", "quantize", "quantize_post_training", "remove_blocks")
# The first would be undone by the second, or cannot be carried to tf_keras: refused before any training.
REFUSED = {
    *(pair for pair in itertools.product(CLUSTERED, ARGUMENTS) if pair[1] not in (*KEEPS_CLUSTERS, pair[0])),
    *itertools.product(INTEGERS, ("tfmot_cluster", "tfmot_prune")),
    *itertools.permutations(INTEGERS, 2),
    *itertools.product((*INTEGERS, "prune", "tfmot_prune"), ("factorize",)),
    *itertools.product(INTEGERS, ("learn_channel_sparsity", "prune_channels", "remove_blocks")),
}
PAIRS = [pair for pair in itertools.permutations(ARGUMENTS, 2) if pair not in REFUSED]
# A pair with TFMOT costs seconds; these stand for the others, which are slow.
BRIDGED = {("tfmot_prune", "quantize"), ("tfmot_prune", "tfmot_quantize")}
# Of the others, two of each technique with what recipes train with and end with; all further pairs are slow.
ENDINGS = ("distill", "quantize", "prune")


def fast_pairs():
    for technique in ARGUMENTS:
        if not technique.startswith("tfmot"):
            yield from [(technique, ending) for ending in ENDINGS if (technique, ending) in PAIRS][:2]


FAST = {*BRIDGED, *fast_pairs()}


def nested():
    """A convolutional model that holds another one, a residual block."""
    inner_input = keras.Input((8, 8, 4), name="inner_input")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="inner_conv")(inner_input)
    x = layers.ReLU(name="inner_relu")(layers.BatchNormalization(momentum=0.7, name="inner_bn")(x))
    inner = keras.Model(inner_input, layers.Add(name="inner_add")([x, inner_input]), name="inner")
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(inner(x))
    return keras.Model(inputs, layers.Dense(4, name="classes")(x), name="nested")


def softmax_output():
    """A functional model whose residual block is its own, and which gives probabilities."""
    inputs = keras.Input((8,), name="features")
    shortcut = layers.Dense(16, activation="relu", name="first")(inputs)
    x = layers.Dense(16, activation="relu", name="second")(shortcut)
    x = layers.Add(name="residual")([x, shortcut])
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="last")(x), name="probabilities")


def two_blocks():
    """A functional model with two residual blocks, one of which can go."""
    inputs = keras.Input((8,), name="features")
    x = layers.Dense(16, activation="relu", name="first")(inputs)
    for name in ("second", "third"):
        y = layers.Dense(16, activation="relu", name=name)(x)
        x = layers.Add(name=f"{name}_sum")([y, x])
    return keras.Model(inputs, layers.Dense(4, name="last")(x), name="two_blocks")


KINDS = {"sequential": tiny_mlp, "nested": nested, "softmax": softmax_output}
PAIR_KINDS = {**KINDS, "two_blocks": two_blocks}


def kind_of(*techniques):
    """The model that techniques are tried on one after the other: a sequential one has no blocks."""
    return "two_blocks" if "remove_blocks" in techniques else "sequential"


@pytest.fixture(scope="module", autouse=True)
def unmeasured():
    """Stages without their figures, which cost a conversion each and are tested with the pipeline."""
    with pytest.MonkeyPatch.context() as patch:
        figures = dict.fromkeys(Metrics.__dataclass_fields__, 0)
        patch.setattr(execute, "keras_row", lambda stage, *_: Metrics(**{**figures, "stage": stage}))
        yield


def prototypes(shape):
    """A teacher that needs no training: the nearest of the pictures that the data was made of."""
    pictures, _ = blobs(4 * 64, shape=shape, seed=3)
    centers = np.stack([pictures[label::4].mean(0).ravel() for label in range(4)], 1)
    weights = [8 * centers, -4 * (centers**2).sum(0)]
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(4)], name="prototypes")
    model.set_weights(weights)
    return model


def build(kind):
    keras.utils.set_random_seed(7)
    return PAIR_KINDS[kind]()


def run(folder, kind, techniques):
    """The model of `kind` before `techniques`, and the run that applied them, under a teacher where one is needed."""
    folder.mkdir()
    start = build(kind)
    shape = start.input_shape[1:]
    student, given = "", start
    if "distill" in techniques:
        start.save(folder / "student.keras")
        student, given = f"student: {{file: '{folder / 'student.keras'}'}}", prototypes(shape)
    recipe = parse_recipe(f"""
        data: {{batch_size: 16}}
        train: {{epochs: 2, learning_rate: 1.0e-2}}
        {student}
        stages: [{", ".join(f"{{{name}: {ARGUMENTS[name]}}}" for name in techniques)}]
        export: [tflite]
        """)
    assert parse_recipe(recipe_to_yaml(recipe)) == recipe
    before, config = [weight.copy() for weight in given.get_weights()], given.to_json()
    result = tfc.compress(given, blob_dataset(64, shape=shape), recipe, folder / "out", progress=False)
    # Neither what is compressed nor what teaches is changed.
    assert given.to_json() == config and all(layer.trainable for layer in given.layers)
    for expected, actual in zip(before, given.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    return start, result


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by kind and techniques, each made once."""
    folder = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda kind, *techniques: run(folder / "-".join((kind, *techniques)), kind, techniques))


def stage_model(result, number, technique):
    path = result.out / "stages" / f"{number:02d}-{technique}" / "model.keras"
    return keras.saving.load_model(path, compile=False)


def previous_model(result, number):
    (path,) = (result.out / "stages").glob(f"{number - 1:02d}-*/model.keras")
    return keras.saving.load_model(path, compile=False)


def keeps_zeros(first, second):
    """Whether a kernel still has its zeros; where channels went, of what is left about as many are zero."""
    if second.shape == first.shape:
        np.testing.assert_array_equal(second[first == 0], 0)
    else:
        assert second.size < first.size and np.mean(second == 0) > 0.3


def pruned_kernels(start, model):
    names = [kernel.layer.name for kernel in prunable_kernels(start)]
    flat = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    return {name: keras.ops.convert_to_numpy(flat[name].kernel) for name in names if name in flat}


def still_there(then, now, result):
    """The names of layers that a later model still has: all of them, but for those of blocks that the run removed."""
    gone = set(then) - set(now)
    assert not gone or any(row.stage.endswith("remove_blocks") for row in result.rows)
    left = set(then) - gone
    assert left
    return left


def kernels(model):
    layers_with_one = (layer for layer in model._flatten_layers(include_self=False) if hasattr(layer, "kernel"))
    return {layer.name: keras.ops.convert_to_numpy(layer.kernel) for layer in layers_with_one}


def divergence(teacher, model, x):
    """Mean Kullback-Leibler divergence of a model's classes from its teacher's, in nats."""
    p, outputs = numpy_log_softmax(teacher.predict(x, verbose=0)), model.predict(x, verbose=0)
    q = np.log(outputs) if np.allclose(outputs.sum(1), 1, atol=0.05) else numpy_log_softmax(outputs)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def check_claim(technique, number, start, result):
    """What `technique`, stage `number` of a run, promises of the last model and its file."""
    if technique == "distill":
        x, _ = blobs(64, shape=start.input_shape[1:], seed=5)
        teacher = prototypes(start.input_shape[1:])
        assert divergence(teacher, result.model, x) < 0.9 * divergence(teacher, start, x)
    elif technique == "cluster":
        then, now = (kernels(model) for model in (stage_model(result, number, technique), result.model))
        few = {name for name, kernel in then.items() if kernel.size > 8}
        assert all(1 < len(np.unique(then[name])) <= 8 for name in few)
        assert all(1 < len(np.unique(now[name])) <= 8 for name in still_there(few, now, result))
        if any(getattr(layer, "is_fake_quantized", False) for layer in result.model.layers):
            assert all(len(np.unique(kernel)) <= 8 for kernel in integer_kernels(result.exports["int8"]))
    elif technique == "factorize":
        assert tfc.count_macs(result.model) <= 0.7 * tfc.count_macs(start)
    elif technique == "prune_channels":
        before = start if number == 1 else previous_model(result, number)
        assert tfc.count_macs(stage_model(result, number, technique)) <= 0.8 * tfc.count_macs(before)
        assert tfc.count_macs(result.model) <= 0.8 * tfc.count_macs(before)
    elif technique == "learn_channel_sparsity":
        # Of the channels that half of the multiply-adds are; what comes after it removes them, or trains them again.
        before = start if number == 1 else previous_model(result, number)
        chosen = penalized_weights(before, "growing_l2", macs=0.5).chosen > 0
        sizes = [
            CRITERIA["l1"](Evidence(channel_graph(model), model))
            for model in (before, stage_model(result, number, technique))
        ]
        left = sizes[1] / sizes[0]
        assert 0 < chosen.sum() < len(chosen) and left[chosen].max() < 0.2 and left[~chosen].mean() > 0.4
    elif technique == "remove_blocks":
        before = start if number == 1 else previous_model(result, number)
        blocks = [residual_blocks(trace(model)) for model in (before, stage_model(result, number, technique))]
        assert len(blocks[0]) - len(blocks[1]) == 1
        names = {layer.name for layer in result.model._flatten_layers(include_self=False)}
        assert any(names.isdisjoint(block.layers) for block in blocks[0])
    elif technique == "prune":
        then, now = (pruned_kernels(start, model) for model in (stage_model(result, number, technique), result.model))
        assert all(np.mean(first == 0) == 0.5 for first in then.values())
        for name in still_there(then, now, result):
            keeps_zeros(then[name], now[name])
    elif technique == "tfmot_prune":
        then, now = (kernels(model) for model in (stage_model(result, number, technique), result.model))
        assert all(np.mean(first == 0) == 0.5 for first in then.values())
        for name in still_there(then, now, result):
            keeps_zeros(then[name], now[name])
    elif technique == "tfmot_cluster":
        assert all(1 < len(np.unique(kernel)) <= 8 for kernel in kernels(result.model).values())
    elif technique in INTEGERS:
        assert any(getattr(layer, "is_fake_quantized", False) for layer in result.model.layers)
        # The file's biases are integers; the model that was measured has the very same ones.
        rounded = keras.models.clone_model(result.model)
        rounded.set_weights(result.model.get_weights())
        tfc.round_biases(rounded)
        for first, second in zip(result.model.get_weights(), rounded.get_weights(), strict=True):
            np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-7)
    else:
        pytest.fail(f"{technique} has no claim to check")


def test_every_technique_is_in_the_table():
    assert set(ARGUMENTS) == set(TECHNIQUES)


def alone(technique, kind):
    # TFMOT's trainings cost half a minute each; the pairs have them on the sequential model. Where a model ends matters
    # to what reads its outputs, models within models to what makes a new graph; the others have them as slow tests.
    matters = {
        "softmax": ("distill", "quantize"),
        "nested": ("factorize", "prune_channels", "quantize", "remove_blocks"),
    }
    slow = technique not in matters[kind]
    return pytest.param(technique, kind, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(
    ("technique", "kind"),
    # Sequential ones are in the pairs.
    [alone(technique, kind) for technique in ARGUMENTS for kind in KINDS if kind != "sequential"],
)
def test_technique_on_every_kind_of_model(technique, kind, runs):
    start, result = runs(kind, technique)
    shape = start.input_shape[1:]
    assert result.model.input_shape == start.input_shape and result.model.output_shape == start.output_shape
    x, _ = blobs(32, shape=shape, seed=5)
    reloaded = stage_model(result, 1, technique)
    np.testing.assert_allclose(reloaded.predict(x, verbose=0), result.model.predict(x, verbose=0), **CLOSE)
    check_claim(technique, 1, start, result)
    # It is there only if it passed the gate.
    assert tfc.TFLiteRunner(result.exports["int8"]).predict(x).shape == (32, 4)


@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*pair, marks=() if pair in FAST else pytest.mark.slow) for pair in PAIRS]
)
def test_claims_hold_after_each_technique_that_follows(first, second, runs):
    start, result = runs(kind_of(first, second), first, second)
    assert result.exports["int8"].is_file()
    check_claim(first, 1, start, result)
    check_claim(second, 2, start, result)


@pytest.mark.parametrize(("first", "second"), sorted(REFUSED))
def test_techniques_that_cannot_follow_each_other_are_refused(first, second, tmp_path):
    with pytest.raises(RecipeError, match=rf"stages\.1\.{second}`"):
        run(tmp_path / "run", kind_of(first, second), (first, second))


@pytest.mark.parametrize("technique", sorted({first for first, _ in FAST}))
def test_same_seed_gives_the_same_weights(technique, runs):
    followers = sorted(pair for pair in FAST if pair[0] == technique)
    assert len(followers) > 1
    models = [stage_model(runs(kind_of(*pair), *pair)[1], 1, technique) for pair in followers]
    for model in models[1:]:
        for expected, actual in zip(models[0].get_weights(), model.get_weights(), strict=True):
            np.testing.assert_allclose(actual, expected, **CLOSE)
