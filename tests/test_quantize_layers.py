"""Every layer that quantization-aware training rounds, in small networks: quantized, trained a step, reloaded, exported
as full int8 and run. What it must agree with is the float network, and LiteRT."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers as kl
from keras import ops

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError
from tfcompress.layers import FakeQuantize
from tfcompress.techniques.quantize import quantize_aware
from tfcompress.techniques.quantize.calibrate import fake_quantize_layers
from tfcompress.techniques.quantize.removal import remove_fake_quantization
from tfcompress.techniques.quantize.rewrite import (
    QuantizationSpec,
    insert_fake_quantization,
)

IMAGE, SEQUENCE, VECTOR, TOKENS, FRAMES = (8, 8, 4), (10, 6), (12,), (10,), (3, 6, 6, 2)
SAMPLES = 64
# A wrong scale, a lost offset or a channel mixed up gives less than 10 dB; one rounding in eight bits about 40,
# and layer normalization, with its five roundings, 24.
LEAST_SNR_DB = 20.0


def chain(*layers):
    def call(x):
        for layer in layers:
            x = layer(x)
        return x

    return call


def _branches(*functions):
    """Several functions of one input, each an output of its own: one conversion instead of many."""
    return lambda x: [function(x) for function in functions]


def _activations(*names):
    return _branches(*(chain(kl.Conv2D(3, 3), kl.Activation(name)) for name in names))


def _attention(x):
    x = kl.LayerNormalization()(x + kl.MultiHeadAttention(2, 4)(x, x))
    return kl.Dense(3)(kl.MultiHeadAttention(2, 3, value_dim=5, dropout=0.1, use_bias=False)(x, x, x))


def _squeeze_and_excite(x):
    pooled = kl.GlobalAveragePooling2D(keepdims=True)(x)
    return kl.Multiply()([x, kl.Dense(4, activation="sigmoid")(kl.Dense(2, activation="silu")(pooled))])


def _merges(x):
    y = kl.Conv2D(4, 3, padding="same")(x)
    merged = [kl.ReLU()(kl.Add()([x, y])), kl.Subtract()([x, y]), kl.ReLU()(kl.Multiply()([x, y]))]
    return [kl.Concatenate()(merged), kl.Maximum()([x, y]), kl.Minimum()([x, y])]


def _operations(x):
    y = kl.Conv2D(4, 3)(x[:, 1:, ::2, :])
    z = kl.Dense(3)(ops.transpose(ops.reshape(x, (-1, 64, 4)), (0, 2, 1)))
    deviation = x - ops.mean(x, axis=(1, 2), keepdims=True)
    return [y, z, deviation, ops.square(x) - (-x), ops.relu6(x + 3.0) * (1 / 6.0), ops.silu(x)]


def _more_operations(x):
    halves = ops.split(x, 2, axis=-1)
    scores = ops.softmax(ops.matmul(x, ops.transpose(x, (0, 2, 1))), axis=-1)
    return [kl.Add()(halves), scores, ops.concatenate([x, x * 2.0], axis=-1)]


def _pooled_twice(x):
    """As at the head of Inception: a result that is handed on goes to several operations."""
    y = kl.MaxPooling2D(2)(kl.Conv2D(4, 3, padding="same", activation="relu")(x))
    mean = kl.AveragePooling2D(3, strides=1, padding="same")(y)
    return kl.Concatenate()([kl.Conv2D(3, 1)(y), kl.Conv2D(3, 1)(y), kl.Conv2D(3, 1)(mean)])


def _norm():
    return kl.BatchNormalization()


# name: (shape, input range, input dtype, function)
NETWORKS = {
    "activations": (IMAGE, (-2, 2), "float32", _activations("relu6", "sigmoid", "tanh", "silu", "hard_silu", "gelu")),
    "more activations": (
        IMAGE, (-2, 2), "float32",
        _activations("hard_sigmoid", "leaky_relu", "elu", "selu", "softplus", "softmax", "exponential"),
    ),
    "activation layers": (IMAGE, (-2, 2), "float32", _branches(
        chain(kl.Conv2D(3, 3), kl.ReLU(4.0)), chain(kl.Conv2D(3, 3), kl.LeakyReLU()), chain(kl.Conv2D(3, 3), kl.ELU()),
        chain(kl.Conv2D(3, 3), kl.PReLU(shared_axes=[1, 2], alpha_initializer="random_uniform")),
        kl.Conv2D(3, 3, activation="silu"),
    )),
    "1-D convolutions": (SEQUENCE, (-2, 2), "float32", _branches(
        chain(kl.Conv1D(5, 3, padding="same"), _norm(), kl.ReLU()), kl.Conv1D(5, 3, strides=2, activation="gelu"),
        kl.Conv1D(5, 3, padding="causal", dilation_rate=2), chain(kl.DepthwiseConv1D(3, strides=2), _norm()),
        chain(kl.SeparableConv1D(5, 3, padding="same"), _norm(), kl.ReLU()), kl.Conv1DTranspose(5, 3, strides=2),
    )),
    "2-D convolutions": (IMAGE, (-2, 2), "float32", _branches(
        chain(kl.Conv2D(6, 3, groups=2, dilation_rate=2), _norm(), kl.ReLU()),
        chain(kl.SeparableConv2D(5, 3, strides=2, padding="same"), _norm(), kl.ReLU()),
        chain(kl.Conv2DTranspose(5, 3, strides=2, padding="same"), _norm(), kl.ReLU()),
        kl.Conv2DTranspose(5, 2, strides=2, activation="relu"),
        chain(kl.DepthwiseConv2D(3, depth_multiplier=2), _norm(), kl.ReLU(6.0)),
    )),
    "dense of any rank": (SEQUENCE, (-2, 2), "float32", _branches(
        chain(kl.Dense(5), _norm(), kl.ReLU()), kl.Dense(5, activation="gelu"),
        kl.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d"),
    )),
    "dense on vectors": (VECTOR, (-2, 2), "float32", chain(_norm(), kl.Dense(9), _norm(), kl.ReLU(), kl.Dense(3))),
    "normalization anywhere": (IMAGE, (-2, 2), "float32", _branches(
        chain(_norm(), kl.ReLU(), kl.Conv2D(4, 3)), chain(kl.MaxPooling2D(), _norm()),
        chain(kl.LayerNormalization(epsilon=1e-6), kl.Dense(4)),
    )),
    "rescaling": (IMAGE, (0, 8), "float32", _branches(
        chain(kl.Rescaling(1 / 4, -1), kl.Conv2D(4, 3)),
        chain(kl.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[4.0, 3.0, 2.0, 1.0]), kl.Conv2D(4, 3)),
    )),
    "merges": (IMAGE, (-2, 2), "float32", _merges),
    "squeeze and excite": (IMAGE, (-2, 2), "float32", _squeeze_and_excite),
    "resizing": (IMAGE, (-2, 2), "float32", _branches(
        kl.UpSampling2D(2), kl.UpSampling2D(2, interpolation="bilinear"), kl.Resizing(5, 5),
        chain(kl.ZeroPadding2D(1), kl.Cropping2D(((1, 0), (0, 1))), kl.Conv2D(4, 3)),
    )),
    "pooling": (IMAGE, (-2, 2), "float32", _branches(
        chain(kl.MaxPooling2D(2), kl.AveragePooling2D(2), kl.GlobalMaxPooling2D()),
        # The size of the whole map, but no mean of the whole map.
        chain(kl.AveragePooling2D(8, strides=1, padding="same"), kl.Conv2D(4, 3)),
        chain(kl.AveragePooling2D(8), kl.Flatten(), kl.Dense(3, activation="softmax")),
    )),
    "inception": (IMAGE, (-2, 2), "float32", _pooled_twice),
    "attention": (SEQUENCE, (-2, 2), "float32", _attention),
    "embedding": (TOKENS, (0, 20), "int32", _branches(
        chain(kl.Embedding(20, 6), kl.Conv1D(4, 3), kl.GlobalMaxPooling1D(), kl.Dense(3)),
        chain(kl.Embedding(20, 6), kl.GlobalAveragePooling1D(), kl.Dense(3)),
        lambda x: kl.Embedding(20, 6, name="tokens")(x) + kl.Embedding(10, 6, name="positions")(ops.arange(10)),
    )),
    "operations": (IMAGE, (-2, 2), "float32", _operations),
    "more operations": (SEQUENCE, (-2, 2), "float32", _more_operations),
    "LSTM": (SEQUENCE, (-2, 2), "float32", chain(kl.LSTM(5, return_sequences=True), kl.LSTM(4, go_backwards=True))),
    "GRU": (SEQUENCE, (-2, 2), "float32", chain(kl.GRU(5), kl.Dense(3))),
    "SimpleRNN": (SEQUENCE, (-2, 2), "float32", chain(kl.SimpleRNN(5), kl.Dense(3))),
    "Bidirectional": (SEQUENCE, (-2, 2), "float32", chain(
        kl.Bidirectional(kl.LSTM(3, return_sequences=True)), kl.Bidirectional(kl.GRU(3), merge_mode="ave"),
    )),
    "Bidirectional, not side by side": (SEQUENCE, (-2, 2), "float32", chain(
        kl.Bidirectional(kl.SimpleRNN(3, return_sequences=True), merge_mode="mul"),
        kl.Bidirectional(kl.SimpleRNN(3, return_state=True), merge_mode=None),
    )),
    "TimeDistributed": (FRAMES, (-2, 2), "float32", _branches(
        chain(
            kl.TimeDistributed(kl.Conv2D(4, 3)), kl.TimeDistributed(kl.BatchNormalization()), kl.ReLU(),
            kl.TimeDistributed(kl.GlobalAveragePooling2D()), kl.TimeDistributed(kl.Dense(3, activation="gelu")),
        ),
        chain(kl.TimeDistributed(kl.TimeDistributed(kl.Conv1D(3, 2))), kl.TimeDistributed(kl.Flatten())),
        kl.TimeDistributed(keras.Sequential([
            keras.Input(FRAMES[1:]), kl.DepthwiseConv2D(3), kl.BatchNormalization(), kl.ReLU(), kl.Flatten(),
        ])),
    )),
    "absent": (IMAGE, (-2, 2), "float32", chain(
        kl.Conv2D(4, 3), kl.Dropout(0.3), kl.ReLU(), kl.SpatialDropout2D(0.2), kl.Flatten(), kl.Dense(3),
    )),
}  # fmt: skip
# One of each kind; the others take their time.
QUICK = {
    "inception",
    "activations",
    "1-D convolutions",
    "2-D convolutions",
    "normalization anywhere",
    "attention",
    "operations",
    "TimeDistributed",
}


def _network(name):
    shape, (low, high), dtype, function = NETWORKS[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, dtype=dtype)
    # Layers of the table are built once; a copy makes every test start from new ones.
    model = keras.models.clone_model(keras.Model(inputs, function(inputs)))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if any(word in weight.path for word in ("moving", "gamma", "beta", "bias")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model, rng.uniform(low, high, (SAMPLES, *shape)).astype(dtype)


def _outputs(model, inputs):
    return [np.asarray(output) for output in keras.tree.flatten(model.predict(inputs, verbose=0))]


def _snr_db(expected, actual):
    return 10 * np.log10(np.var(expected) / max(np.mean((expected - actual) ** 2), 1e-30))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NETWORKS])
def test_layer_is_rounded_trained_reloaded_and_exported_as_full_int8(name, tmp_path):
    model, inputs = _network(name)
    before = _outputs(model, inputs)
    aware = quantize_aware(model, inputs)
    for expected, actual in zip(before, _outputs(aware, inputs), strict=True):
        assert _snr_db(expected, actual) > LEAST_SNR_DB
    for expected, actual in zip(before, _outputs(remove_fake_quantization(aware), inputs), strict=True):
        assert np.abs(expected - actual).max() < 1e-4 * np.abs(expected).max()
    aware.compile(keras.optimizers.SGD(1e-3), "mse")
    weights = [weight.numpy().copy() for weight in aware.trainable_weights]
    aware.fit(inputs, [output + 0.1 for output in before], epochs=1, verbose=0)
    assert all(np.isfinite(weight).all() for weight in aware.get_weights())
    assert any(not np.array_equal(old, new) for old, new in zip(weights, aware.trainable_weights, strict=True))
    aware.save(tmp_path / "aware.keras")
    reloaded = keras.saving.load_model(tmp_path / "aware.keras")
    for expected, actual in zip(_outputs(aware, inputs), _outputs(reloaded, inputs), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    # The gate raises for a float operation, or if the file differs from the model.
    result = tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=inputs)
    assert result.audit.float_ops == ()
    assert result.parity.samples == SAMPLES


def test_batch_normalization_goes_on_following_its_batches():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Dense(2)(kl.BatchNormalization(name="norm", momentum=0.5)(inputs)))
    samples = np.random.default_rng(0).normal(3.0, 2.0, (64, 6)).astype("float32")
    aware = quantize_aware(model, samples)
    aware.compile(keras.optimizers.SGD(0.0), "mse")
    aware.fit(samples, np.zeros((64, 2)), batch_size=64, epochs=1, verbose=0)
    rounded = keras.ops.convert_to_numpy(aware.get_layer("norm").moving_mean)
    # Half of the old mean, zero, and half of that of the batch, which is rounded to 1/255 of its range.
    np.testing.assert_allclose(rounded, 0.5 * samples.mean(0), atol=0.03)


def test_frozen_layer_stays_frozen_inside_of_its_twin():
    inputs = keras.Input((6, 4))
    attention = kl.MultiHeadAttention(2, 3, name="attention")
    model = keras.Model(inputs, kl.Dense(2)(attention(inputs, inputs)))
    attention.trainable = False
    aware = quantize_aware(model, np.random.default_rng(0).normal(size=(8, 6, 4)).astype("float32"))
    assert not aware.get_layer("attention").trainable_weights
    assert aware.get_layer("attention").get_config()["num_heads"] == 2


def test_bits_by_patterns_of_names(tmp_path):
    inputs = keras.Input((8, 8, 2))
    x = kl.Conv2D(4, 3, name="stem")(inputs)
    model = keras.Model(inputs, kl.Dense(3, name="head")(kl.Flatten()(kl.Conv2D(4, 3, name="body")(x))))
    samples = np.random.default_rng(0).normal(size=(32, 8, 8, 2)).astype("float32")
    aware = quantize_aware(model, samples, weight_bits={"head": 8, "*": 4})
    assert {name: aware.get_layer(name).weight_bits for name in ("stem", "body", "head")} == {
        "stem": 4, "body": 4, "head": 8,
    }  # fmt: skip
    result = tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=samples)
    kernels = {constant.shape: constant.dtype for constant in result.audit.weights if constant.role == "kernel"}
    assert kernels == {(4, 3, 3, 2): "int4", (4, 3, 3, 4): "int4", (3, 64): "int8"}
    with pytest.raises(InvalidArgumentError, match="fits a layer"):
        quantize_aware(model, samples, weight_bits={"haed": 8})


def test_a_layer_may_stay_in_float(tmp_path):
    inputs = keras.Input((8, 8, 2))
    x = kl.Conv2D(4, 3, name="conv")(inputs)
    x = kl.GroupNormalization(2, name="group")(x)
    model = keras.Model(inputs, kl.Dense(3, name="head")(kl.Flatten()(x)))
    samples = np.random.default_rng(0).normal(size=(32, 8, 8, 2)).astype("float32")
    with pytest.raises(ModelError, match=r"group: GroupNormalization has no rounded twin"):
        quantize_aware(model, samples)
    aware = quantize_aware(model, samples, allow_float=["group"])
    result = tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=samples)
    kernels = {constant.op: constant.dtype for constant in result.audit.weights if constant.role == "kernel"}
    assert kernels == {"CONV_2D": "int8", "FULLY_CONNECTED": "int8"}
    # Some of the float operations are those of the layer itself.
    assert result.audit.float_ops


def test_every_reason_is_named_before_training():
    inputs = keras.Input((8, 8, 2))
    x = kl.Conv2D(4, 3, activation="mish", name="conv")(inputs)
    x = kl.GroupNormalization(2, name="group")(x)
    x = kl.LayerNormalization(axis=1, name="rows")(x)
    x = kl.MultiHeadAttention(2, 3, name="attention")(x, x, use_causal_mask=True)
    model = keras.Model(inputs, kl.Conv2D(2, 1, name="last")(ops.cos(x)))
    pattern = "(?s)conv: activation 'mish'.*group: Group.*rows: .*other axes.*attention: .*masks.*Cos has no integer"
    with pytest.raises(ModelError, match=pattern):
        quantize_aware(model, np.zeros((4, 8, 8, 2), "float32"))


def test_nested_models_with_equal_names_are_opened():
    inner = [
        keras.Sequential([keras.Input((4,)), kl.Dense(4, name="dense", activation="relu")], name=f"part_{at}")
        for at in (1, 2)
    ]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner[1](inner[0](inputs)))
    samples = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    aware = quantize_aware(model, samples)
    assert [layer.name for layer in aware.layers if type(layer).__name__ == "QuantizedDense"] == ["dense", "dense_1"]
    assert _snr_db(model.predict(samples, verbose=0), aware.predict(samples, verbose=0)) > LEAST_SNR_DB


def test_shared_layer_has_one_kernel_and_a_range_for_each_use():
    inputs = [keras.Input((6,)), keras.Input((6,))]
    dense = kl.Dense(4, name="tower")
    model = keras.Model(inputs, kl.Add()([dense(inputs[0]), dense(inputs[1])]))
    rng = np.random.default_rng(0)
    aware = tfc.quantize_aware(model, _pairs(rng.normal(size=(32, 6)), rng.normal(size=(32, 6)) * 10))
    ranges = {layer.name: layer for layer in fake_quantize_layers(aware)}
    assert [layer.name for layer in aware.layers].count("tower") == 1
    assert isinstance(ranges["tower_range"], FakeQuantize)
    assert float(ranges["tower_range_2"].maximum) > 3 * float(ranges["tower_range"].maximum)


def _kernel_in_file(path, op):
    """The integers of the first kernel of an operation, and their scales."""
    interpreter = Interpreter(
        model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    at = next(details["inputs"][1] for details in interpreter._get_ops_details() if details["op_name"] == op)
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}[at]
    return interpreter.get_tensor(at), details["quantization_parameters"]["scales"]


def test_kernel_that_is_used_twice_is_in_the_file_as_it_was_trained(tmp_path):
    inputs = keras.Input((8,))
    dense = kl.Dense(8, name="twice")
    model = keras.Model(inputs, dense(dense(inputs)))
    samples = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    aware = quantize_aware(model, samples)
    result = tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=samples)
    kernel = keras.ops.convert_to_numpy(dense.kernel)
    # The converter would give each channel a scale, and round the rounded kernel to that.
    integers, scales = _kernel_in_file(tmp_path / "model.tflite", "FULLY_CONNECTED")
    np.testing.assert_allclose(scales, [np.abs(kernel).max() / 127], rtol=1e-6)
    np.testing.assert_array_equal(integers, np.round(kernel.T / scales[0]))
    assert min(agreement.equal for agreement in result.parity.agreements) > 0.95


@pytest.mark.parametrize("merge", [kl.Concatenate(), kl.Maximum(), kl.Minimum()])
def test_what_only_goes_to_a_merge_of_one_scale_is_rounded_once(merge, tmp_path):
    inputs = keras.Input((6, 6, 3))
    merged = merge([kl.Conv2D(4, 3, activation="relu")(inputs), kl.Dropout(0.5)(kl.Conv2D(4, 3)(inputs))])
    samples = np.random.default_rng(0).normal(size=(16, 6, 6, 3)).astype("float32")
    aware = quantize_aware(keras.Model(inputs, merged), samples)
    assert len(fake_quantize_layers(aware)) == 2
    result = tfc.export_tflite(aware, tmp_path / "model.tflite", calibration=samples)
    # Rounded twice in Keras, 0.7 to 0.9 of the values were equal.
    assert min(agreement.equal for agreement in result.parity.agreements) > 0.97


def test_weights_in_wrappers_come_back_in_their_order():
    inputs = keras.Input(FRAMES)
    x = kl.TimeDistributed(kl.Conv2D(4, 3), name="frames")(inputs)
    x = kl.TimeDistributed(kl.Flatten())(kl.TimeDistributed(kl.BatchNormalization(), name="norm")(x))
    x = kl.Bidirectional(kl.LSTM(3, return_sequences=True), name="both")(x)
    model = keras.Model(inputs, kl.TimeDistributed(kl.Dense(2), name="head")(x))
    samples = np.random.default_rng(0).normal(size=(8, *FRAMES)).astype("float32")
    plain = remove_fake_quantization(quantize_aware(model, samples))
    for expected, actual in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert type(plain.get_layer("both")) is kl.Bidirectional
    assert not fake_quantize_layers(plain)


def test_layer_within_time_distributed_goes_by_the_name_of_the_wrapper():
    inputs = keras.Input((3, 6, 6, 2))
    frames = kl.TimeDistributed(kl.Conv2D(2, 3), name="frames")
    model = keras.Model(inputs, frames(inputs))
    aware = quantize_aware(model, np.zeros((2, 3, 6, 6, 2), "float32"), weight_bits={"frames": 4})
    assert aware.get_layer("frames").weight_bits == 4
    kept = quantize_aware(model, np.zeros((2, 3, 6, 6, 2), "float32"), allow_float=["frames"])
    assert type(kept.get_layer("frames")) is kl.TimeDistributed


def _pairs(first, second):
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(((first.astype("float32"), second.astype("float32")),))


def test_mixed_precision_rounds_the_float32_kernels():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((6, 4))
        x = kl.LayerNormalization()(kl.Add()([inputs, kl.MultiHeadAttention(2, 3)(inputs, inputs)]))
        model = keras.Model(inputs, kl.Dense(2, dtype="float32")(kl.LSTM(3)(x)))
    finally:
        keras.config.set_dtype_policy("float32")
    samples = np.random.default_rng(0).normal(size=(32, 6, 4)).astype("float32")
    before = model.predict(samples, verbose=0)
    aware = quantize_aware(model, samples)
    assert _snr_db(before, aware.predict(samples, verbose=0)) > LEAST_SNR_DB
    aware.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    assert np.isfinite(aware.fit(samples, before, verbose=0).history["loss"]).all()


def _unrounded(aware, monkeypatch):
    """Lets a model compute without any rounding, so that what is left is what rewriting changed."""
    import tensorflow as tf

    from tfcompress.layers import affine, rounding

    for module in (affine, rounding):
        monkeypatch.setattr(module, "fake_quantize_kernel", lambda kernel, **_: tf.convert_to_tensor(kernel))
    for layer in fake_quantize_layers(aware):
        layer.observer = lambda values: None
    return aware


@pytest.mark.parametrize("name", NETWORKS)
def test_rewriting_alone_changes_nothing(name, monkeypatch):
    model, inputs = _network(name)
    aware = _unrounded(insert_fake_quantization(model, QuantizationSpec()), monkeypatch)
    expected = keras.tree.flatten(model(inputs, training=False))
    actual = keras.tree.flatten(aware(inputs, training=False))
    for one, two in zip(expected, actual, strict=True):
        np.testing.assert_allclose(two, one, atol=2e-5 * np.abs(one).max())


class _Doubled(kl.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


def _masked(x):
    embedded = kl.Embedding(20, 6, mask_zero=True, name="embedding")(x)
    return kl.MultiHeadAttention(2, 3, name="attention")(embedded, embedded)


def _towers(x):
    tower = kl.Conv2D(2, 3, name="tower")
    return kl.Add()([tower(x), tower(-x)])


def _tall(x):
    y = ops.reshape(x, (-1, 8, 8, 4))
    return kl.MultiHeadAttention(2, 3, name="attention")(y, y)


@pytest.mark.parametrize(
    "shape, dtype, function, bits, reason",
    [
        (TOKENS, "int32", _masked, 8, "embedding: its mask changes what 'attention' computes"),
        (TOKENS, "float32", kl.Embedding(20, 6, name="embedding"), 8, "embedding: its indices come as floats"),
        (TOKENS, "int32", kl.Embedding(20, 6, name="embedding"), 4, "embedding: the converter takes no kernel of 4"),
        (IMAGE, "float32", kl.Conv2DTranspose(2, 3, name="up"), 4, "up: the converter takes no kernel of 4 bits"),
        (IMAGE, "float32", _towers, 4, "tower: the converter keeps 8 bits of a kernel"),
        ((None, 6), "float32", kl.TimeDistributed(kl.Dense(2), name="frames"), 8, "frames: its input has unknown"),
        (SEQUENCE, "float32", kl.Bidirectional(kl.LSTM(2), name="both"), 4, "both: the converter takes no kernel of 4"),
        (
            SEQUENCE,
            "float32",
            kl.Bidirectional(kl.GRU(2, reset_after=False), name="both"),
            8,
            "both: a GRU with reset_after=False",
        ),
        (IMAGE, "float32", _tall, 8, "attention: attention over more than one axis"),
        (IMAGE, "float32", lambda x: ops.elu(x, alpha=0.3), 8, "an ELU with another alpha"),
        (IMAGE, "float32", lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=3.0), 8, "zeros"),
        (IMAGE, "float32", _Doubled(name="norm"), 8, "norm: _Doubled is no layer of Keras"),
        (IMAGE, "uint8", kl.Rescaling(1 / 255, name="scale"), 8, "scale: its input is uint8"),
        (IMAGE, "float32", kl.Rescaling(np.ones((8, 1, 1)), name="scale"), 8, "scale: a scale or offset of shape"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(shape, dtype, function, bits, reason):
    inputs = keras.Input(shape, dtype=dtype)
    model = keras.Model(inputs, function(inputs))
    with pytest.raises(ModelError, match=reason):
        insert_fake_quantization(model, QuantizationSpec(weight_bits=bits))


def test_random_tokens_of_the_gate_cover_the_table(tmp_path):
    inputs = keras.Input((10,), dtype="int32", name="tokens")
    model = keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling1D()(kl.Embedding(50, 6, name="table")(inputs))))
    aware = quantize_aware(model, np.random.default_rng(0).integers(0, 50, (64, 10)).astype("int32"))
    result = tfc.export_tflite(aware, tmp_path / "model.tflite")
    assert "'tokens' whole numbers below 50" in result.parity.inputs
