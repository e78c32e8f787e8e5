"""Results for people: a table in the terminal, pictures, and a page in Markdown and HTML.

Invariant: everything shown of a run is read from `metrics.json` in its folder, so a report can be made again at any
time. Left out: measuring.
"""

from tfcompress.report.layer_table import write_sensitivity as write_sensitivity
from tfcompress.report.page import write_report as write_report
from tfcompress.report.tables import print_table as print_table
