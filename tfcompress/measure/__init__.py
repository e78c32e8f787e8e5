"""What a model or its file is worth: accuracy, size, latency, and where they were measured.

Invariant: Keras models and `.tflite` files are measured by the same functions on the same data; units are in the names.
Left out: multiply-adds (see `tfcompress.graph.macs`) and verdicts (see `tfcompress.export`).
"""

from tfcompress.measure.accuracy import Evaluation as Evaluation
from tfcompress.measure.accuracy import evaluate as evaluate
from tfcompress.measure.environment import describe_environment as describe_environment
from tfcompress.measure.latency import Latency as Latency
from tfcompress.measure.latency import measure_latency as measure_latency
from tfcompress.measure.metrics import Metrics as Metrics
from tfcompress.measure.size import FileSize as FileSize
from tfcompress.measure.size import file_size as file_size
from tfcompress.measure.size import layer_sparsity as layer_sparsity
from tfcompress.measure.size import num_nonzero as num_nonzero
from tfcompress.measure.size import num_params as num_params
from tfcompress.measure.tflite_runner import TFLiteRunner as TFLiteRunner
