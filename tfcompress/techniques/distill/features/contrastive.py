"""`Contrastive`: the student's features of a sample are to be told from those of others by the teacher's.

Invariant: one value per sample, at least 0; shapes and scales of the features do not matter. Left out: the paper's
memory bank of features of the whole data set, and labels: other samples of the batch are the negatives, those of the
same class too, and each replica of a distributed training has its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.arguments import check_temperature
from tfcompress.techniques.distill.features.projectors import resized
from tfcompress.techniques.distill.features.tensors import features, unit_length
from tfcompress.techniques.distill.features.trained_along import TrainedAlong, channels_of, dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(TrainedAlong):
    """Contrastive representation distillation (CRD), by InfoNCE: `(H(e(s) · e(t) / T) + H(e(t) · e(s) / T)) / 2`.

    `e` are linear embeddings of unit length, one for each side, trained along; maps and sequences are averaged over
    their positions before, as before a classifier. `H` is the cross-entropy of finding the same sample in the batch:
    once for the student's embedding among the teacher's, once for the teacher's among the student's. The paper takes
    thousands of negatives from a memory bank and another bound; here the negatives are the other samples of the batch,
    so batches should not be small. It falls towards 0 as each sample is nearest to itself, and is 0 in a batch of one
    sample, which has no negatives.

    The loss is computed by the layer that `trained_along` makes; to call this itself is an error.

    Args:
        embedding: Length of the embeddings, at least 1. The default is the paper's.
        temperature: Softening of the choice among the samples, in (0, inf). The default is that of the authors' code.
        weight: Weight of this loss, at least 0. The default is the paper's.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> layer = Contrastive(embedding=16).trained_along((4, 4, 8), (2,))
        >>> layer(ops.ones((5, 4, 4, 8)), ops.ones((5, 2))).shape
        TensorShape([5])

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2020, https://arxiv.org/abs/1910.10699
    """

    compares_samples: ClassVar[bool] = True

    embedding: int = 128
    temperature: float = 0.07
    weight: float = 0.8

    def __post_init__(self):
        if isinstance(self.embedding, bool) or not isinstance(self.embedding, int) or self.embedding < 1:
            raise InvalidArgumentError("Contrastive.embedding", "an integer of at least 1", self.embedding)
        check_temperature("Contrastive", self.temperature)
        super().__post_init__()

    def trained_along(self, teacher_shape: tuple, student_shape: tuple) -> keras.Layer:
        """The layer `layer(teacher_features, student_features) -> (batch,)`, with its weights.

        Args:
            teacher_shape: Shape of the teacher's features without the batch, `(..., channels)`.
            student_shape: Shape of the student's.

        Raises:
            InvalidArgumentError: If the shapes are not as above.
        """
        teacher = channels_of("Contrastive.teacher_shape", teacher_shape)
        student = channels_of("Contrastive.student_shape", student_shape)
        return Agreement(teacher, student, self.embedding, self.temperature)


class Agreement(keras.Layer):
    """The loss with its two embeddings."""

    def __init__(self, teacher_channels: int, student_channels: int, embedding: int, temperature: float):
        super().__init__(dtype="float32")
        self.teacher_embedding = dense(teacher_channels, embedding)
        self.student_embedding = dense(student_channels, embedding)
        self.temperature = temperature

    def call(self, teacher_features: Any, student_features: Any) -> Any:
        teacher, student = features("Contrastive", teacher_features, student_features)
        teacher = unit_length(self.teacher_embedding(resized(teacher, ())))
        student = unit_length(self.student_embedding(resized(student, ())))
        logits = ops.matmul(student, ops.transpose(teacher)) / self.temperature
        same = ops.diagonal(logits)
        return 0.5 * (ops.logsumexp(logits, axis=1) + ops.logsumexp(logits, axis=0)) - same
