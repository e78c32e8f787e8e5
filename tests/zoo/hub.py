"""Models of keras-hub with random weights, small enough for a laptop.

Invariant: nothing is downloaded. Left out: tokenizers and image converters, which are no part of the network.
"""

from __future__ import annotations

import keras
import keras_hub

CLASSES = 4


def bert() -> keras.Model:
    """A BERT-like text classifier of two layers over 16 tokens."""
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=100, num_layers=2, num_heads=2, hidden_dim=32, intermediate_dim=64, max_sequence_length=16
    )
    # Its sequences have any length; a file needs one.
    names = ("token_ids", "padding_mask", "segment_ids")
    inputs = {name: keras.Input((16,), dtype="int32", name=name) for name in names}
    pooled = backbone(inputs)["pooled_output"]
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="classes")(pooled), name="hub_bert")


def vit() -> keras.Model:
    """A vision transformer of two layers over patches of 8 x 8 pixels."""
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    return keras_hub.models.ViTImageClassifier(backbone=backbone, num_classes=CLASSES, name="hub_vit")


def resnet() -> keras.Model:
    """A ResNet of four stages with one basic block each."""
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )
    return keras_hub.models.ResNetImageClassifier(backbone=backbone, num_classes=CLASSES, name="hub_resnet")
