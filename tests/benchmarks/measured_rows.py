"""Rows of figures in a JSON file, which a benchmark goes on with: what a row of the same settings says is not measured
again, and several processes may add to one file."""

import json


def read_rows(path):
    """The rows of a file as they are now; none where there is no file."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def rows_with(rows, settings):
    """Those that were measured with these settings, a dict of names to values."""
    return [row for row in rows if settings.items() <= row.items()]
