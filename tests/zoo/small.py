"""Small models of kinds that `keras.applications` doesn't have.

Invariant: each builds in well under a second and shows one kind of structure. Left out: accuracy; weights are random.
"""

from __future__ import annotations

import keras
from keras import layers

CLASSES = 4


def lstm() -> keras.Model:
    """Two stacked LSTM layers over a sequence of vectors."""
    inputs = keras.Input((12, 8), name="sequence")
    x = layers.LSTM(16, return_sequences=True, name="first")(inputs)
    x = layers.LSTM(16, name="second")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="lstm")


def gru() -> keras.Model:
    """A GRU between two dense layers."""
    inputs = keras.Input((12, 8), name="sequence")
    x = layers.Dense(16, activation="relu", name="embed")(inputs)
    x = layers.GRU(16, name="gru")(x)
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="classes")(x), name="gru")


def bidirectional() -> keras.Model:
    """A Bidirectional LSTM and a Bidirectional GRU that adds its directions."""
    inputs = keras.Input((12, 8), name="sequence")
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True), name="both_ways")(inputs)
    x = layers.Bidirectional(layers.GRU(8), merge_mode="sum", name="summed")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="classes")(x), name="bidirectional")


def transformer() -> keras.Model:
    """One encoder block over embedded tokens and positions."""
    inputs = keras.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 16, name="embedding")(inputs)
    attended = layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    x = layers.LayerNormalization(name="attention_norm")(layers.Add(name="attention_add")([x, attended]))
    wide = layers.Dense(32, activation="gelu", name="wide")(x)
    narrow = layers.Dense(16, name="narrow")(layers.Dropout(0.1, name="dropout")(wide))
    x = layers.LayerNormalization(name="feed_norm")(layers.Add(name="feed_add")([x, narrow]))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="transformer")


def conv1d() -> keras.Model:
    """1-D convolutions, as over audio."""
    inputs = keras.Input((64, 2), name="signal")
    x = layers.Conv1D(16, 5, strides=2, padding="same", use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="first_relu")(layers.BatchNormalization(name="first_norm")(x))
    x = layers.SeparableConv1D(16, 3, padding="same", activation="relu", name="separable")(x)
    x = layers.MaxPooling1D(2, name="shrink")(x)
    x = layers.Conv1D(16, 3, padding="causal", dilation_rate=2, activation="relu", name="dilated")(x)
    x = layers.GlobalMaxPooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="classes")(x), name="conv1d")


def unet() -> keras.Model:
    """Two scales down and up again, with transposed convolution, upsampling and skip connections."""
    inputs = keras.Input((16, 16, 3), name="image")
    top = layers.Conv2D(8, 3, padding="same", activation="relu", name="down_1")(inputs)
    middle = layers.Conv2D(16, 3, padding="same", activation="relu", name="down_2")(layers.MaxPooling2D()(top))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="bottom")(layers.MaxPooling2D()(middle))
    x = layers.Conv2DTranspose(16, 2, strides=2, name="transposed")(x)
    x = layers.Concatenate(name="join_2")([x, middle])
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="up_2")(x)
    x = layers.UpSampling2D(interpolation="bilinear", name="upsample")(x)
    x = layers.Concatenate(name="join_1")([x, top])
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="up_1")(x)
    return keras.Model(inputs, layers.Conv2D(CLASSES, 1, activation="softmax", name="pixels")(x), name="unet")


def multi_input() -> keras.Model:
    """An image and a vector of features, given by name."""
    image = keras.Input((16, 16, 1), name="image")
    features = keras.Input((6,), name="features")
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    y = layers.Dense(8, activation="relu", name="embed")(features)
    x = layers.Dense(16, activation="relu", name="hidden")(layers.Concatenate(name="join")([x, y]))
    outputs = layers.Dense(CLASSES, activation="softmax", name="classes")(x)
    return keras.Model({"image": image, "features": features}, outputs, name="multi_input")


