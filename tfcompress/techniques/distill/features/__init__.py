"""Distillation of features: what layers within the networks give, and not only the last.

`Features` (`pairs.py`) names a layer of the teacher, one of the student, and a loss between them. `taps.py` hears the
layers in the forward passes of a training, `comparison.py` all that a training compares, and `projectors.py` gives the
student's features the teacher's shape. Each loss has a file of its own, and `FeatureLoss` as its base.
"""

from tfcompress.techniques.distill.features.attention_maps import AttentionMaps
from tfcompress.techniques.distill.features.attention_transfer import AttentionTransfer
from tfcompress.techniques.distill.features.contrastive import Contrastive
from tfcompress.techniques.distill.features.hints import Hints
from tfcompress.techniques.distill.features.pairs import Features
from tfcompress.techniques.distill.features.probabilistic import ProbabilisticTransfer
from tfcompress.techniques.distill.features.relational import RelationalAngle, RelationalDistance
from tfcompress.techniques.distill.features.similarity_preserving import SimilarityPreserving
from tfcompress.techniques.distill.features.solution_flow import SolutionFlow
from tfcompress.techniques.distill.features.variational import VariationalInformation

__all__ = [
    "AttentionMaps",
    "AttentionTransfer",
    "Contrastive",
    "Features",
    "Hints",
    "ProbabilisticTransfer",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
    "SolutionFlow",
    "VariationalInformation",
]
