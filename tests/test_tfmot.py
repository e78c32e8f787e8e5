"""TFMOT over the bridge: against TFMOT itself on a tf_keras model, against NumPy, and what it refuses."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers import CLOSE, blob_dataset, blobs, tiny_mlp, zeros_fraction

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError, RecipeError, TrainingError
from tfcompress.recipe import parse_recipe
from tfcompress.techniques.schedules import load_tfmot, tfmot_schedules
from tfcompress.techniques.tfmot.quantize import make_aware
from tfcompress.techniques.tfmot.ranges import calibrate, read_ranges
from tfcompress.techniques.tfmot.stages import TfmotCluster, TfmotPrune, TfmotQuantize

KERNELS = ("stem", "middle", "hidden", "classes")  # what TFMOT prunes and clusters of the network below
STEPS = 12


def network(library):
    """A convolutional network in the Keras that `library` is."""
    layers = library.layers
    inputs = library.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(momentum=0.7, name="stem_bn")(x)
    x = shortcut = layers.ReLU(name="stem_relu")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="middle")(x)
    x = layers.Add(name="residual")([x, shortcut])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(8, activation="relu", name="hidden")(x)
    return library.Model(inputs, layers.Dense(4, name="classes")(x), name="network")


def twins():
    """The network in both Keras, of equal weights, without the bridge."""
    model, legacy = network(keras), network(tf_keras)
    for layer in model.layers:
        legacy.get_layer(layer.name).set_weights(layer.get_weights())
    return model, legacy


def train(legacy, callbacks):
    """The user's training, the same each time."""
    x, y = blobs(128)
    tf_keras.utils.set_random_seed(3)
    legacy.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    legacy.fit(x, y, batch_size=32, epochs=3, verbose=0, callbacks=callbacks)


def train_mlp(legacy, callbacks):
    x, y = blobs(64, shape=(8,))
    legacy.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    legacy.fit(x, y, batch_size=16, epochs=1, verbose=0, callbacks=callbacks)


def same_weights(model, legacy, names):
    for name in names:
        for ours, theirs in zip(model.get_layer(name).get_weights(), legacy.get_layer(name).get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, **CLOSE)


def schedule():
    return tfmot_schedules().PolynomialDecay(0.0, 0.75, 2, 8, frequency=2)


def sparse(model, share=0.5):
    """Makes the smallest weights of each kernel of an MLP zero."""
    for layer in model.layers:
        kernel = layer.kernel.numpy()
        layer.kernel.assign(np.where(np.abs(kernel) < np.quantile(np.abs(kernel), share), 0, kernel))
    return model


def clustered(model, values=6):
    """Rounds each kernel of an MLP to few values; zero is one of them."""
    for layer in model.layers:
        kernel = layer.kernel.numpy()
        step = 2 * np.abs(kernel).max() / (values - 1)
        layer.kernel.assign(np.round(kernel / step) * step)
    return model


def test_prunes_as_tfmot_does_on_tf_keras():
    model, legacy = twins()
    before = [weight.copy() for weight in model.get_weights()]
    pruned = tfc.tfmot_prune(model, train, schedule=schedule())
    wrapped = tfmot_schedules().prune_low_magnitude(legacy, pruning_schedule=schedule())
    train(wrapped, [tfmot_schedules().UpdatePruningStep()])
    stripped = tfmot_schedules().strip_pruning(wrapped)
    for name in KERNELS:
        ours, theirs = (one.get_layer(name).kernel.numpy() for one in (pruned, stripped))
        np.testing.assert_array_equal(ours == 0, theirs == 0)
        assert np.mean(ours == 0) == 0.75
    same_weights(pruned, stripped, [*KERNELS, "stem_bn"])
    for then, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


