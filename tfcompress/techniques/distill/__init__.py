"""Distillation: training a small network on what a large one says.

`Distiller` (`distiller.py`) trains; how far a student is from its teacher say `losses.py` and `decoupled.py` for class
logits, `dense_losses.py`, `multi_label.py` and `regression.py` for other outputs, and `weighting.py` where and how much
that counts; `keras_losses.py` takes Keras's own, `by_name.py` has the names for recipes; `teacher.py` says what can
teach, `cache.py` and `stored_outputs.py` keep what it said, and `stage.py` is the recipe's `distill`.
"""

from tfcompress.techniques.distill.by_name import LOSSES
from tfcompress.techniques.distill.cache import cache_teacher
from tfcompress.techniques.distill.decoupled import Decoupled
from tfcompress.techniques.distill.dense_losses import ChannelWiseTargets
from tfcompress.techniques.distill.distiller import Distiller
from tfcompress.techniques.distill.keras_losses import KerasDistillation
from tfcompress.techniques.distill.losses import (
    HardLabels,
    LabelSmoothing,
    LogitMatching,
    SoftCrossEntropy,
    SoftTargets,
)
from tfcompress.techniques.distill.multi_label import MultiLabelTargets
from tfcompress.techniques.distill.regression import OutputMatching, TeacherBounded
from tfcompress.techniques.distill.stage import Distill
from tfcompress.techniques.distill.stored_outputs import StoredOutputs
from tfcompress.techniques.distill.teacher import Teacher
from tfcompress.techniques.distill.weighting import PerClass, Standardized, WhereConfident, WhereCorrect, WhereLabelled

__all__ = [
    "LOSSES",
    "ChannelWiseTargets",
    "Decoupled",
    "Distill",
    "Distiller",
    "HardLabels",
    "KerasDistillation",
    "LabelSmoothing",
    "LogitMatching",
    "MultiLabelTargets",
    "OutputMatching",
    "PerClass",
    "SoftCrossEntropy",
    "SoftTargets",
    "Standardized",
    "StoredOutputs",
    "Teacher",
    "TeacherBounded",
    "WhereConfident",
    "WhereCorrect",
    "WhereLabelled",
    "cache_teacher",
]
