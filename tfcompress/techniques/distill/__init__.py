"""Distillation: training a small network on what a large one says.

- `distiller.py` trains, on what `objective.py` sums up: the student's own loss (`student_outputs.py`), and what it is
  taught. `mixing.py` mixes pictures, `collapse.py` watches the plain loss, `training_state.py` keeps it all in a file.
- Losses of outputs: `losses.py` and `decoupled.py` for class logits, `dense_losses.py`, `multi_label.py` and
  `regression.py` for others; where, when and how much they count: `weighting.py`, `adaptive.py`, `scheduled.py`,
  `learned_weights.py`. Losses of features are in `features/`, Keras's own in `keras_losses.py`, the names that recipes
  have for them in `by_name.py`; `fitting.py` knows which of them can compare which outputs.
- Teachers: `teacher.py` gives the logits of whatever can teach (`teacher_source.py`, `saved_model.py`) on its own
  inputs (`teacher_inputs.py`), `several_teachers.py` those of several, `several_outputs.py` those of each output;
  `cache.py` and `stored_outputs.py` keep what was said. Without a larger network: `averaged_teacher.py`,
  `mutual_learning.py`, `data_free.py`.
- `stage.py` is the recipe's `distill`.
"""

from tfcompress.techniques.distill.adaptive import ByCertainty, WhereAgreeing
from tfcompress.techniques.distill.averaged_teacher import AveragedTeacher
from tfcompress.techniques.distill.by_name import LOSSES
from tfcompress.techniques.distill.cache import cache_teacher
from tfcompress.techniques.distill.collapse import CollapseWarning
from tfcompress.techniques.distill.data_free import synthesize
from tfcompress.techniques.distill.decoupled import Decoupled
from tfcompress.techniques.distill.dense_losses import ChannelWiseTargets
from tfcompress.techniques.distill.distiller import Distiller
from tfcompress.techniques.distill.features import (
    AttentionMaps,
    AttentionTransfer,
    Contrastive,
    Features,
    Hints,
    ProbabilisticTransfer,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    SolutionFlow,
    VariationalInformation,
)
from tfcompress.techniques.distill.keras_losses import KerasDistillation
from tfcompress.techniques.distill.losses import (
    HardLabels,
    LabelSmoothing,
    LogitMatching,
    SoftCrossEntropy,
    SoftTargets,
)
from tfcompress.techniques.distill.mixing import CutMix, Mixup
from tfcompress.techniques.distill.multi_label import MultiLabelTargets
from tfcompress.techniques.distill.mutual_learning import MutualLearning
from tfcompress.techniques.distill.regression import OutputMatching, TeacherBounded
from tfcompress.techniques.distill.scheduled import Scheduled
from tfcompress.techniques.distill.several_teachers import Ensemble, as_teacher
from tfcompress.techniques.distill.stage import Distill
from tfcompress.techniques.distill.stored_outputs import StoredOutputs
from tfcompress.techniques.distill.teacher import Teacher
from tfcompress.techniques.distill.weighting import PerClass, Standardized, WhereConfident, WhereCorrect, WhereLabelled

__all__ = [
    "LOSSES",
    "AttentionMaps",
    "AttentionTransfer",
    "AveragedTeacher",
    "ByCertainty",
    "ChannelWiseTargets",
    "CollapseWarning",
    "Contrastive",
    "CutMix",
    "Decoupled",
    "Distill",
    "Distiller",
    "Ensemble",
    "Features",
    "HardLabels",
    "Hints",
    "KerasDistillation",
    "LabelSmoothing",
    "LogitMatching",
    "Mixup",
    "MultiLabelTargets",
    "MutualLearning",
    "OutputMatching",
    "PerClass",
    "ProbabilisticTransfer",
    "RelationalAngle",
    "RelationalDistance",
    "Scheduled",
    "SimilarityPreserving",
    "SoftCrossEntropy",
    "SoftTargets",
    "SolutionFlow",
    "Standardized",
    "StoredOutputs",
    "Teacher",
    "TeacherBounded",
    "VariationalInformation",
    "WhereAgreeing",
    "WhereConfident",
    "WhereCorrect",
    "WhereLabelled",
    "as_teacher",
    "cache_teacher",
    "synthesize",
]
