import base64
import html
import json
import re
import subprocess
import sys
import time

import pytest

from tfcompress.errors import DataError
from tfcompress.report import write_report

PICTURES = ("accuracy_against_bytes.png", "training_curves.png", "layer_sparsity.png")


def size(**fields):
    plain = {"kind": "Dense", "shape": (50, 10), "params": 510, "nonzero": 510, "distinct": 500, "macs": 500}
    return {**plain, **fields}


METRICS = {
    "recipe": "digits <b>",
    "rows": [
        {"stage": "teacher", "accuracy": 0.99, "num_params": 65802, "file_bytes": 263000, "gzip_bytes": 241000},
        {"stage": "01-<script>", "accuracy": 0.98, "num_params": 4266, "file_bytes": 20100, "gzip_bytes": 17100},
        {"stage": "export-int8", "accuracy": 0.98, "num_params": 4266, "file_bytes": 8124, "gzip_bytes": 4310},
    ],
    "export": {
        "int8": {
            "path": "export/model_int8.tflite",
            "file_bytes": 8124,
            "gzip_bytes": 4310,
            "audit": {"passed": True, "ops": {"CONV_2D": 4, "MEAN": 1}},
            "parity": {
                "passed": True,
                "samples": 1000,
                "agreements": [
                    {"delegate": "default", "equal": 0.98, "within_1": 1.0, "top1": 0.999, "snr_db": 41.2},
                    {"delegate": "none", "equal": 0.97, "within_1": 0.999, "top1": None, "snr_db": 40.0},
                ],
            },
        }
    },
    "histories": {"teacher": {"loss": [2.0, 1.0], "val_loss": [2.1, 1.2], "accuracy": [0.5, 0.9]}},
    "sparsity": {"01-<script>": {"conv": 0.8, "logits": 0.0}},
    "layers": {
        "teacher": {"conv": size(shape=(3, 3, 1, 8), params=80, nonzero=80, distinct=72, macs=4608), "logits": size()},
        "student": {"conv": size(shape=(3, 3, 1, 4), params=40, nonzero=40, distinct=36, macs=2304), "logits": size()},
        "01-<script>": {
            "conv": size(shape=(3, 3, 1, 2), params=20, nonzero=8, distinct=4, macs=1152),
            "logits": size(nonzero=508),
        },
    },
    "environment": {"tensorflow": "2.21.0", "cpu": "A | B"},
}


def write(folder, **changes):
    (folder / "metrics.json").write_text(json.dumps({**METRICS, **changes}))
    return folder


def test_writes_both_pages_and_the_pictures(tmp_path):
    assert write_report(write(tmp_path)) == tmp_path / "report.md"
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "report.md", "report.html", *PICTURES}
    for picture in PICTURES:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_markdown(tmp_path):
    text = write_report(write(tmp_path)).read_text()
    assert text.startswith("# Compression report: digits <b>\n")
    assert "export-int8 is 32.4 times smaller than teacher" in text
    assert "| teacher | 99.00% | 65,802 | - | - | 263,000 | 241,000 | - | - |" in text
    assert "- file: `export/model_int8.tflite` (8,124 B, 4,310 B gzip)\n- audit: passed (4 CONV_2D, 1 MEAN)" in text
    assert (
        "passed (1,000 samples, 97.00% outputs equal, 99.90% within 1 step, 99.90% same top class, 40 dB SNR)" in text
    )
    assert r"| cpu | A \| B |" in text
    assert re.findall(r"!\[.+\]\((.+)\)", text) == list(PICTURES)


def test_layers_that_a_stage_changed_and_not_what_a_student_is_beside_its_teacher(tmp_path):
    text = write_report(write(tmp_path)).read_text()
    assert "### 01-<script>\n" in text and "### student" not in text
    assert (
        "| layer | largest weight | params | not zero | values | MACs |\n| --- | --- | --- | --- | --- | --- |\n"
        "| conv | 3x3x1x4 → 3x3x1x2 | 40 → 20 | 40 → 8 | 36 → 4 | 2,304 → 1,152 | \n"
        "| all |  | 40 → 20 | 40 → 8 |  | 2,304 → 1,152 | \n"
    ) in text
    assert "Layer by layer" not in write_report(write(tmp_path, layers={})).read_text()


def test_html_is_one_file_in_which_names_are_no_markup(tmp_path):
    write_report(write(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page and "<script" not in page
    assert "01-&lt;script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(content) for content in embedded] == [(tmp_path / name).read_bytes() for name in PICTURES]
    for sentence in ("export-int8 is 32.4 times smaller than teacher", "40 dB SNR", "A | B"):
        assert sentence in html.unescape(page)


def test_a_run_that_trained_and_exported_nothing(tmp_path):
    text = write_report(
        write(tmp_path, export={}, histories={}, sparsity={}, layers={}, environment={}, recipe="")
    ).read_text()
    assert text.startswith("# Compression report\n")
    assert re.findall(r"!\[.+\]\((.+)\)", text) == ["accuracy_against_bytes.png"]
    assert "Exported files" not in text and "Measured with" not in text


def test_checks_that_failed_or_were_not_done(tmp_path):
    export = {"int8": {"path": "m.tflite", "audit": {"passed": False, "ops": {"ADD": 1}}, "parity": {}}}
    text = write_report(write(tmp_path, export=export)).read_text()
    assert "- audit: failed (1 ADD)\n- parity with the Keras model: not done" in text


def test_results_are_needed(tmp_path):
    with pytest.raises(DataError, match="No results at"):
        write_report(tmp_path)


def test_is_fast_and_needs_no_tensorflow(tmp_path):
    code = "import sys, tfcompress.report as r; r.write_report(sys.argv[1]); assert 'tensorflow' not in sys.modules"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(write(tmp_path))], check=True)
    assert time.perf_counter() - started < 20  # Alone it takes 2 seconds; the machine may be busy.