def test_clusters_as_tfmot_does_on_tf_keras():
    model, legacy = twins()
    clustering = load_tfmot().clustering.keras
    ours = tfc.tfmot_cluster(model, train, number_of_clusters=6, centroids="linear")

    def wrap(layer):
        linear = clustering.CentroidInitialization.LINEAR
        return clustering.cluster_weights(layer, 6, linear) if layer.name in KERNELS else layer

    wrapped = tf_keras.models.clone_model(legacy, clone_function=wrap)
    train(wrapped, [])
    theirs = clustering.strip_clustering(wrapped)
    for name in KERNELS:
        values, assigned = np.unique(ours.get_layer(name).kernel.numpy(), return_inverse=True)
        assert 1 < len(values) <= 6
        np.testing.assert_array_equal(
            assigned, np.unique(theirs.get_layer(name).kernel.numpy(), return_inverse=True)[1]
        )
    same_weights(ours, theirs, [*KERNELS, "stem_bn"])


def test_quantizes_as_tfmot_does_on_tf_keras():
    model, legacy = twins()
    aware = tfc.tfmot_quantize(model, train, calibration=None)
    theirs = load_tfmot().quantization.keras.quantize_model(legacy)
    train(theirs, [])
    own = {weight.name: weight.numpy() for weight in theirs.weights}
    for name in KERNELS:
        np.testing.assert_allclose(aware.get_layer(name).kernel.numpy(), own[f"{name}/kernel:0"], **CLOSE)
    places = {"stem_relu": "output", "middle": "post_activation", "pool": "output", "classes": "post_activation"}
    for name, place in places.items():
        ranges = aware.get_layer(f"{name}_range")
        for ours, edge in ((ranges.minimum, "min"), (ranges.maximum, "max")):
            np.testing.assert_allclose(float(ours.numpy()), own[f"quant_{name}/{place}_{edge}:0"], **CLOSE)


def test_the_model_that_comes_back_rounds_as_tfmots_does():
    x, _ = blobs(64)
    kept = []

    def train_and_keep(legacy, callbacks):
        train(legacy, callbacks)
        kept.append(legacy)

    aware = tfc.tfmot_quantize(twins()[0], train_and_keep, calibration=[x])
    (theirs,) = kept
    last = aware.get_layer("classes_range")
    step = float(last.maximum.numpy() - last.minimum.numpy()) / 255
    difference = np.abs(aware.predict(x, verbose=0) - theirs.predict(x, verbose=0))
    assert difference.max() < 1.5 * step and np.mean(difference < 0.5 * step) > 0.95
    assert float(aware.get_layer("image_range").maximum.numpy()) <= 1.0


def test_ranges_start_at_what_the_data_shows():
    model = tiny_mlp()
    x, _ = blobs(64, shape=(8,))
    _, aware, _, _ = make_aware(model, "default", (), False, None)
    calibrate(aware, [x[:40], (x[40:], None)])
    kernel, bias = model.layers[0].get_weights()
    unit = np.abs(kernel).max() / 127
    hidden = np.maximum(x @ (np.round(kernel / unit) * unit) + bias, 0)
    found = read_ranges(aware)
    np.testing.assert_allclose(found["input 0"]["output"], (0, x.max()), **CLOSE)
    np.testing.assert_allclose(found["first"]["post_activation"], (0, hidden.max()), **CLOSE)


def test_a_kernel_before_a_relu_layer_is_rounded_all_the_same():
    inputs = keras.Input((8,))
    x = keras.layers.ReLU(name="relu")(keras.layers.Dense(8, name="dense")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4, name="last")(x))
    aware = tfc.tfmot_quantize(model, train_mlp, calibration=[blobs(64, shape=(8,))[0]])
    assert type(aware.get_layer("dense")).__name__ == "QuantizedDense"
    # TFMOT's own schemes cannot hold what it does not round.
    with pytest.raises(ModelError, match=r"scheme 'prune' would not hold there.*\['dense'\]"):
        tfc.tfmot_quantize(model, train_mlp, calibration=None, scheme="prune")


