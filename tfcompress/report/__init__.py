"""Results for people: a table in the terminal, pictures, and a page in Markdown and HTML.

Invariant: everything shown is read from `metrics.json` in a run's folder, so a report can be made again at any time.
Left out: measuring.
"""

from tfcompress.report.page import write_report as write_report
from tfcompress.report.tables import print_table as print_table
