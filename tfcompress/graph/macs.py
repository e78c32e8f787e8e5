"""Multiply-adds of a Keras model, counted once each, for one sample.

Invariant: a layer's count is the number of its kernel's values times how often each is used, padding included; a layer
that is called twice counts twice, and a subclass counts as the layer it extends. Left out: what is no multiply-add of
two tensors along a sum, so biases, activations, pooling, element-wise arithmetic, and batch normalization, which is
folded into the layer before it when a model is exported; and products made by bare operations (`keras.ops.matmul`).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from tfcompress.errors import ModelError
from tfcompress.graph.layer_kinds import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED
from tfcompress.graph.shapes import tensors_of
from tfcompress.graph.trace import Ref, trace

_Shape = tuple[Any, ...]


def layer_macs(model: keras.Model) -> dict[str, int]:
    """Multiply-adds of each layer, for one sample.

    Args:
        model: A functional or Sequential model, whose inputs have no unknown size besides the batch.

    Returns:
        Layer name to multiply-adds, summed over all calls of the layer, in the order of first use; 0 for layers without
        any. Nested models are opened; layers of the same name in different nested models are taken together.

    Raises:
        ModelError: If the model has no graph, or a needed size is unknown.

    Example:
        >>> inputs = keras.Input((8, 8, 3), name="image")
        >>> layer_macs(keras.Model(inputs, layers.Conv2D(4, 3, name="conv")(inputs)))
        {'conv': 3888}
    """
    traced = trace(model)
    tensors = tensors_of(traced, batch=1)
    counts: dict[str, int] = {}
    for index, call in enumerate(traced.calls):
        layer = call.operation
        if isinstance(layer, layers.Layer) and not isinstance(layer, layers.InputLayer):
            inputs = _input_shapes(layer, *call.arguments(tensors.__getitem__))
            macs = _macs_of_call(layer, inputs, tuple(tensors[Ref(index)].shape))
            counts[layer.name] = counts.get(layer.name, 0) + macs
    return counts


def count_macs(model: keras.Model) -> int:
    """Multiply-adds of the whole model, for one sample: the sum of `layer_macs`.

    Args:
        model: A functional or Sequential model, whose inputs have no unknown size besides the batch.

    Raises:
        ModelError: If the model has no graph, or a needed size is unknown.

    Example:
        >>> count_macs(keras.Sequential([keras.Input((100,)), layers.Dense(10)]))
        1000
    """
    return sum(layer_macs(model).values())


def _input_shapes(layer: layers.Layer, args: tuple, kwargs: dict[str, Any]) -> list[_Shape]:
    """Shapes of the tensors that a call takes, in the order of the layer's signature, also where named."""
    arguments = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    leaves = [leaf for value in arguments.values() for leaf in keras.tree.flatten(value)]
    return [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, keras.KerasTensor)]


def _macs_of_call(layer: layers.Layer, inputs: Sequence[_Shape], output: _Shape) -> int:
    for kind, count in _COUNTERS:
        if isinstance(layer, kind):
            try:
                return int(count(layer, inputs, output))
            except TypeError as error:
                if None not in (*inputs[0], *output):
                    raise
                raise ModelError(
                    f"The multiply-adds of layer {layer.name!r} depend on a size that is unknown: its input has shape "
                    f"{inputs[0]}. Build the model with a fixed `keras.Input` shape."
                ) from error
    ours = type(layer).__module__.startswith("keras.")
    if not ours and any(len(weight.shape) > 1 for weight in layer.weights):
        warnings.warn(
            f"Layer {layer.name!r} is counted as 0 multiply-adds: its class {type(layer).__name__} extends no Keras "
            "layer whose multiply-adds are known.",
            stacklevel=4,
        )
    return 0


def _spatial(layer: Any, shape: _Shape) -> int:
    """Positions of a feature map: all sizes but batch and channels."""
    return math.prod(shape[1:-1] if layer.data_format == "channels_last" else shape[2:])


def _size(*weights: Any) -> int:
    return sum(math.prod(weight.shape) for weight in weights)


def _conv(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    # Also right for groups: the kernel has `channels / groups` inputs. And for depthwise: no sum over channels.
    return _size(layer.kernel) * _spatial(layer, output)


def _conv_transpose(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    # Each input position is multiplied with the whole kernel; the products are added up where they overlap.
    return _size(layer.kernel) * _spatial(layer, inputs[0])


def _separable(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    return _size(layer.depthwise_kernel, layer.pointwise_kernel) * _spatial(layer, output)


def _dense(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    return math.prod(inputs[0][1:]) * layer.units


def _einsum_dense(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    # One multiply-add for each combination of all indices in the equation.
    operand, weight = layer.equation.replace(" ", "").split("->")[0].split(",")
    batch_labels = "".join(chr(ord("0") + index) for index in range(len(inputs[0]) - len(operand.replace("...", ""))))
    operand = operand.replace("...", batch_labels)
    sizes = dict(zip(operand, inputs[0], strict=True)) | dict(zip(weight, layer.kernel.shape, strict=True))
    return math.prod(sizes.values())


def _multi_head_attention(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    # Projections of query, key, value and result, then each query's scores and weighted sum, head by head.
    queries, values = (math.prod(shape[1:-1]) for shape in inputs[:2])
    projections = queries * _size(layer.query_dense.kernel, layer.output_dense.kernel)
    projections += values * _size(layer.key_dense.kernel, layer.value_dense.kernel)
    return projections + queries * values * layer.num_heads * (layer.key_dim + layer.value_dim)


def _attention(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    # Also right for the additive kind: its scores are a sum over the query's size, too.
    query, value = inputs[:2]
    return query[1] * value[1] * (query[-1] + value[-1])


def _dot(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return math.prod(output[1:]) * inputs[0][axis]


def _recurrent(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    # Every matrix of a cell is used once for each time step.
    kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
    return _size(*kernels) * inputs[0][1]


def _conv_lstm(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    # The state has the size of the convolved input, and both kernels go over all of its positions at each time step.
    rank = layer.cell.rank
    spatial = output[-1 - rank : -1] if layer.cell.data_format == "channels_last" else output[-rank:]
    return _size(layer.cell.kernel, layer.cell.recurrent_kernel) * math.prod(spatial) * inputs[0][1]


def _bidirectional(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    return sum(_macs_of_call(each, inputs, output) for each in (layer.forward_layer, layer.backward_layer))


def _time_distributed(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    batch, steps, *sample = inputs[0]
    if isinstance(layer.layer, keras.Model):
        return steps * count_macs(layer.layer)
    return steps * _macs_of_call(layer.layer, [(batch, *sample)], (batch, *output[2:]))


def _wrapper(layer: Any, inputs: Sequence[_Shape], output: _Shape) -> int:
    return _macs_of_call(layer.layer, inputs, output)


# The first class that fits decides, so subclasses stand before what they extend.
_COUNTERS: tuple[tuple[Any, Callable[[Any, Sequence[_Shape], _Shape], int]], ...] = (
    (TRANSPOSED, _conv_transpose),
    (SEPARABLE, _separable),
    (DEPTHWISE, _conv),
    (CONVOLUTIONS, _conv),
    (layers.Dense, _dense),
    (layers.EinsumDense, _einsum_dense),
    (layers.MultiHeadAttention, _multi_head_attention),
    ((layers.Attention, layers.AdditiveAttention), _attention),
    (layers.Dot, _dot),
    ((layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D), _conv_lstm),
    (layers.RNN, _recurrent),
    (layers.Bidirectional, _bidirectional),
    (layers.TimeDistributed, _time_distributed),
    (layers.Wrapper, _wrapper),
)
