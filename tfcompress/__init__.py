"""tfcompress: any Keras model to a smaller, faster one that runs on a phone or a microcontroller.

A technique takes a Keras model and returns a new, plain one; an exporter writes files that are proven to run; a recipe
is a list of techniques and an export. Invariant: importing this package imports no TensorFlow; the names below load
their modules when they are first used. Left out: everything else, which is in the modules that `_HOMES` names.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from tfcompress.errors import (
    DataError,
    ExportError,
    InvalidArgumentError,
    ModelError,
    RecipeError,
    TFCompressError,
    TrainingError,
)

if TYPE_CHECKING:
    from tfcompress.bridge.from_tf_keras import from_tf_keras
    from tfcompress.bridge.load import load
    from tfcompress.bridge.to_tf_keras import to_tf_keras
    from tfcompress.data import Augmentation, Dataset, from_arrays, from_folder, load_dataset
    from tfcompress.export import ExportResult, audit_tflite, export_tflite, size_ledger, slim_tflite, write_bundle
    from tfcompress.export.drift import layer_drift
    from tfcompress.export.sensitivity import sensitivity
    from tfcompress.graph.macs import count_macs
    from tfcompress.graph.simplify import simplify, simplify_with_certificate
    from tfcompress.measure.accuracy import evaluate
    from tfcompress.measure.latency import measure_latency
    from tfcompress.measure.tflite_runner import TFLiteRunner
    from tfcompress.models import build as build_model
    from tfcompress.pipeline import compress, run
    from tfcompress.pipeline.file_figures import prune_channels
    from tfcompress.recipe import Recipe, load_recipe, parse_recipe
    from tfcompress.report import print_table, write_report
    from tfcompress.report.inspection import inspect
    from tfcompress.techniques.channels import ChannelSparsity, reestimate_batch_norm, remove_blocks
    from tfcompress.techniques.cluster import WeightClustering, cluster, cluster_table
    from tfcompress.techniques.distill import (
        AttentionMaps,
        AttentionTransfer,
        AveragedTeacher,
        ByCertainty,
        ChannelWiseTargets,
        CollapseWarning,
        Contrastive,
        CutMix,
        Decoupled,
        Distiller,
        Ensemble,
        Features,
        HardLabels,
        Hints,
        KerasDistillation,
        LabelSmoothing,
        LogitMatching,
        Mixup,
        MultiLabelTargets,
        MutualLearning,
        OutputMatching,
        PerClass,
        ProbabilisticTransfer,
        RelationalAngle,
        RelationalDistance,
        Scheduled,
        SimilarityPreserving,
        SoftCrossEntropy,
        SoftTargets,
        SolutionFlow,
        Standardized,
        StoredOutputs,
        Teacher,
        TeacherBounded,
        VariationalInformation,
        WhereAgreeing,
        WhereConfident,
        WhereCorrect,
        WhereLabelled,
        cache_teacher,
        synthesize,
    )
    from tfcompress.techniques.factorize import factorization_plan, factorize
    from tfcompress.techniques.masks import HoldMasks
    from tfcompress.techniques.prune import (
        HardConcretePruning,
        MagnitudePruning,
        SensitivityBudget,
        SparsityPenalty,
        WeightPruning,
        prune_weights,
    )
    from tfcompress.techniques.quantize import (
        FreezeRanges,
        equalize,
        quantize_aware,
        quantize_post_training,
        round_biases,
    )
    from tfcompress.techniques.shared_values import HoldClusters
    from tfcompress.techniques.tfmot.cluster import tfmot_cluster
    from tfcompress.techniques.tfmot.prune import tfmot_prune
    from tfcompress.techniques.tfmot.quantize import tfmot_quantize
    from tfcompress.train_settings import TrainSettings
    from tfcompress.training.fit import fit

__version__ = "0.1.0"

# Where each lazy name lives: "module", or "module:name" where it is called otherwise there.
_HOMES = {
    "AttentionMaps": "tfcompress.techniques.distill",
    "AttentionTransfer": "tfcompress.techniques.distill",
    "Augmentation": "tfcompress.data",
    "AveragedTeacher": "tfcompress.techniques.distill",
    "ByCertainty": "tfcompress.techniques.distill",
    "ChannelSparsity": "tfcompress.techniques.channels",
    "ChannelWiseTargets": "tfcompress.techniques.distill",
    "CollapseWarning": "tfcompress.techniques.distill",
    "Contrastive": "tfcompress.techniques.distill",
    "CutMix": "tfcompress.techniques.distill",
    "Dataset": "tfcompress.data",
    "Decoupled": "tfcompress.techniques.distill",
    "Distiller": "tfcompress.techniques.distill",
    "Ensemble": "tfcompress.techniques.distill",
    "ExportResult": "tfcompress.export",
    "Features": "tfcompress.techniques.distill",
    "FreezeRanges": "tfcompress.techniques.quantize",
    "HardConcretePruning": "tfcompress.techniques.prune",
    "HardLabels": "tfcompress.techniques.distill",
    "Hints": "tfcompress.techniques.distill",
    "HoldClusters": "tfcompress.techniques.shared_values",
    "HoldMasks": "tfcompress.techniques.masks",
    "KerasDistillation": "tfcompress.techniques.distill",
    "LabelSmoothing": "tfcompress.techniques.distill",
    "LogitMatching": "tfcompress.techniques.distill",
    "MagnitudePruning": "tfcompress.techniques.prune",
    "Mixup": "tfcompress.techniques.distill",
    "MultiLabelTargets": "tfcompress.techniques.distill",
    "MutualLearning": "tfcompress.techniques.distill",
    "OutputMatching": "tfcompress.techniques.distill",
    "PerClass": "tfcompress.techniques.distill",
    "ProbabilisticTransfer": "tfcompress.techniques.distill",
    "Recipe": "tfcompress.recipe",
    "RelationalAngle": "tfcompress.techniques.distill",
    "RelationalDistance": "tfcompress.techniques.distill",
    "Scheduled": "tfcompress.techniques.distill",
    "SensitivityBudget": "tfcompress.techniques.prune",
    "SimilarityPreserving": "tfcompress.techniques.distill",
    "SoftCrossEntropy": "tfcompress.techniques.distill",
    "SoftTargets": "tfcompress.techniques.distill",
    "SolutionFlow": "tfcompress.techniques.distill",
    "SparsityPenalty": "tfcompress.techniques.prune",
    "Standardized": "tfcompress.techniques.distill",
    "StoredOutputs": "tfcompress.techniques.distill",
    "TFLiteRunner": "tfcompress.measure.tflite_runner",
    "Teacher": "tfcompress.techniques.distill",
    "TeacherBounded": "tfcompress.techniques.distill",
    "TrainSettings": "tfcompress.train_settings",
    "VariationalInformation": "tfcompress.techniques.distill",
    "WeightClustering": "tfcompress.techniques.cluster",
    "WeightPruning": "tfcompress.techniques.prune",
    "WhereAgreeing": "tfcompress.techniques.distill",
    "WhereConfident": "tfcompress.techniques.distill",
    "WhereCorrect": "tfcompress.techniques.distill",
    "WhereLabelled": "tfcompress.techniques.distill",
    "audit_tflite": "tfcompress.export",
    "build_model": "tfcompress.models:build",
    "cache_teacher": "tfcompress.techniques.distill",
    "cluster": "tfcompress.techniques.cluster",
    "cluster_table": "tfcompress.techniques.cluster",
    "compress": "tfcompress.pipeline",
    "count_macs": "tfcompress.graph.macs",
    "equalize": "tfcompress.techniques.quantize",
    "evaluate": "tfcompress.measure.accuracy",
    "export_tflite": "tfcompress.export",
    "factorization_plan": "tfcompress.techniques.factorize",
    "factorize": "tfcompress.techniques.factorize",
    "fit": "tfcompress.training.fit",
    "from_arrays": "tfcompress.data",
    "from_folder": "tfcompress.data",
    "from_tf_keras": "tfcompress.bridge.from_tf_keras",
    "inspect": "tfcompress.report.inspection",
    "layer_drift": "tfcompress.export.drift",
    "load": "tfcompress.bridge.load",
    "load_dataset": "tfcompress.data",
    "load_recipe": "tfcompress.recipe",
    "measure_latency": "tfcompress.measure.latency",
    "parse_recipe": "tfcompress.recipe",
    "print_table": "tfcompress.report",
    "prune_channels": "tfcompress.pipeline.file_figures",
    "prune_weights": "tfcompress.techniques.prune",
    "quantize_aware": "tfcompress.techniques.quantize",
    "quantize_post_training": "tfcompress.techniques.quantize",
    "reestimate_batch_norm": "tfcompress.techniques.channels",
    "remove_blocks": "tfcompress.techniques.channels",
    "round_biases": "tfcompress.techniques.quantize",
    "run": "tfcompress.pipeline",
    "sensitivity": "tfcompress.export.sensitivity",
    "simplify": "tfcompress.graph.simplify",
    "simplify_with_certificate": "tfcompress.graph.simplify",
    "size_ledger": "tfcompress.export",
    "slim_tflite": "tfcompress.export",
    "synthesize": "tfcompress.techniques.distill",
    "tfmot_cluster": "tfcompress.techniques.tfmot.cluster",
    "tfmot_prune": "tfcompress.techniques.tfmot.prune",
    "tfmot_quantize": "tfcompress.techniques.tfmot.quantize",
    "to_tf_keras": "tfcompress.bridge.to_tf_keras",
    "write_bundle": "tfcompress.export",
    "write_report": "tfcompress.report",
}
_WITHOUT_KERAS = ("tfcompress.recipe", "tfcompress.train_settings")

__all__ = [
    "AttentionMaps",
    "AttentionTransfer",
    "Augmentation",
    "AveragedTeacher",
    "ByCertainty",
    "ChannelSparsity",
    "ChannelWiseTargets",
    "CollapseWarning",
    "Contrastive",
    "CutMix",
    "DataError",
    "Dataset",
    "Decoupled",
    "Distiller",
    "Ensemble",
    "ExportError",
    "ExportResult",
    "Features",
    "FreezeRanges",
    "HardConcretePruning",
    "HardLabels",
    "Hints",
    "HoldClusters",
    "HoldMasks",
    "InvalidArgumentError",
    "KerasDistillation",
    "LabelSmoothing",
    "LogitMatching",
    "MagnitudePruning",
    "Mixup",
    "ModelError",
    "MultiLabelTargets",
    "MutualLearning",
    "OutputMatching",
    "PerClass",
    "ProbabilisticTransfer",
    "Recipe",
    "RecipeError",
    "RelationalAngle",
    "RelationalDistance",
    "Scheduled",
    "SensitivityBudget",
    "SimilarityPreserving",
    "SoftCrossEntropy",
    "SoftTargets",
    "SolutionFlow",
    "SparsityPenalty",
    "Standardized",
    "StoredOutputs",
    "TFCompressError",
    "TFLiteRunner",
    "Teacher",
    "TeacherBounded",
    "TrainSettings",
    "TrainingError",
    "VariationalInformation",
    "WeightClustering",
    "WeightPruning",
    "WhereAgreeing",
    "WhereConfident",
    "WhereCorrect",
    "WhereLabelled",
    "audit_tflite",
    "build_model",
    "cache_teacher",
    "cluster",
    "cluster_table",
    "compress",
    "count_macs",
    "equalize",
    "evaluate",
    "export_tflite",
    "factorization_plan",
    "factorize",
    "fit",
    "from_arrays",
    "from_folder",
    "from_tf_keras",
    "inspect",
    "layer_drift",
    "load",
    "load_dataset",
    "load_recipe",
    "measure_latency",
    "parse_recipe",
    "print_table",
    "prune_channels",
    "prune_weights",
    "quantize_aware",
    "quantize_post_training",
    "reestimate_batch_norm",
    "remove_blocks",
    "round_biases",
    "run",
    "sensitivity",
    "simplify",
    "simplify_with_certificate",
    "size_ledger",
    "slim_tflite",
    "synthesize",
    "tfmot_cluster",
    "tfmot_prune",
    "tfmot_quantize",
    "to_tf_keras",
    "write_bundle",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfcompress' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    if module not in _WITHOUT_KERAS:
        _require_tensorflow_backend()
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _require_tensorflow_backend() -> None:
    """Raises a `TFCompressError` if Keras computes, or is told to compute, with anything but TensorFlow."""
    # Looked at first, since importing Keras for a backend that isn't installed fails with an error of its own.
    backend = os.environ.get("KERAS_BACKEND", "tensorflow") if "keras" not in sys.modules else None
    if backend in (None, "", "tensorflow"):
        import keras

        backend = keras.backend.backend()
    if backend != "tensorflow":
        raise TFCompressError(
            "tfcompress needs Keras with the TensorFlow backend. Set the environment variable KERAS_BACKEND to "
            f"tensorflow (or unset it) before Keras is imported. Received backend: {backend!r}."
        )
