"""Sensitivity on the runtime's kernels: names, the layer that is bad by construction, files within a budget."""

import json

import keras
import numpy as np
import pytest
from helpers import blob_dataset, blobs, tiny_cnn
from keras import layers

from tfcompress.errors import DataError, ExportError, InvalidArgumentError, ModelError
from tfcompress.export import flatbuffer
from tfcompress.export.sensitivity import sensitivity
from tfcompress.measure.tflite_runner import TFLiteRunner
from tfcompress.report.plots import layer_sensitivity
from tfcompress.techniques.quantize import quantize_aware


def spoiled(factor=1000.0):
    """A model in which one channel after `wide` is so many times the others, and is taken back in `after`."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8,), name="features")
    x = layers.Dense(16, activation="relu", name="good")(inputs)
    x = layers.Dense(16, activation="relu", name="wide")(x)
    x = layers.Dense(16, activation="relu", name="after")(x)
    x = layers.Dense(16, activation="relu", name="good_1")(x)
    model = keras.Model(inputs, layers.Dense(4, name="classes")(x), name="net")
    wide, after = model.get_layer("wide").kernel, model.get_layer("after").kernel
    factors = np.where(np.arange(16) == 3, factor, 1.0)
    # A channel that is used, so that its range is real.
    wide.assign(np.where(np.arange(16) == 3, np.abs(wide.numpy()), wide.numpy()) * factors)
    after.assign(after.numpy() / factors[:, None])
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
    # All in int8 is within the budget, and no file: so bad that the gate refuses it.
    with pytest.raises(ExportError, match=r"The int8 file does not agree.*(?s:.)*delegate 'reference': SNR"):
        found.choose(min_snr_db=found.int8.snr_db - 1)
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


def test_a_chosen_file_passed_the_gate_and_names_what_is_in_float(found):
    mixed = found.with_float(["wide", "after"])
    assert {agreement.delegate for agreement in mixed.parity.agreements} == {"default", "none", "reference"}
    assert mixed.audit.passed and mixed.parity.passed and mixed.parity.notes == ()
    assert [line.partition("layer ")[2] for line in mixed.audit.left_in_float] == [
        "'wide' was left in float", "'after' was left in float",
    ]  # fmt: skip
    assert all(line.startswith("FULLY_CONNECTED (float32, ") for line in mixed.audit.left_in_float)
    assert json.loads(json.dumps(mixed.to_dict()))["float_layers"] == ["wide", "after"]


def test_a_budget_of_labelled_accuracy(tmp_path):
    model, x = spoiled(30.0), blobs(400, shape=(8,), seed=3)[0]
    found = sensitivity(model, x, samples=64)
    y = model.predict(x, verbose=0).argmax(1)
    y[:40] = (y[:40] + 1) % 4  # So that the float file is right on nine of ten.
    mixed = found.choose(max_accuracy_drop=0.05, labelled=(x, y))
    assert mixed.float_accuracy == pytest.approx(0.9, abs=0.005)
    assert mixed.accuracy >= mixed.float_accuracy - 0.05
    kept = found.choose(max_top1_drop=0.0)
    assert kept.top1 == 1 and found.int8.top1 <= kept.top1
    outputs = TFLiteRunner(mixed.save(tmp_path / "mixed.tflite")).predict(x)
    assert np.mean(outputs.argmax(1) == y) == pytest.approx(mixed.accuracy, abs=1e-6)
    # Without a drop it takes more layers, if not the same.
    assert len(found.choose(max_accuracy_drop=0.0, labelled=(x, y)).float_layers) >= len(mixed.float_layers)
    with pytest.raises(InvalidArgumentError, match="`labelled` must be `.x, y.` or a Dataset"):
        found.choose(max_accuracy_drop=0.05)
    with pytest.raises(InvalidArgumentError, match="`labelled` must be a Dataset, or arrays"):
        found.choose(max_accuracy_drop=0.05, labelled=x)


def test_labels_come_from_the_dataset_that_calibrates():
    model, data = tiny_cnn(), blob_dataset(96)
    found = sensitivity(model, data, samples=16)
    mixed = found.choose(max_accuracy_drop=1.0)
    split = list(data.batches("validation", 100).as_numpy_iterator())
    right = [model.predict(x, verbose=0).argmax(1) == y for x, y in split]
    assert mixed.float_layers == () and mixed.float_accuracy == pytest.approx(np.mean(np.concatenate(right)))


def test_a_layer_that_int8_does_not_take_is_in_float_from_the_start():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 4))
    x = layers.LayerNormalization(name="norm")(layers.Dense(8, name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    found = sensitivity(model, np.random.default_rng(0).normal(size=(48, 6, 4)).astype("float32"), samples=16)
    assert found.in_float_anyway == ("norm",)
    mixed = found.choose(min_snr_db=10.0)
    assert mixed.float_layers == ("norm",)
    assert {line.partition("layer ")[2] for line in mixed.audit.left_in_float} == {"'norm' was left in float"}
    assert found.with_float(["head"]).float_layers == ("norm", "head")


def test_fused_layers_have_the_name_of_the_kernel():
    x, _ = blobs(64)
    found = sensitivity(tiny_cnn(softmax=True), x, samples=16)
    names = {layer.layer for layer in found.layers}
    assert names == {"stem", "middle", "depthwise", "residual", "pool", "hidden", "classes"}
    # Product and softmax are one layer.
    assert len(next(layer for layer in found.layers if layer.layer == "classes").nodes) == 2
    figure = layer_sensitivity(found.rows(), found.int8.snr_db, ["pool", "stem"])
    (axes,) = figure.axes
    rows = {label.get_text(): at for at, label in enumerate(axes.get_yticklabels())}
    assert list(rows) == [layer.layer for layer in found.layers]
    bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in axes.patches}
    colors = {name: bars[at].get_facecolor() for name, at in rows.items()}
    assert colors["pool"] == colors["stem"] and len(set(colors.values())) == 2 and len(bars) == 7
    assert [bars[at].get_width() for at in sorted(bars)] == [layer.snr_db for layer in found.layers]


def test_what_cannot_be_asked(found):
    with pytest.raises(InvalidArgumentError, match="given one of `min_snr_db`, `max_top1_drop` and `max_acc"):
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