@pytest.mark.parametrize(
    "scheme",
    [pytest.param("prune", marks=pytest.mark.slow), pytest.param("cluster", marks=pytest.mark.slow), "prune_cluster"],
)
def test_schemes_keep_zeros_and_values(scheme):
    model = tiny_mlp()
    model = clustered(model) if "cluster" in scheme else sparse(model)
    before = {layer.name: layer.kernel.numpy() for layer in model.layers}
    aware = tfc.tfmot_quantize(model, train_mlp, calibration=[blobs(64, shape=(8,))[0]], scheme=scheme)
    for name, old in before.items():
        new = aware.get_layer(name).kernel.numpy()
        assert not np.array_equal(old, new)
        if "prune" in scheme:
            assert (old == 0).any() and not new[old == 0].any()
        if "cluster" in scheme:
            assert len(np.unique(new)) <= len(np.unique(old)) <= 7


def test_patterns_are_exact():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(6, 3, strides=4, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="dense")(keras.layers.Flatten(name="flat")(x)))

    def train_once(legacy, callbacks):
        legacy.compile("adam", "mse")
        legacy.fit(np.ones((8, 8, 8, 4)), np.ones((8, 4)), batch_size=2, verbose=0, callbacks=callbacks)

    pruned = tfc.tfmot_prune(model, train_once, sparsity_m_by_n=(2, 4))
    for name in ("conv", "dense"):
        kernel = np.moveaxis(pruned.get_layer(name).kernel.numpy(), -1, 0)
        groups = np.moveaxis(kernel, -1, -1).reshape(-1, 4) if name == "conv" else kernel.reshape(-1, 4)
        assert (np.count_nonzero(groups, -1) == 2).all()
    half = tfmot_schedules().ConstantSparsity(0.5, 0, frequency=1)
    blocks = tfc.tfmot_prune(model, train_once, schedule=half, block_size=(2, 2), include=["dense"])
    kernel = blocks.get_layer("dense").kernel.numpy()
    tiles = kernel.reshape(kernel.shape[0] // 2, 2, 2, 2).swapaxes(1, 2).reshape(-1, 4)
    assert np.mean((tiles == 0).all(1)) == 0.5 and not ((tiles == 0).any(1) & ~(tiles == 0).all(1)).any()
    assert zeros_fraction(blocks.get_layer("conv")) == 0


def test_tf_keras_does_not_take_the_place_of_keras():
    assert load_tfmot().__name__ == "tensorflow_model_optimization"
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert tf.keras.Model is keras.Model


def never(legacy, callbacks):
    raise AssertionError("It must be refused before training.")


SCHEDULE = {"schedule": {"constant_sparsity": {"target_sparsity": 0.5}}}


def late():
    return tfmot_schedules().PolynomialDecay(0.0, 0.75, 0, 2000)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: tfc.tfmot_prune(m, train_mlp, schedule=late()), TrainingError, "cannot reach its sparsity of 0.75"),
        (lambda m: tfc.tfmot_prune(m, lambda *_: None, schedule=late()), TrainingError, "must pass its `callbacks`"),
        (lambda m: tfc.tfmot_prune(m, never), InvalidArgumentError, "either a `schedule` or `sparsity_m_by_n`"),
        (lambda m: tfc.tfmot_prune(m, never, sparsity_m_by_n=(4, 2)), InvalidArgumentError, "0 < m < n"),
        (
            lambda m: tfc.tfmot_prune(m, never, schedule=late(), exclude=["f*", "second", "last"]),
            ModelError,
            "Nothing to prune in model 'mlp'",
        ),
        (lambda m: tfc.tfmot_prune(m, never, schedule=late(), include=["no"]), InvalidArgumentError, "Received: 'no'"),
        (
            lambda m: tfc.tfmot_cluster(m, never, number_of_clusters=64),
            ModelError,
            r"more weights than the 64 clusters.*last \(64 weights\)",
        ),
        (lambda m: tfc.tfmot_cluster(m, never, number_of_clusters=1), InvalidArgumentError, "at least 2"),
        (
            lambda m: tfc.tfmot_quantize(m, never, calibration=None, scheme="pqat"),
            InvalidArgumentError,
            "Received: 'pqat'",
        ),
        (
            lambda m: tfc.tfmot_quantize(tf_keras.Sequential(), never, calibration=None),
            InvalidArgumentError,
            "from_tf_keras",
        ),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(tiny_mlp())


