import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tfcompress

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def seconds(command: list[str], repeats: int) -> float:
    """The median of the wall time of a command."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@pytest.mark.parametrize(
    "code", ["import tfcompress", "import tfcompress.cli", "import tfcompress.recipe; import tfcompress as t; t.Recipe"]
)
def test_importing_loads_no_tensorflow(code):
    heavy = "{'tensorflow', 'keras', 'numpy', 'matplotlib'}"
    done = run_python(f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_import_is_fast():
    code = "import time; s = time.perf_counter(); import tfcompress; print(time.perf_counter() - s)"
    assert statistics.median(float(run_python(code).stdout) for _ in range(5)) < 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_is_fast(arguments):
    assert seconds([sys.executable, "-m", "tfcompress", *arguments], 5) < 1.0


def test_every_public_name_loads():
    assert set(tfcompress._HOMES) < set(tfcompress.__all__) <= set(dir(tfcompress))
    assert list(tfcompress.__all__) == sorted(tfcompress.__all__)
    for name in tfcompress.__all__:
        assert getattr(tfcompress, name).__name__ in (name, "build")


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'tfcompress' has no attribute 'prun'"):
        _ = tfcompress.prun


def test_another_backend_is_a_clear_error():
    code = "import tfcompress\ntry:\n  tfcompress.build_model\nexcept tfcompress.TFCompressError as e:\n  print(e)"
    done = run_python(code, KERAS_BACKEND="jax")
    assert "KERAS_BACKEND" in done.stdout
    assert "Received backend: 'jax'" in done.stdout


def test_package_data_is_declared():
    declared = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert '"tfcompress.data": ["*.npz", "*.md"]' in declared
    data = {
        path.suffix for path in (ROOT / "tfcompress").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert data <= {".py", ".typed", ".npz", ".md", ".html", ".j2"}


def test_version_is_in_the_changelog():
    assert re.search(rf"^## {re.escape(tfcompress.__version__)} ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "pip install -e . && tfcompress run configs/digits.yaml" in readme
    assert 'pip install -e ".[test]" && pytest' in readme
