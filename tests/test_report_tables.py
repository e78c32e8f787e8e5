import json

import pytest

from tfcompress.errors import DataError
from tfcompress.report import print_table
from tfcompress.report.tables import cells, markdown_table, summary

TEACHER = {
    "stage": "teacher",
    "accuracy": 0.98889,
    "num_params": 431080,
    "num_nonzero": 431000,
    "macs": 2_293_000,
    "file_bytes": 1_724_000,
    "gzip_bytes": 1_600_000,
    "latency_ms_median": 0.1234,
    "latency_ms_p90": 0.2,
    "seconds": 31.24,
}
EXPORT = {**TEACHER, "stage": "export-int8", "accuracy": 0.98333, "file_bytes": 17_240, "macs": 9_999}


def write(folder, content):
    (folder / "metrics.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_cells():
    expected = "teacher 98.89% 431,080 431,000 2.29M 1,724,000 1,600,000 0.123 31.2"
    assert cells(TEACHER) == expected.split()
    assert cells({"stage": "teacher", "accuracy": None}) == ["teacher"] + ["-"] * 8


@pytest.mark.parametrize(
    "macs, expected",
    [
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10k"),
        (78_640, "78.6k"),
        (999_400, "999k"),
        (999_999, "1,000k"),
        (1_000_000, "1M"),
        (12_501_632, "12.5M"),
        (4_100_000_000, "4.1G"),
    ],
)
def test_macs_are_short(macs, expected):
    assert cells({"stage": "", "macs": macs})[4] == expected


def test_markdown_has_the_same_cells():
    lines = markdown_table([TEACHER, {"stage": "a|b"}]).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == cells(TEACHER)
    assert lines[3].startswith(r"| a\|b | - |")
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_summary():
    assert summary([TEACHER, EXPORT]) == (
        "export-int8 is 100.0 times smaller than teacher (17,240 B instead of 1,724,000 B); "
        "its accuracy is 98.33% (-0.56 points)."
    )
    assert "100.0 times larger than export-int8" in summary([EXPORT, TEACHER])
    assert summary([TEACHER]) == summary([TEACHER, {"stage": "x"}]) == ""


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_printed_table_is_never_cut_off(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    exports = {"int8": {"path": "export/model_int8.tflite"}}
    print_table(write(tmp_path, {"recipe": "[red]digits", "rows": [TEACHER, EXPORT], "export": exports}))
    printed = capsys.readouterr().out
    assert "…" not in printed
    for cell in cells(TEACHER) + cells(EXPORT):
        assert cell in printed
    assert summary([TEACHER, EXPORT]) in printed
    assert str(tmp_path / "export" / "model_int8.tflite") in printed


def test_a_usual_table_fits_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [{**TEACHER, "num_params": 65_802, "num_nonzero": 65_802, "file_bytes": 263_000, "gzip_bytes": 241_000}]
    print_table(write(tmp_path, {"rows": [*rows, {**rows[0], "stage": "03-quantize"}]}))
    table, *_ = capsys.readouterr().out.split("03-quantize is ")
    assert "03-quantize" in table
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80


def test_missing_and_broken_results(tmp_path):
    with pytest.raises(
        DataError, match="No results at .*metrics.json': No such file.*the folder that `tfcompress run`"
    ):
        print_table(tmp_path)
    with pytest.raises(DataError, match="is no JSON"):
        print_table(write(tmp_path, "{"))
    for content in ([], {}, {"rows": []}, {"rows": [{"accuracy": 1}]}):
        with pytest.raises(DataError, match="must hold 'rows', each with a 'stage'"):
            print_table(write(tmp_path, content))
