"""Drift by layer: the spoiled layer is named, figures against other runs, what was fused, names as Keras has them."""

import io
import json

import keras
import numpy as np
import pytest
from helpers import blobs, tiny_cnn
from keras import layers
from rich.console import Console

import tfcompress as tfc
from tfcompress.errors import DataError, InvalidArgumentError
from tfcompress.export.drift import LayerDrift, _confirmed, layer_drift
from tfcompress.export.layer_names import layers_of_scopes
from tfcompress.measure.tflite_runner import TFLiteRunner
from tfcompress.techniques.quantize import quantize_aware

CNN_LAYERS = ["stem", "stem_bn", "stem_relu", "middle", "depthwise", "residual", "pool", "hidden", "classes"]


def cnn():
    """The tiny model with statistics that are not neutral, so that the normalization is in the file."""
    model = tiny_cnn()
    bn, rng = model.get_layer("stem_bn"), np.random.default_rng(0)
    bn.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in bn.get_weights()])
    return model


def snr(expected, actual):
    return 10 * np.log10(np.mean(np.square(expected, dtype="float64")) / np.mean((expected - actual) ** 2.0))


def test_the_spoiled_layer_is_named():
    model, (x, _) = tiny_cnn(), blobs(64)
    # One channel in eight a thousand times the others, taken back by what reads it: the same function in float.
    factor = np.where(np.arange(8) == 3, 1000.0, 1.0).astype("float32")
    kernel, bias = model.get_layer("middle").get_weights()
    kernel[..., 3] = np.abs(kernel[..., 3])
    model.get_layer("middle").set_weights([kernel, bias])
    before = model.predict(x, verbose=0)
    model.get_layer("middle").set_weights([kernel * factor, bias])
    depthwise, bias = model.get_layer("depthwise").get_weights()
    model.get_layer("depthwise").set_weights([depthwise / factor[:, None], bias])
    np.testing.assert_allclose(model.predict(x, verbose=0), before, rtol=1e-3, atol=1e-4)
    found = layer_drift(model, x, samples=16)
    assert found.first_below().layer == "middle"
    middle, stem = (next(one for one in found.layers if one.layer == name) for name in ("middle", "stem_relu"))
    assert {one.dtype for one in found.compared} == {"int8"}
    # The large channel itself is fine, and hides the others in the ratio of all values.
    assert middle.channel_snr_db < 10 < 30 < middle.snr_db
    assert stem.worst_db > 20
    assert found.by_snr[0].worst_db == min(one.worst_db for one in found.compared)


def test_rows_are_the_layers_of_keras_in_order():
    model, (x, _) = cnn(), blobs(32)
    weights, nodes = model.get_weights(), [len(layer._inbound_nodes) for layer in model.layers]
    found = tfc.layer_drift(model, x, mode="float32", samples=4)
    assert [one.layer for one in found.layers] == CNN_LAYERS == [layer.name for layer in model.layers[1:]]
    assert {one.layer: one.fused_into for one in found.layers if one.fused_into} == {
        "stem": "stem_relu",
        "stem_bn": "stem_relu",
    }
    assert all(one.snr_db > 100 and one.dtype == "float32" for one in found.layers if not one.fused_into)
    assert found.layers[0] == LayerDrift("stem", fused_into="stem_relu", note="fused into 'stem_relu'")
    assert json.loads(json.dumps(found.rows()))[2]["tensor"].startswith("tiny_1/stem_relu")
    text = io.StringIO()
    Console(width=120, file=text).print(found.table())
    assert all(name in text.getvalue() for name in CNN_LAYERS)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))


def test_figures_are_those_of_outputs_that_the_file_gives(tmp_path):
    full, (x, _) = cnn(), blobs(64)
    names = ["stem_relu", "residual", "classes"]
    model = keras.Model(full.inputs, [full.get_layer(name).output for name in names])
    found = {one.layer: one for one in layer_drift(model, x, samples=16).layers}
    path = tfc.export_tflite(model, tmp_path / "three.tflite", calibration=x, parity_samples=0, slim=False).path
    runner = TFLiteRunner(path, delegate="none")
    chosen = x[np.linspace(0, 63, 16).round().astype(int)]
    given = runner.predict(chosen)
    for name, exact in zip(names, model.predict(chosen, verbose=0), strict=True):
        # Two outputs have one shape; the right one is the closer one.
        same = [one for one in given if one.shape == exact.shape]
        assert found[name].snr_db == pytest.approx(max(snr(exact, one) for one in same), abs=0.05), name


def test_fake_quantization_is_compared_as_it_rounds():
    x, _ = blobs(64)
    found = layer_drift(quantize_aware(cnn(), x), x, samples=16)
    # The ranges are no layers of their own, and equal rounding leaves less noise than 8 bits of an unrounded output.
    assert [one.layer for one in found.layers] == CNN_LAYERS
    assert len(found.compared) == 7
    assert all(one.snr_db > 45 for one in found.compared)
    assert found.first_below() is None


def test_what_has_no_tensor_of_its_own_says_why():
    inputs = keras.Input((6, 8), name="steps")
    shared = layers.Dense(8, name="dense")
    x = shared(layers.Activation("tanh", name="tanh")(shared(inputs)))
    x = layers.Dropout(0.5, name="drop")(x)
    x = layers.Dense(8, name="scaled")(x) * 2.0
    # A layer in this one is called as another layer of the model.
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.Dense(8, activation="softmax", name="query")(x)
    model = keras.Model(inputs, layers.Flatten(name="flat")(x), name="dense")
    found = {one.layer: one for one in layer_drift(model, blobs(32, shape=(6, 8))[0], samples=8).layers}
    assert found["dense"].note == "used 2 times"
    assert found["drop"].note == "no operation with its name"
    assert found["scaled"].note == "fused with an operation that is in no layer"
    for name in ("tanh", "attention", "query", "flat"):
        assert found[name].snr_db > 15, name


def test_a_match_that_the_float_file_refutes_is_not_reported():
    row = LayerDrift("dense", 3.0, 3.0, "net/dense", "int8")
    assert _confirmed(row, LayerDrift("dense", 120.0, 110.0, "net/dense", "float32")) == row
    for exact in (LayerDrift("dense", 4.0, 2.0, "net/dense", "float32"), LayerDrift("dense", note="used 2 times")):
        refuted = _confirmed(row, exact)
        assert (refuted.layer, refuted.snr_db, refuted.tensor) == ("dense", None, None)
        assert "the float32 file has something else there" in refuted.note


def test_scopes_without_numbers_are_certain():
    assert layers_of_scopes(["net", "dense", "dense_1"], ["dense_1", "dense"]) == {
        "dense": "dense",
        "dense_1": "dense_1",
    }


def test_what_cannot_be_asked():
    model, (x, _) = tiny_cnn(), blobs(8)
    with pytest.raises(InvalidArgumentError, match="`mode` must be one of float32, .*Received: 'int3'"):
        layer_drift(model, x, mode="int3")
    with pytest.raises(InvalidArgumentError, match="`samples` must be a whole number, at least 1. Received: 0"):
        layer_drift(model, x, samples=0)
    with pytest.raises(DataError, match="needs `calibration` data"):
        layer_drift(model, None)
