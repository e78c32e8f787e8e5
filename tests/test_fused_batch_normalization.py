"""The fused training step of BatchNormalization against Keras's own: outputs, gradients, moving statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.layers import FusedBatchNormalization


def pair(shape=(6, 5, 4, 3), **arguments):
    """Two built layers with equal random weights, fused and Keras's, and random inputs."""
    rng = np.random.default_rng(0)
    layers = FusedBatchNormalization(**arguments), keras.layers.BatchNormalization(**arguments)
    for layer in layers:
        layer.build(shape)
    for mine, theirs in zip(layers[0].weights, layers[1].weights, strict=True):
        value = rng.uniform(0.5, 2.0, size=mine.shape).astype("float32")
        mine.assign(value)
        theirs.assign(value)
    return *layers, tf.constant(rng.normal(2.0, 3.0, size=shape), "float32"), rng


def training_step(layer, inputs, upstream):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    gradients = tape.gradient(outputs, [inputs, *(v.value for v in layer.trainable_variables)], upstream)
    return [outputs, *gradients, *layer.weights]


ARGUMENTS = [{}, {"momentum": 0.5}, {"scale": False}, {"center": False}, {"epsilon": 0.1}, {"axis": 3}]
# What the fused operation cannot do is Keras's to compute.
UNFUSED = [({"epsilon": 1e-6}, (6, 5, 4, 3)), ({"axis": 1}, (6, 5, 4, 3)), ({}, (6, 3)), ({}, (6, 5, 3))]


@pytest.mark.parametrize("arguments, shape", [*((a, (6, 5, 4, 3)) for a in ARGUMENTS), *UNFUSED])
def test_training_step_is_that_of_keras(arguments, shape):
    fused, plain, inputs, rng = pair(shape, **arguments)
    upstream = tf.constant(rng.normal(size=shape), "float32")
    for mine, theirs in zip(
        training_step(fused, inputs, upstream), training_step(plain, inputs, upstream), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_inference_is_that_of_keras(frozen):
    fused, plain, inputs, _ = pair()
    for layer in (fused, plain):
        layer.trainable = not frozen
    np.testing.assert_array_equal(fused(inputs, training=frozen), plain(inputs, training=frozen))
    np.testing.assert_array_equal(fused.moving_mean, plain.moving_mean)


def test_training_runs_the_fused_operation():
    fused, _, inputs, _ = pair()
    graph = tf.function(lambda x: fused(x, training=True)).get_concrete_function(inputs).graph
    assert "FusedBatchNormV3" in {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("policy, digits", [("mixed_bfloat16", 8), ("mixed_float16", 11)])
def test_half_precision_is_that_of_keras(policy, digits):
    fused, plain, inputs, rng = pair(dtype=policy)
    upstream = tf.cast(rng.normal(size=inputs.shape), fused.compute_dtype)
    inputs = tf.cast(inputs, fused.compute_dtype)
    graph = tf.function(lambda x: fused(x, training=True)).get_concrete_function(inputs).graph
    assert "FusedBatchNormV3" in {operation.type for operation in graph.get_operations()}
    steps = [training_step(layer, inputs, upstream) for layer in (fused, plain)]
    for mine, theirs in zip(*steps, strict=True):
        assert mine.dtype == theirs.dtype
        mine, theirs = (np.asarray(keras.ops.cast(one, "float32")) for one in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=4 * 2.0**-digits * np.abs(theirs).max())


def test_moving_statistics_of_half_precision_are_float32():
    fused, plain, inputs, _ = pair(dtype="mixed_bfloat16", momentum=0.0)
    for layer in (fused, plain):
        layer(inputs, training=True)
    for name in ("moving_mean", "moving_variance"):
        mine, theirs = getattr(fused, name), getattr(plain, name)
        assert mine.dtype == "float32"
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_masks_are_those_of_keras():
    fused, plain, inputs, rng = pair((6, 5, 3))
    mask = tf.constant(rng.uniform(size=(6, 5)) < 0.5)
    np.testing.assert_array_equal(fused(inputs, training=True, mask=mask), plain(inputs, training=True, mask=mask))


def test_xla_and_steps_per_execution_and_reload(tmp_path):
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), keras.layers.Conv2D(3, 3), FusedBatchNormalization(), keras.layers.Flatten()]
    )
    x = np.random.default_rng(0).normal(size=(32, 4, 4, 2)).astype("float32")
    y = np.zeros((32, 12), "float32")
    for options in ({"jit_compile": True}, {"steps_per_execution": 2}):
        model.compile("sgd", "mse", **options)
        history = model.fit(x, y, batch_size=8, epochs=2, verbose=0).history["loss"]
        assert np.isfinite(history).all()
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))
