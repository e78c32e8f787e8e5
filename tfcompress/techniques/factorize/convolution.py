"""Convolutions larger than 1 x 1 as two: a column and a row, or a depthwise convolution and a 1 x 1 one.

Both write the kernel as matrices, so that the truncated SVD of `svd.py` gives the best product of a rank. Invariant:
strides, dilation and padding of the two along each axis are those of the one, so that at full rank its borders are
right, too. Left out: factorizations with three layers (`tucker.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from tfcompress.techniques.factorize.factorization import Shape, count, join_groups
from tfcompress.techniques.factorize.svd import MatrixFactorization


class SpatialFactorization(MatrixFactorization):
    """A convolution of height h and width w, from c to n channels, as h x 1 from c to r and 1 x w from r to n.

    Reference:
        Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014,
        https://arxiv.org/abs/1405.3866
    """

    method = "spatial"
    purpose = "2-D convolutions with kernels larger than 1 in both directions"

    @classmethod
    def fits(cls, layer: Any) -> bool:
        return type(layer) is layers.Conv2D and min(layer.kernel_size) > 1

    @functools.cached_property
    def sizes(self) -> Sequence[np.ndarray]:  # type: ignore[override]
        return [self.groups * length * self.ranks[:, 0] for length in self.matrix_shape()]

    def matrix_shape(self) -> tuple[int, int]:
        (height, width), (inputs, outputs) = self.kernel_size, self.channels()
        return height * inputs, width * outputs

    def matrices(self) -> np.ndarray:
        kernel = self.kernel().transpose(0, 1, 3, 2, 4)  # group, height, input, width, output
        return kernel.reshape(len(kernel), *self.matrix_shape())

    def factors(self, rank: Sequence[int]) -> tuple[list[np.ndarray], float]:
        (height, width), (inputs, outputs) = self.kernel_size, self.channels()
        column, row = self.split(rank[0])
        column = column.reshape(-1, height, 1, inputs, rank[0])
        row = row.reshape(-1, rank[0], width, outputs).transpose(0, 2, 1, 3)[:, None]
        return [join_groups(column), join_groups(row)], float(self.errors[rank[0] - 1])

    def positions(self, given: Shape, made: Shape) -> tuple[int | None, ...]:
        height, width = self.spatial(made)[0], self.spatial(given)[1]
        return count((height, width)), count(self.spatial(made))

    def layers(self, rank: Sequence[int], names: Sequence[str]) -> list[Any]:
        (height, width), layer = self.kernel_size, self.layer
        column = {
            "filters": self.groups * rank[0],
            "kernel_size": (height, 1),
            "strides": (layer.strides[0], 1),
            "dilation_rate": (layer.dilation_rate[0], 1),
        }
        row = {
            "kernel_size": (1, width),
            "strides": (1, layer.strides[1]),
            "dilation_rate": (1, layer.dilation_rate[1]),
        }
        return [self.inner(names[0], **column), self.last(**row)]


class SeparableFactorization(MatrixFactorization):
    """A convolution from c to n channels as a depthwise one, with m results for each channel, and a 1 x 1 one.

    The rank is the depth multiplier m.

    Reference:
        Guo et al., "Network Decoupling: From Regular to Depthwise Separable Convolutions", 2018,
        https://arxiv.org/abs/1808.05517
    """

    method = "separable"
    purpose = "2-D convolutions with kernels larger than 1 and equal strides"
    suffixes = ("depthwise",)

    @classmethod
    def fits(cls, layer: Any) -> bool:
        # TensorFlow has no depthwise convolution with other strides.
        return type(layer) is layers.Conv2D and max(layer.kernel_size) > 1 and len(set(layer.strides)) == 1

    @functools.cached_property
    def sizes(self) -> Sequence[np.ndarray]:  # type: ignore[override]
        all_inputs = self.groups * self.channels()[0]
        return [all_inputs * length * self.ranks[:, 0] for length in self.matrix_shape()]

    def matrix_shape(self) -> tuple[int, int]:
        return self.kernel_size[0] * self.kernel_size[1], self.channels()[1]

    def matrices(self) -> np.ndarray:
        kernel = self.kernel().transpose(0, 3, 1, 2, 4)  # group, input, height, width, output
        return kernel.reshape(-1, *self.matrix_shape())

    def factors(self, rank: Sequence[int]) -> tuple[list[np.ndarray], float]:
        inputs, outputs = self.channels()
        depthwise, pointwise = self.split(rank[0])
        depthwise = np.moveaxis(depthwise.reshape(-1, *self.kernel_size, rank[0]), 0, 2)
        pointwise = pointwise.reshape(self.groups, 1, 1, inputs * rank[0], outputs)
        return [depthwise, join_groups(pointwise)], float(self.errors[rank[0] - 1])

    def positions(self, given: Shape, made: Shape) -> tuple[int | None, ...]:
        used = count(self.spatial(made))
        return used, used

    def layers(self, rank: Sequence[int], names: Sequence[str]) -> list[Any]:
        config = self.layer.get_config()
        same = ("kernel_size", "strides", "padding", "data_format", "dilation_rate", "dtype", "trainable")
        depthwise = layers.DepthwiseConv2D(
            **{key: config[key] for key in same},
            name=names[0],
            depth_multiplier=rank[0],
            use_bias=False,
            depthwise_regularizer=self.layer.kernel_regularizer,
        )
        return [depthwise, self.last(kernel_size=(1, 1), strides=(1, 1), dilation_rate=(1, 1))]