def odd_network():
    inputs = keras.Input((8, 8, 2), name="image")
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(inputs)
    x = keras.layers.BatchNormalization(name="alone")(keras.layers.ReLU(name="relu")(x))
    x = keras.layers.Conv2D(2, 3, use_bias=False, activation="elu", name="elu")(keras.ops.multiply(x, 2.0))
    return keras.Model(inputs, keras.layers.Conv1DTranspose(2, 2, name="up")(keras.layers.Reshape((8, 4))(x)))


def test_layers_that_tfmot_refuses_are_named_with_the_reason():
    model = odd_network()
    with pytest.raises(ModelError, match=r"(?s)cannot prune these.*up: Conv1DTranspose\. "):
        tfc.tfmot_prune(model, never, schedule=late())
    with pytest.raises(ModelError, match="no weights to prune in a DepthwiseConv2D"):
        tfc.tfmot_prune(model, never, schedule=late(), include=["depthwise"])
    with pytest.raises(ModelError, match=r"only in dense layers. Name these layers in `exclude`: \['elu'\]"):
        tfc.tfmot_prune(model, never, schedule=late(), block_size=(2, 2), exclude=["up"])
    with pytest.raises(ModelError, match=r"leaves one without a bias as it is. Name 'elu'"):
        tfc.tfmot_cluster(model, never, number_of_clusters=4, per_channel=True)
    with pytest.raises(ModelError) as caught:
        tfc.tfmot_quantize(model, never, calibration=None)
    named = {line.strip(" -").partition(":")[0] for line in str(caught.value).splitlines()[1:]}
    assert named >= {"alone", "elu", "up"} and "depthwise" not in named


def test_layers_stay_in_float_only_by_permission():
    model = odd_network()
    with pytest.warns(UserWarning, match="alone: a BatchNormalization that does not alone follow"):
        aware = tfc.tfmot_quantize(model, lambda *_: None, calibration=None, allow_float=True)
    kinds = {layer.name: type(layer).__name__ for layer in aware.layers}
    assert (kinds["depthwise"], kinds["elu"]) == ("QuantizedDepthwiseConv2D", "Conv2D")
    assert "depthwise_range" not in kinds and "relu_range" in kinds


def test_summaries_need_tensorboard(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for make in (
        lambda: TfmotPrune(**SCHEDULE, log_dir="logs"),
        lambda: TfmotCluster(number_of_clusters=4, log_dir="l"),
    ):
        with pytest.raises(InvalidArgumentError, match="pip install tensorboard"):
            make()


def test_stages_that_undo_each_other_are_refused():
    prune, cluster, quantize = TfmotPrune(**SCHEDULE), TfmotCluster(number_of_clusters=8), TfmotQuantize()
    for technique, earlier, message in (
        (prune, [cluster], "few values that TfmotCluster left would be lost"),
        (quantize, [cluster], "few values that TfmotCluster left would be lost"),
        (prune, [quantize], "float models only"),
        (TfmotQuantize(scheme="cluster"), [prune, cluster], "Choose 'prune_cluster'"),
        (TfmotCluster(number_of_clusters=8, preserve_sparsity=False), [prune], "would fill the zeros"),
    ):
        with pytest.raises(ModelError, match=message):
            technique.check_after(earlier)
    TfmotQuantize(scheme="prune_cluster").check_after([prune, cluster])
    with pytest.raises(InvalidArgumentError, match="need 3000"):
        TfmotQuantize(calibration_samples=0).check(tiny_mlp(), 200)


def test_a_teacher_is_refused():
    recipe = parse_recipe("{train: {epochs: 1}, stages: [tfmot_quantize: {teach: {}}], export: [tflite]}")
    with pytest.raises(RecipeError, match=r"stages\.0\.tfmot_quantize\.teach` must be left out: TFMOT trains"):
        tfc.compress(tiny_mlp(), blob_dataset(64, shape=(8,)), recipe, progress=False)
