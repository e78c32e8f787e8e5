import os
import signal
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.errors import ExportError
from tfcompress.export.converter import ConverterProcess, meaningful_lines, shared_converter
from tfcompress.export.endpoint import SIGNATURE, Endpoint

FAKE_WORKER = """
import json, os, signal, sys, time
print(json.dumps({{"ready": True}}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    {body}
    print(json.dumps({{"ok": True}}), flush=True)
"""


def fake(body, **options):
    """A converter whose worker does `body` with each job."""
    return ConverterProcess([sys.executable, "-c", FAKE_WORKER.format(body=body)], **options)


def ask(converter, **options):
    return converter.convert("saved_model", signature="serve", mode="int8", **options)


def alive(pid):
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    """Folders of a small dense model and of one whose int8 conversion crashes the converter."""
    folder = tmp_path_factory.mktemp("saved")
    dense = keras.Sequential([keras.Input((6,), name="x"), layers.Dense(3)])
    recurrent = keras.Sequential([keras.Input((6, 3), name="x"), layers.LSTM(4), layers.Dense(3)])
    for name, model in (("dense", dense), ("recurrent", recurrent)):
        Endpoint(model).write_saved_model(folder / name)
        shape = (8, *model.input_shape[1:])
        np.savez(folder / f"{name}.npz", **{"input:x": np.random.default_rng(0).normal(size=shape).astype("float32")})
    return folder


def convert(folder, name, mode="int8", **options):
    calibration = folder / f"{name}.npz"
    return shared_converter().convert(folder / name, signature=SIGNATURE, mode=mode, calibration=calibration, **options)


def test_one_worker_serves_many_conversions_without_a_word(saved_models, capfd):
    convert(saved_models, "dense")
    pid = shared_converter().pid
    for mode in ("int8", "float32"):
        assert convert(saved_models, "dense", mode)[4:8] == b"TFL3"
    assert shared_converter().pid == pid
    assert capfd.readouterr() == ("", "")


def test_a_real_crash_is_an_error_and_the_next_conversion_works(saved_models):
    before = convert(saved_models, "dense")
    with pytest.raises(ExportError, match="crashed .SIGSEGV.") as caught:
        convert(saved_models, "recurrent")
    assert "Segmentation fault" in str(caught.value) and "unroll=True" in caught.value.causes[-1]
    assert convert(saved_models, "dense") == before


def test_a_killed_idle_worker_is_replaced(saved_models):
    convert(saved_models, "dense")
    pid = shared_converter().pid
    os.kill(pid, signal.SIGKILL)
    while shared_converter().pid is not None:
        time.sleep(0.01)
    assert convert(saved_models, "dense")[4:8] == b"TFL3"
    assert shared_converter().pid != pid


def test_a_kill_while_converting_is_an_error():
    with pytest.raises(ExportError, match="crashed .SIGKILL.") as caught:
        ask(fake("os.kill(os.getpid(), signal.SIGKILL)"))
    assert "lack of memory" in caught.value.causes[-1]


def test_an_error_of_the_converter_is_the_cause(tmp_path):
    with pytest.raises(ExportError, match="refused the model") as caught:
        shared_converter().convert(tmp_path / "nothing", signature="serve", mode="float32")
    assert "nothing" in caught.value.causes[-1]


def test_a_crash_reports_the_last_meaningful_lines():
    body = "print('W0000 noise', file=sys.stderr); print('the cause', file=sys.stderr); os.kill(os.getpid(), 11)"
    with pytest.raises(ExportError, match="crashed .SIGSEGV.") as caught:
        ask(fake(body))
    assert caught.value.causes[0] == "the cause"


def test_a_hang_ends_after_the_timeout_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    converter = fake("time.sleep(60)")
    converter.start()
    pid = converter.pid
    with pytest.raises(ExportError, match="did not convert the model within 1 s"):
        ask(converter, timeout=1.0)
    assert not alive(pid) and converter.pid is None
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_start_says_why():
    converter = ConverterProcess([sys.executable, "-c", "raise SystemExit('no TensorFlow here')"])
    with pytest.raises(ExportError, match="exit code 1.*when it should start") as caught:
        ask(converter)
    assert "no TensorFlow here" in caught.value.causes


def test_causes_of_one_job_are_not_those_of_the_next():
    body = (
        "print(job['signature'] + ' trouble', file=sys.stderr, flush=True);"
        "os._exit(3 if job['signature'] == 'b' else 0)"
    )
    converter = fake(body)
    with pytest.raises(ExportError, match="a trouble"):
        converter.convert("x", signature="a", mode="int8")
    with pytest.raises(ExportError, match="b trouble") as caught:
        converter.convert("x", signature="b", mode="int8")
    assert "a trouble" not in str(caught.value)


def test_an_interrupted_conversion_ends_its_worker(monkeypatch):
    converter = fake("time.sleep(60)")
    converter.start()
    pid = converter.pid
    real_receive = converter._receive

    def receive(timeout, log_start, task):
        if task != "start":
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        return real_receive(timeout, log_start, task)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "_receive", receive)
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(converter)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert not alive(pid)


def test_the_worker_dies_with_its_parent():
    parent = (
        "import os, signal; from tfcompress.export.converter import ConverterProcess as C; c = C(); c.start();"
        "print(c.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    output = subprocess.run(
        [sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout
    pid = int(output)
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)


def test_meaningful_lines_keep_the_cause():
    text = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
W0000 00:00:1 context.cc:1] noise
Traceback (most recent call last):
  File "x.py", line 1, in f
    f()
    ~^^
error: 'tf.Roll' op is neither a custom op nor a flex op
<unknown>:0: note: loc(fused): called from

error: 'tf.Roll' op is neither a custom op nor a flex op
"""
    assert meaningful_lines(text) == ["error: 'tf.Roll' op is neither a custom op nor a flex op"]
    assert len(meaningful_lines("\n".join(map(str, range(100))))) == 6
