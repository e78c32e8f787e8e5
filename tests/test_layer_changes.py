"""What a technique did, layer by layer: rows, text and picture."""

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tfcompress.report.layer_changes import changes_table, layer_changes
from tfcompress.report.plots import layer_sizes


def network(hidden, last="last"):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(hidden, name="hidden"), layers.ReLU(), layers.Dense(2, name=last)]
    )


def test_rows_are_counted_on_both_models():
    before, after = network(8), network(3)
    rows = {change.layer: change for change in layer_changes(before, after)}
    assert list(rows) == ["hidden", "last"]
    hidden = rows["hidden"]
    assert (hidden.before.shape, hidden.after.shape) == ((4, 8), (4, 3))
    assert (hidden.before.params, hidden.after.params) == (40, 15)
    assert (hidden.before.macs, hidden.after.macs) == (32, 12)
    assert sum(change.after.params for change in rows.values()) == after.count_params()
    assert sum(change.before.macs for change in rows.values()) == tfc.count_macs(before)


def test_zeros_and_values_are_counted():
    model = network(8)
    pruned, clustered = tfc.prune_weights(model, 0.5, include=["hidden"]), tfc.cluster(model, 4, include=["hidden"])
    (zeros, _), (values, _) = layer_changes(model, pruned), layer_changes(model, clustered)
    assert zeros.after.nonzero == np.count_nonzero(pruned.get_layer("hidden").get_weights()[0])
    assert (values.before.distinct, values.after.distinct) == (32, 4)
    assert values.cells()[4] == "32 → 4"


def test_added_and_gone_layers():
    rows = {change.layer: change for change in layer_changes(network(8, "old"), network(8, "new"))}
    assert list(rows) == ["hidden", "old", "new"]
    assert rows["old"].after.params == rows["new"].before.params == 0
    assert rows["old"].after.shape == rows["new"].before.shape == ()


def test_text_and_picture():
    changes = layer_changes(network(8), network(3))
    assert "4x8 → 4x3" in changes_table(changes) and "58 → 23" in changes_table(changes)
    (axes,) = layer_sizes(changes).axes
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[32, 16], [12, 6]]
    # 12 of 32 in the hidden layer, and 6 of 16 in what reads it.
    assert [text.get_text() for text in axes.texts] == ["38%", "38%"]
    added = layer_sizes(layer_changes(network(8, "old"), network(8, "new"))).axes[0]
    assert [text.get_text() for text in added.texts] == ["100%", "0%", "new"]
    assert layer_sizes([]) is None
