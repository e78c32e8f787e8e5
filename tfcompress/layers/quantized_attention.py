"""Attention, opened into its matrix products, each with its result rounded.

Invariant: that of `rounding.py`. Left out: attention masks, gates and returned scores, which are refused where the
network is rewritten.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfcompress.layers.rounding import SIGMOID_RANGE, InnerRanges, RoundedKernel, keep_in_float32


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedMultiHeadAttention(InnerRanges, RoundedKernel, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` on sequences `(batch, steps, features)`; each kernel has one range."""

    base_class = keras.layers.MultiHeadAttention
    rounding_keys = (*RoundedKernel.rounding_keys, *InnerRanges.rounding_keys)
    per_channel = False
    # They are made by layers inside of this one; see `build`.
    kernel_names = ()

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        parts = (self._query_dense, self._key_dense, self._value_dense, self._output_dense)
        keep_in_float32(part.kernel for part in parts)
        for what in ("query", "key", "value", "score", "context"):
            setattr(self, f"{what}_range", self.inner_range(what))
        # The runtime's softmax has this one range.
        self.probability_range = self.inner_range("probability", SIGMOID_RANGE)

    def call(self, query, value, key=None, training=None, **kwargs):
        key = value if key is None else key
        queries = self._project("query", query, training)
        keys = self._project("key", key, training)
        values = self._project("value", value, training)
        scores = ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2)))
        scores = self.score_range(scores, training=training)
        scores = self.probability_range(ops.softmax(scores, axis=-1), training=training)
        if self._dropout > 0:
            scores = self._dropout_layer(scores, training=training)
        context = self.context_range(ops.matmul(scores, values), training=training)
        context = ops.transpose(context, (0, 2, 1, 3))
        steps = ops.shape(context)[1]
        heads, size = self._num_heads, self._value_dim
        dense = self._output_dense
        kernel = self.rounded_kernel(ops.reshape(dense.kernel, (heads * size, -1)))
        outputs = ops.matmul(ops.reshape(context, (-1, steps, heads * size)), kernel)
        return outputs if dense.bias is None else outputs + dense.bias

    def _project(self, what: str, inputs: Any, training: bool | None) -> Any:
        """Inputs `(batch, steps, features)` by one kernel to `(batch, heads, steps, size)`, rounded."""
        dense = getattr(self, f"_{what}_dense")
        features, heads, size = dense.kernel.shape
        # A factor of the whole kernel is a factor of its scale, which costs the file no operation.
        factor = self._inverse_sqrt_key_dim if what == "query" else 1.0
        kernel = ops.reshape(ops.convert_to_tensor(dense.kernel), (features, heads * size))
        outputs = ops.matmul(inputs, self.rounded_kernel(kernel * factor))
        if dense.bias is not None:
            outputs = outputs + ops.reshape(dense.bias, (heads * size,)) * factor
        outputs = getattr(self, f"{what}_range")(outputs, training=training)
        outputs = ops.reshape(outputs, (-1, ops.shape(inputs)[1], heads, size))
        return ops.transpose(outputs, (0, 2, 1, 3))
