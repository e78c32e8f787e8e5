"""Sensitivity on the runtime's kernels: names, the layer that is bad by construction, files within a budget."""

import keras
import numpy as np
import pytest
from helpers import blobs, tiny_cnn
from keras import layers

from tfcompress.errors import DataError, ExportError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.sensitivity import sensitivity
from tfcompress.measure.tflite_runner import TFLiteRunner
from tfcompress.report.plots import layer_sensitivity
from tfcompress.techniques.quantize import quantize_aware


def spoiled():
    """A model in which one channel after `wide` is a thousand times the others, and is taken back in `after`."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8,), name="features")
    x = layers.Dense(16, activation="relu", name="good")(inputs)
    x = layers.Dense(16, activation="relu", name="wide")(x)
    x = layers.Dense(16, activation="relu", name="after")(x)
    x = layers.Dense(16, activation="relu", name="good_1")(x)
    model = keras.Model(inputs, layers.Dense(4, name="classes")(x), name="net")
    wide, after = model.get_layer("wide").kernel, model.get_layer("after").kernel
    factor = np.where(np.arange(16) == 3, 1000.0, 1.0)
    # A channel that is used, so that its range is real.
    wide.assign(np.where(np.arange(16) == 3, np.abs(wide.numpy()), wide.numpy()) * factor)
    after.assign(after.numpy() / factor[:, None])
    return model


@pytest.fixture(scope="module")
def found():
    return sensitivity(spoiled(), blobs(128, shape=(8,))[0], samples=64)


def test_the_spoiled_layers_come_first(found):
    names = [layer.layer for layer in found.layers]
    assert sorted(names) == ["after", "classes", "good", "good_1", "wide"]
    assert set(names[:2]) == {"wide", "after"}
    assert found.layers[1].snr_db < found.layers[2].snr_db - 6
    assert found.int8.snr_db <= found.layers[0].snr_db + 1
    assert {layer.layer: layer.weight_bytes for layer in found.layers}["wide"] == 4 * (16 * 16 + 16)
    assert found.table().splitlines()[1].split()[0] == names[0]
    assert [row["layer"] for row in found.rows()] == names


def test_budgets_choose_the_fewest_layers(found, tmp_path):
    assert found.choose(min_snr_db=found.int8.snr_db - 1).float_layers == ()
    mixed = found.choose(min_snr_db=found.int8.snr_db + 6)
    assert set(mixed.float_layers) == {"wide", "after"}
    # The file says the same, run anew.
    x = blobs(128, shape=(8,))[0]
    chosen = np.linspace(0, 127, 64).round().astype(int)
    exact = spoiled().predict(x[chosen], verbose=0)
    outputs = TFLiteRunner(mixed.save(tmp_path / "mixed.tflite")).predict(x[chosen])
    snr = 10 * np.log10(np.mean(exact**2) / np.mean((outputs - exact) ** 2))
    assert snr == pytest.approx(mixed.snr_db, abs=0.1)
    types = [flatbuffer.type_name(tensor.type) for tensor in flatbuffer.parse(mixed.content).subgraphs[0].tensors]
    assert "int8" in types and "float32" in types
    assert found.with_float([layer.layer for layer in found.layers]).snr_db > 100
    drop = found.choose(max_top1_drop=0.5)
    assert drop.top1 >= 0.5


def test_fused_layers_have_the_name_of_the_kernel():
    x, _ = blobs(64)
    found = sensitivity(tiny_cnn(softmax=True), x, samples=16)
    names = {layer.layer for layer in found.layers}
    assert names == {"stem", "middle", "depthwise", "residual", "pool", "hidden", "classes"}
    # Product and softmax are one layer.
    assert len(next(layer for layer in found.layers if layer.layer == "classes").nodes) == 2
    figure = layer_sensitivity(found.rows(), found.int8.snr_db)
    assert len(figure.axes[0].patches) == 7


def test_what_cannot_be_asked(found):
    with pytest.raises(InvalidArgumentError, match="given one of `min_snr_db` and `max_top1_drop`"):
        found.choose()
    with pytest.raises(InvalidArgumentError, match=r"`max_top1_drop` must be a share in \[0, 1\]. Received: 2"):
        found.choose(max_top1_drop=2)
    with pytest.raises(InvalidArgumentError, match="names among .*'wide'.*Received: .'other'"):
        found.with_float(["other"])
    with pytest.raises(ExportError, match="No file meets the budget"):
        found.choose(min_snr_db=300)
    x = blobs(8, shape=(8,))[0]
    with pytest.raises(ModelError, match="fake quantization"):
        sensitivity(quantize_aware(spoiled(), x), x)
    with pytest.raises(InvalidArgumentError, match="`samples` must be a whole number, at least 1. Received: 0"):
        sensitivity(spoiled(), x, samples=0)
    with pytest.raises(DataError):
        sensitivity(spoiled(), np.full((8, 8), np.nan, "float32"))
