"""Which kernels of a model there are for the techniques, and what is said of those that are hidden."""

import keras
import pytest
from helpers import tiny_mlp

import tfcompress as tfc
from tfcompress.errors import ModelError
from tfcompress.techniques.kernels import find_kernels, why_hidden

TECHNIQUES = {
    "prune_channels": lambda model: tfc.prune_channels(model, macs=0.5),
    "prune_weights": lambda model: tfc.prune_weights(model, sparsity=0.5),
    "cluster": lambda model: tfc.cluster(model, 4),
}


def int8():
    model = tiny_mlp()
    model.quantize("int8")
    return model


def lora():
    model = tiny_mlp()
    for layer in model.layers:
        if hasattr(layer, "enable_lora"):
            layer.enable_lora(1)
    return model


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("hidden", [int8, lora], ids=lambda make: make.__name__)
def test_an_error_says_that_weights_are_hidden(technique, hidden):
    with pytest.raises(ModelError, match="The weights of 'first', .* are in int8 or have LoRA beside them"):
        TECHNIQUES[technique](hidden())


def test_a_copy_that_loads_the_saved_weights_has_lora_merged(tmp_path):
    model = lora()
    model.layers[-1].lora_kernel_b.assign(model.layers[-1].lora_kernel_b + 1.0)
    model.save_weights(tmp_path / "merged.weights.h5")
    merged = tiny_mlp()
    merged.load_weights(tmp_path / "merged.weights.h5")
    assert not why_hidden(merged) and len(find_kernels(merged)) == 3
    x = keras.random.normal((4, 8))
    assert keras.ops.max(keras.ops.abs(merged(x) - model(x))) < 1e-5
