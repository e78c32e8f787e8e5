"""The layers that `keras.applications` defines for itself, and Keras does not export.

Invariant: the only place that takes them from within Keras, so that a move of theirs is mended here. Left out: those of
tf_keras, and how files name them (`bridge/application_layers.py`).
"""

from __future__ import annotations

from keras.src.applications.convnext import LayerScale as LayerScale
from keras.src.applications.convnext import StochasticDepth as StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer as CustomScaleLayer
