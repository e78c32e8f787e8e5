"""Export: Keras models to files that are proven to run and to agree with the model they came from.

Invariant: a function here that writes a file has audited it, run it and compared it before. Left out: how models are
made.
"""

from tfcompress.export.audit import Audit as Audit
from tfcompress.export.audit import Constant as Constant
from tfcompress.export.audit import audit_tflite as audit_tflite
from tfcompress.export.bundle import Bundle as Bundle
from tfcompress.export.bundle import write_bundle as write_bundle
from tfcompress.export.converter import ConverterProcess as ConverterProcess
from tfcompress.export.ledger import SizeLedger as SizeLedger
from tfcompress.export.ledger import size_ledger as size_ledger
from tfcompress.export.parity import Agreement as Agreement
from tfcompress.export.parity import Parity as Parity
from tfcompress.export.slim import slim_bytes as slim_bytes
from tfcompress.export.slim_file import SlimResult as SlimResult
from tfcompress.export.slim_file import slim_tflite as slim_tflite
from tfcompress.export.tflite import ExportResult as ExportResult
from tfcompress.export.tflite import export_tflite as export_tflite
