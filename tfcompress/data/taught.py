"""`TaughtInputs`: inputs of a batch, and what a teacher has said about them."""

from __future__ import annotations

from typing import Any, NamedTuple


class TaughtInputs(NamedTuple):
    """What a stream of batches has in the place of `x` where stored outputs of a teacher go along.

    Args:
        inputs: The inputs themselves.
        teacher_outputs: The teacher's outputs for them, as they were stored; first axis the batch.
    """

    inputs: Any
    teacher_outputs: Any