def multi_output() -> keras.Model:
    """A class and a box from the same trunk."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv_1")(inputs)
    x = layers.Conv2D(16, 3, activation="relu", name="conv_2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    # Not as many classes as a box has sides: outputs of one shape may be stacked by mistake, and nothing would show.
    classes = layers.Dense(CLASSES + 1, activation="softmax", name="classes")(x)
    box = layers.Dense(4, activation="sigmoid", name="box")(layers.Dense(8, activation="relu", name="box_hidden")(x))
    return keras.Model(inputs, [classes, box], name="multi_output")


def recommender() -> keras.Model:
    """The dot product of two embeddings beside a dense tower, over integer inputs."""
    user, item = (keras.Input((1,), dtype="int32", name=name) for name in ("user", "item"))
    users = layers.Flatten(name="user_flat")(layers.Embedding(40, 8, name="user_embedding")(user))
    items = layers.Flatten(name="item_flat")(layers.Embedding(60, 8, name="item_embedding")(item))
    x = layers.Dense(16, activation="relu", name="tower_1")(layers.Concatenate(name="join")([users, items]))
    x = layers.Dense(8, activation="relu", name="tower_2")(x)
    both = layers.Concatenate(name="both")([layers.Dot(axes=1, name="dot")([users, items]), x])
    return keras.Model([user, item], layers.Dense(1, activation="sigmoid", name="score")(both), name="recommender")


def detector() -> keras.Model:
    """A head over two scales: boxes and classes, reshaped and joined."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    fine = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu6", name="fine")(x)
    coarse = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu6", name="coarse")(fine)
    boxes, scores = [], []
    for name, scale in (("fine", fine), ("coarse", coarse)):
        boxes.append(layers.Reshape((-1, 4), name=f"{name}_boxes")(layers.Conv2D(8, 3, padding="same")(scale)))
        raw = layers.Conv2D(2 * CLASSES, 3, padding="same")(scale)
        scores.append(layers.Reshape((-1, CLASSES), name=f"{name}_scores")(raw))
    boxes = layers.Concatenate(axis=1, name="boxes")(boxes)
    scores = layers.Activation("sigmoid", name="scores")(layers.Concatenate(axis=1, name="all_scores")(scores))
    return keras.Model(inputs, {"boxes": boxes, "scores": scores}, name="detector")


def nested() -> keras.Model:
    """A model within a model within a Sequential one."""
    inner_input = keras.Input((8, 8, 8), name="inner_input")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="inner_conv")(inner_input)
    x = layers.ReLU(name="inner_relu")(layers.BatchNormalization(name="inner_norm")(x))
    inner = keras.Model(inner_input, layers.Add(name="inner_add")([x, inner_input]), name="inner")
    head_layers = [layers.Dense(16, activation="relu", name="hidden"), layers.Dense(CLASSES, name="classes")]
    head = keras.Sequential([keras.Input((8,)), *head_layers], name="head")
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(inner(x))
    return keras.Model(inputs, head(x), name="nested")


def shared_layers() -> keras.Model:
    """Two towers of the same layers, one of which is used twice in a row."""
    left, right = (keras.Input((8,), name=name) for name in ("left", "right"))
    embed = layers.Dense(16, activation="relu", name="embed")
    again = layers.Dense(16, activation="tanh", name="again")
    towers = [again(again(embed(side))) for side in (left, right)]
    x = layers.Subtract(name="difference")(towers)
    x = layers.Dense(8, activation="relu", name="hidden")(x)
    return keras.Model([left, right], layers.Dense(CLASSES, name="classes")(x), name="shared_layers")


def op_layers() -> keras.Model:
    """Arithmetic and slices written on tensors, and functions of `keras.ops`."""
    inputs = keras.Input((16, 16, 4), name="image")
    x = inputs * 2.0 - 1.0
    x = layers.Conv2D(8, 3, padding="same", name="conv_1")(x[..., :3])
    x = keras.ops.relu(x + 3) / 6
    x = x[:, 2:-2, 2:-2, :] + keras.ops.mean(x, axis=(1, 2), keepdims=True)
    x = layers.Conv2D(8, 3, activation="relu", name="conv_2")(x)
    x = keras.ops.concatenate([keras.ops.max(x, axis=(1, 2)), keras.ops.mean(x, axis=(1, 2))], axis=-1)
    return keras.Model(inputs, layers.Dense(CLASSES, name="classes")(x), name="op_layers")


def preprocessing() -> keras.Model:
    """Layers that belong before a network: rescaling, normalization, cropping, augmentation."""
    inputs = keras.Input((20, 20, 3), name="image")
    x = layers.Rescaling(1 / 255, name="rescale")(inputs)
    x = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3], name="normalize")(x)
    x = layers.RandomFlip("horizontal", name="flip")(x)
    x = layers.CenterCrop(16, 16, name="crop")(x)
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv_1")(layers.ZeroPadding2D(1, name="pad")(x))
    x = layers.Conv2D(8, 3, activation="relu", name="conv_2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="preprocessing")


@keras.saving.register_keras_serializable(package="zoo")
class Subclassed(keras.Model):
    """A residual network written as a class, whose `call` works on symbolic inputs."""

    def __init__(self, width: int = 8, **options):
        super().__init__(**options)
        self.width = width
        self.stem = layers.Conv2D(width, 3, strides=2, padding="same", activation="relu", name="stem")
        self.block = layers.Conv2D(width, 3, padding="same", name="block")
        self.norm = layers.BatchNormalization(name="norm")
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.classes = layers.Dense(CLASSES, name="classes")

    def call(self, inputs, training=False):
        x = self.stem(inputs)
        x = x + keras.ops.relu(self.norm(self.block(x), training=training))
        return self.classes(self.pool(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def subclassed() -> keras.Model:
    """A built instance of `Subclassed`."""
    model = Subclassed(name="subclassed")
    model(keras.ops.zeros((1, 16, 16, 3)))
    return model
