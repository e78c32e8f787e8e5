"""Files that must not be loaded: each is a clear error, nothing in it runs, and it costs neither time nor memory."""

import base64
import io
import json
import marshal
import os
import pickle
import re
import shutil
import struct
import sys
import time
import types
import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tf_keras
from keras import layers

from tfcompress.bridge.guard_config import Consent, check_config, weight_budget
from tfcompress.bridge.load import load
from tfcompress.bridge.output_sizes import check_outputs
from tfcompress.bridge.read_model import LOADING_ERRORS
from tfcompress.errors import InvalidArgumentError, ModelError

SECONDS, MEGABYTES = 5.0, 300


def restart_peak() -> float:
    """Lets the highest use of memory be counted from now on, and gives it, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_megabytes()


def peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


ON_LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is counted by Linux")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Sound files of each kind, to make bad ones of."""
    folder = tmp_path_factory.mktemp("good")
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3, name="y")])
    functional = keras.Model(model.inputs, model.outputs)
    functional.save(folder / "k3.keras")
    functional.save(folder / "k3.h5")
    functional.save_weights(folder / "k3.weights.h5")
    functional.export(folder / "exported", verbose=False)
    inputs = tf_keras.Input((4,), name="x")
    legacy = tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="y")(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        legacy.save(folder / "tk.keras")
        legacy.save(folder / "tk.h5")
        legacy.save(folder / "tk", save_format="tf")
        legacy.save_weights(str(folder / "checkpoint"))
    # What the first load of either kind imports is no cost of a bad file.
    load(folder / "k3.keras")
    load(folder / "tk.keras")
    return folder


class Workshop:
    """Makes bad files; `canary` is what a payload would create."""

    def __init__(self, good: Path, folder: Path):
        self.good, self.folder, self.canary = good, folder, folder / "canary"

    def write(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def copy(self, name: str) -> Path:
        target = self.folder / name
        (shutil.copytree if (self.good / name).is_dir() else shutil.copyfile)(self.good / name, target)
        return target

    def cut(self, name: str, share: float) -> Path:
        content = (self.good / name).read_bytes()
        return self.write(name, content[: int(len(content) * share)])

    def flip(self, name: str, find: bytes) -> Path:
        """One byte is another one, after the place of `find`."""
        content = bytearray((self.good / name).read_bytes())
        content[content.index(find) + len(find)] ^= 0xFF
        return self.write(name, bytes(content))

    def archive(self, name: str, change=None, *, text: str | None = None, extra=(), drop=(), deflate=False) -> Path:
        """A `.keras` archive with another configuration, or other members."""
        path = self.folder / name
        with zipfile.ZipFile(self.good / name) as old, zipfile.ZipFile(path, "w") as new:
            for member in old.namelist():
                content = old.read(member)
                if member == "config.json":
                    config = json.loads(content)
                    content = (text if text is not None else json.dumps(change(config) if change else config)).encode()
                if member not in drop:
                    new.writestr(member, content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that come twice
                for member, content in extra:
                    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
                    new.writestr(member, content, compress_type=kind)
        return path

    def weights(self, make) -> Path:
        """A `.keras` archive with other weights."""
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            make(file)
        return self.archive("k3.keras", drop=["model.weights.h5"], extra=[("model.weights.h5", content.getvalue())])

    def h5(self, name: str, change) -> Path:
        path = self.copy(name)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    def h5_config(self, name: str, change) -> Path:
        def write(file):
            file.attrs["model_config"] = json.dumps(change(json.loads(file.attrs["model_config"])))

        return self.h5(name, write)

    def metadata(self, change) -> Path:
        """A SavedModel with another description of its layers."""
        path = self.copy("tk")
        text = json.dumps(change({"class_name": "Functional", "config": self.legacy_config()})).encode()
        node = b"\x1a\x04root" + b"\x2a" + varint(len(text)) + text
        (path / "keras_metadata.pb").write_bytes(b"\x0a" + varint(len(node)) + node)
        return path

    def legacy_config(self):
        with h5py.File(self.good / "tk.h5") as file:
            return json.loads(file.attrs["model_config"])["config"]

    def code(self) -> str:
        """A function as Keras stores it: marshalled, in base64."""
        source = f"def payload(x):\n    open({str(self.canary)!r}, 'w').close()\n    return x"
        code = next(c for c in compile(source, "payload", "exec").co_consts if isinstance(c, types.CodeType))
        return base64.b64encode(marshal.dumps(code)).decode()

    def pickled(self, protocol: int) -> bytes:
        return pickle.dumps(Payload(str(self.canary)), protocol)


class Payload:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def varint(number: int) -> bytes:
    head, rest = number & 0x7F, number >> 7
    return bytes([head]) if not rest else bytes([head | 0x80]) + varint(rest)


def with_layer(config: dict, /, **changes) -> dict:
    """The configuration with its last layer changed."""
    config["config"]["layers"][-1].update(changes)
    return config


def with_arguments(config: dict, /, **changes) -> dict:
    config["config"]["layers"][-1]["config"].update(changes)
    return config


def with_input(config: dict, /, **changes) -> dict:
    config["config"]["layers"][0]["config"].update(changes)
    return config


def nested(depth: int) -> str:
    return '{"class_name": "Functional", "config": ' + '{"a": ' * depth + "1" + "}" * depth + "}"


def lambda_3(w):
    value = {"class_name": "__lambda__", "config": {"code": w.code(), "defaults": None, "closure": None}}
    return lambda config: with_layer(config, class_name="Lambda", config={"name": "y", "function": value})


def lambda_2(w):
    arguments = {"name": "y", "function": [w.code(), None, None], "function_type": "lambda", "module": "__main__"}
    return lambda config: with_layer(config, class_name="Lambda", config=arguments)


def os_function(w):
    function = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    arguments = {"name": "y", "function": function, "arguments": {"command": f"touch {w.canary}"}}
    return lambda config: with_layer(config, class_name="Lambda", config=arguments)


def tf_function(name: str):
    return lambda config: with_layer(
        config, class_name="TFOpLambda", config={"name": "y", "function": name}, inbound_nodes=[["x", 0, 0, {}]]
    )


def external_data(w, file):
    secret = w.write("secret", b"secret" * 10)
    file.create_dataset("layers/y/vars/0", (4, 3), "f4", external=[(str(secret), 0, 48)])


def virtual_data(w, file):
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource(str(w.good / "k3.weights.h5"), "layers/y/vars/0", (4, 3))
    file.create_virtual_dataset("layers/y/vars/0", layout)


def loop(file):
    file.create_group("layers")["again"] = file["/"]


def deep(file):
    group = file
    for _ in range(100):
        group = group.create_group("layers")


def replace_weights(w, make):
    def change(file):
        del file["model_weights"]["y"]
        make(file)

    return w.h5("k3.h5", change)


def overlapping(w):
    """Two entries of the directory that point at the same bytes."""
    path = w.archive("k3.keras", extra=[("assets/big", os.urandom(3000)), ("assets/bag", b"")])
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    entries = content[start:].split(b"PK\x01\x02")[1:]
    big = next(entry for entry in entries if b"assets/big" in entry)
    for at, entry in enumerate(entries):
        if b"assets/bag" in entry:
            tail = entry[entry.index(b"assets/bag") + 10 :]
            entries[at] = big.split(b"assets/big")[0] + b"assets/bag" + tail
    content[start:] = b"".join(b"PK\x01\x02" + entry for entry in entries)
    return w.write("k3.keras", bytes(content))


def cut_variables(w):
    path = w.copy("tk")
    (path / "variables/variables.data-00000-of-00001").write_bytes(b"\0" * 8)
    return path


def flipped_index(w):
    path = w.copy("tk")
    index = path / "variables/variables.index"
    content = bytearray(index.read_bytes())
    content[20] ^= 0xFF
    index.write_bytes(bytes(content))
    return path


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 4


BAD = {
    # What is no model at all.
    "missing": (lambda w: w.folder / "gone.keras", "No model file at"),
    "url": (lambda w: "https://example.com/model.keras", "a path on this machine"),
    "empty name": (lambda w: "", "the path of a model file"),
    "empty file": (lambda w: w.write("model.keras", b""), "it is an empty file"),
    "text": (lambda w: w.write("model.keras", b"Not found\n"), "it is a text file"),
    "html": (lambda w: w.write("model.h5", b"<!DOCTYPE html><html>"), "it is a text file"),
    "noise": (lambda w: w.write("model.keras", bytes(range(128, 256)) * 9), "no known model file"),
    "json": (lambda w: w.write("model.json", b'{"class_name": "Model"}'), "a JSON file"),
    "empty folder": (lambda w: w.folder, "it is an empty folder"),
    "folder of text": (lambda w: w.write("a.txt", b"a").parent, "a folder without a model"),
    "exported": (lambda w: w.copy("exported"), "a SavedModel without layers"),
    "frozen graph": (lambda w: w.write("graph.pb", b"\x0a\x0b\x0a\x01\xff"), "a frozen graph"),
    "onnx": (lambda w: w.write("model.bin", b"\x08\x08\x12\x07pytorch\xff"), "an ONNX model"),
    "safetensors": (lambda w: w.write("model.h5", safetensors()), "a safetensors file"),
    "numpy": (lambda w: w.write("a.npy", b"\x93NUMPY\x01\x00v\x00{"), "a NumPy array"),
    "gzip": (lambda w: w.write("model.keras", b"\x1f\x8b\x08\0\0\0\0"), "a compressed file"),
    "tflite": (lambda w: w.write("model.keras", b"\x1c\0\0\0TFL3" + b"\0" * 99), "is a .tflite file"),
    "weights alone": (lambda w: w.copy("k3.weights.h5"), r"load\(path, into=model\)"),
    "pickle 2": (lambda w: w.write("model.pkl", w.pickled(2)), "a pickle file"),
    "pickle 4": (lambda w: w.write("model.keras", w.pickled(4)), "a pickle file"),
    "pickle 5": (lambda w: w.write("model.h5", w.pickled(5)), "a pickle file"),
    "pickle 0": (lambda w: w.write("model.keras", w.pickled(0)), "a pickle file"),
    "pytorch": (
        lambda w: w.archive("k3.keras", drop=["config.json"], extra=[("archive/data.pkl", w.pickled(2))]),
        "a PyTorch model",
    ),
    "npz": (
        lambda w: w.archive(
            "k3.keras",
            drop=["config.json", "metadata.json", "model.weights.h5"],
            extra=[("a.npy", w.pickled(2))],
        ),
        "NumPy arrays",
    ),
    "zip": (lambda w: w.archive("k3.keras", drop=["config.json"]), "without a Keras model"),
    "hdf5": (
        lambda w: w.h5("k3.weights.h5", lambda file: [file.__delitem__(key) for key in list(file)]),
        "an HDF5 file without a Keras model",
    ),
    # Damaged files.
    "archive of 20 %": (lambda w: w.cut("k3.keras", 0.2), "damaged zip archive"),
    "archive of 60 %": (lambda w: w.cut("k3.keras", 0.6), "damaged zip archive"),
    "archive of 99 %": (lambda w: w.cut("k3.keras", 0.99), "damaged zip archive"),
    "h5 of 1 %": (lambda w: w.cut("k3.h5", 0.01), "damaged HDF5 file"),
    "h5 of 50 %": (lambda w: w.cut("k3.h5", 0.5), "damaged HDF5 file"),
    "h5 of 95 %": (lambda w: w.cut("tk.h5", 0.95), "damaged HDF5 file"),
    "changed weights": (lambda w: w.flip("k3.keras", b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08"), "Bad CRC-32"),
    "changed metadata": (lambda w: w.flip("tk.keras", b'"keras_version": "'), "CRC-32"),
    "no weights": (lambda w: w.archive("k3.keras", drop=["model.weights.h5"]), "it has no model.weights.h5"),
    "weights of text": (
        lambda w: w.archive("k3.keras", drop=["model.weights.h5"], extra=[("model.weights.h5", b"text")]),
        "is damaged",
    ),
    "npz weights": (
        lambda w: w.archive("k3.keras", drop=["model.weights.h5"], extra=[("model.weights.npz", w.pickled(2))]),
        "it has no model.weights.h5",
    ),
    "other weights": (
        lambda w: w.weights(lambda file: file.create_dataset("layers/dense/vars/0", (9, 9), "f4")),
        "Keras cannot read",
    ),
    "config of noise": (lambda w: w.archive("k3.keras", text="{'a': 1}"), "no valid JSON"),
    "config of a list": (lambda w: w.archive("k3.keras", text="[]"), "must be a JSON object"),
    "config of nothing": (lambda w: w.archive("k3.keras", text="{}"), "Keras cannot read"),
    "variables cut": (cut_variables, "tf_keras cannot read"),
    "index of variables": (flipped_index, "is damaged"),
    "checkpoint alone": (lambda w: w.copy("checkpoint.index"), r"without its `.data-...` files"),
    "metadata of noise": (
        lambda w: [w.copy("tk"), w.write("tk/keras_metadata.pb", b"\xff" * 40)][0],
        "is damaged",
    ),
    "no variables": (lambda w: [w.copy("tk"), shutil.rmtree(w.folder / "tk" / "variables")][0], "is damaged"),
    # Archives that write elsewhere, or grow.
    "parent": (lambda w: w.archive("k3.keras", extra=[("assets/../../canary", b"!")]), "outside of its folder"),
    "root": (lambda w: w.archive("k3.keras", extra=[(f"{w.canary}", b"!")]), "outside of its folder"),
    "backslash": (lambda w: w.archive("k3.keras", extra=[("assets\\..\\..\\canary", b"!")]), "outside of its folder"),
    "twice": (lambda w: w.archive("k3.keras", extra=[("config.json", b"{}")]), "have the same name"),
    "bomb": (lambda w: w.archive("k3.keras", extra=[("assets/0", b"\0" * (64 << 20))], deflate=True), "would grow"),
    "bomb of weights": (
        lambda w: w.archive(
            "k3.keras", drop=["model.weights.h5"], extra=[("model.weights.h5", b"\0" * (64 << 20))], deflate=True
        ),
        "would grow",
    ),
    "many members": (
        lambda w: w.archive("k3.keras", extra=[(f"assets/{at}", b"") for at in range(10_001)]),
        "at most 10000 members",
    ),
    "overlap": (overlapping, "is damaged|claim more bytes|is not loaded"),
    # HDF5 files that read others, or grow.
    "external link": (
        lambda w: w.weights(lambda f: f.__setitem__("layers", h5py.ExternalLink(str(w.good / "k3.weights.h5"), "/"))),
        "is a link",
    ),
    "soft link": (lambda w: w.weights(lambda f: f.__setitem__("layers", h5py.SoftLink("/vars"))), "is a link"),
    "external link in h5": (
        lambda w: replace_weights(
            w,
            lambda f: f["model_weights"].__setitem__("y", h5py.ExternalLink(str(w.good / "k3.h5"), "/model_weights/y")),
        ),
        "is a link",
    ),
    "external data": (lambda w: w.weights(lambda f: external_data(w, f)), "is in other files"),
    "external data in h5": (lambda w: replace_weights(w, lambda f: external_data(w, f)), "is in other files"),
    "virtual data": (lambda w: w.weights(lambda f: virtual_data(w, f)), "is in other files"),
    "shape bomb": (
        lambda w: w.weights(lambda f: f.create_dataset("layers/y/vars/0", (1 << 20, 1 << 14), "f4", chunks=(64, 64))),
        "declares 68,719,476,736 bytes, and holds 0",
    ),
    "zeros": (
        lambda w: replace_weights(
            w, lambda f: f.create_dataset("a", data=np.zeros(1 << 23, "f4"), chunks=(1 << 20,), compression="gzip")
        ),
        "declares 33,554,432 bytes",
    ),
    "objects": (
        lambda w: w.weights(lambda f: f.create_dataset("layers/y/vars/0", (2,), h5py.string_dtype())),
        "weights are numbers",
    ),
    "loop": (lambda w: w.weights(loop), "part of itself"),
    "deep": (lambda w: w.weights(deep), "more than 64 deep"),
    # Configurations that carry code, or call it.
    "lambda in keras": (lambda w: w.archive("k3.keras", lambda_3(w)), "has a Lambda layer"),
    "lambda in h5": (lambda w: w.h5_config("k3.h5", lambda_2(w)), "has a Lambda layer"),
    "lambda in keras 2": (lambda w: w.archive("tk.keras", lambda_3(w)), "has a Lambda layer"),
    "lambda in keras 2 h5": (lambda w: w.h5_config("tk.h5", lambda_2(w)), "has a Lambda layer"),
    "lambda in saved model": (lambda w: w.metadata(lambda_2(w)), "has a Lambda layer"),
    "lambda in activation": (
        lambda w: w.archive("k3.keras", lambda c: with_arguments(c, activation={"class_name": "__lambda__"})),
        "has a Lambda layer",
    ),
    "lambda of os.system": (lambda w: w.archive("k3.keras", os_function(w)), "has a Lambda layer"),
    "os.system": (
        lambda w: w.archive("k3.keras", lambda c: with_layer(c, module="os", class_name="system")),
        "names 'os.system'",
    ),
    "os.system in keras 2": (
        lambda w: w.archive("tk.keras", lambda c: with_layer(c, module="os", class_name="system")),
        "names 'os.system'",
    ),
    "subprocess as a class": (
        lambda w: w.archive("tk.keras", lambda c: with_layer(c, module="subprocess", class_name="Popen")),
        "names 'subprocess.Popen'",
    ),
    "function of os": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_arguments(
                c, activation={"module": "os", "class_name": "function", "config": "system", "registered_name": "x"}
            ),
        ),
        "names 'os.system'",
    ),
    "builtin eval": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_arguments(c, activation={"module": "builtins", "class_name": "function", "config": "eval"}),
        ),
        "names 'builtins.eval'",
    ),
    "load_model as a function": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_arguments(
                c, activation={"module": "keras.models", "class_name": "function", "config": "load_model"}
            ),
        ),
        "names 'keras.models.load_model'",
    ),
    "unsafe by config": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_layer(c, module="keras.config", class_name="enable_unsafe_deserialization"),
        ),
        "names 'keras.config.enable_unsafe",
    ),
    "module of keras's modules": (
        lambda w: w.archive("tk.keras", lambda c: with_layer(c, module="keras.src.utils.data_utils", class_name="Sys")),
        "neither of Keras nor registered",
    ),
    "unregistered": (
        lambda w: w.archive(
            "k3.keras", lambda c: with_layer(c, module=None, class_name="Mine", registered_name="shop>Mine")
        ),
        "names 'shop>Mine'.*custom_objects",
    ),
    "TFSMLayer": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_layer(c, class_name="TFSMLayer", config={"filepath": str(w.good / "exported"), "name": "y"}),
        ),
        "is a TFSMLayer",
    ),
    "TorchModuleWrapper": (
        lambda w: w.archive("k3.keras", lambda c: with_layer(c, class_name="TorchModuleWrapper")),
        "is a TorchModuleWrapper",
    ),
    "vocabulary": (
        lambda w: w.archive(
            "k3.keras", lambda c: with_layer(c, class_name="StringLookup", config={"vocabulary": "/etc/passwd"})
        ),
        "would read the file '/etc/passwd'",
    ),
    "write_file": (lambda w: w.h5_config("tk.h5", tf_function("io.write_file")), "the TensorFlow function 'io.write"),
    "load_library": (lambda w: w.archive("tk.keras", tf_function("load_library")), "TensorFlow function 'load_lib"),
    "graph operation": (
        lambda w: w.h5_config(
            "tk.h5",
            lambda c: with_layer(c, class_name="TensorFlowOpLayer", config={"node_def": 'name: "a" op: "WriteFile"'}),
        ),
        "the TensorFlow operation 'WriteFile'",
    ),
    "called at once": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_layer(
                c,
                module="keras.src.ops.numpy",
                class_name="Tile",
                config={"name": "y", "repeats": [1 << 32]},
                inbound_nodes=[{"args": [[1.0]], "kwargs": {}}],
            ),
        ),
        "called without the output of another layer",
    ),
    # Configurations that ask for too much.
    "units": (lambda w: w.archive("k3.keras", lambda c: with_arguments(c, units=10**9)), "units=1,000,000,000"),
    "units in h5": (lambda w: w.h5_config("k3.h5", lambda c: with_arguments(c, units=10**9)), "units=1,000,000,000"),
    "units in keras 2": (lambda w: w.archive("tk.keras", lambda c: with_arguments(c, units=10**9)), "units=1,000"),
    "units in saved model": (lambda w: w.metadata(lambda c: with_arguments(c, units=10**9)), "units=1,000,000,000"),
    "wide input": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_layer(with_input(c, batch_shape=[None, 10**10]), build_config=None),
        ),
        "more weights than the 15 that are in the file",
    ),
    "wide input in keras 2": (
        lambda w: w.h5_config(
            "tk.h5",
            lambda c: with_input(c, batch_input_shape=[None, 10**10]),
        ),
        "more weights than the 15 that are in the file",
    ),
    "wide output": (
        lambda w: w.archive(
            "tk.keras", lambda c: with_layer(c, class_name="RepeatVector", config={"name": "y", "n": 1 << 40})
        ),
        "are allowed",
    ),
    "long loop": (
        lambda w: w.archive("k3.keras", lambda c: with_arguments(c, power_iterations=10**9)),
        "power_iterations=1,000,000,000",
    ),
    "parts": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_layer(
                c,
                module="keras.src.ops.numpy",
                class_name="Split",
                config={"name": "y", "indices_or_sections": 300_000},
            ),
        ),
        "indices_or_sections=300,000",
    ),
    "parts of an axis": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_layer(
                with_input(c, batch_shape=[None, 300_000]),
                module="keras.src.ops.core",
                class_name="Unstack",
                config={"name": "y", "num": None, "axis": 1},
            ),
        ),
        "it unstacks a tensor, and has axes of 300,000",
    ),
    "open sizes": (
        lambda w: w.archive(
            "tk.keras",
            lambda c: with_layer(
                with_input(c, batch_input_shape=[None, None, None, 1]),
                class_name="UpSampling2D",
                config={"name": "y", "size": [200, 200]},
            ),
        ),
        "its layer .* values for a batch of 8; 268,435,456 are allowed",
    ),
    "unrolled": (
        lambda w: w.archive(
            "k3.keras",
            lambda c: with_layer(
                with_input(c, batch_shape=[None, 100_000, 1]),
                class_name="LSTM",
                config={"name": "y", "units": 1, "unroll": True},
                build_config=None,
            ),
        ),
        "100,000 steps; 2,000 are allowed",
    ),
    "unrolled in keras 2 h5": (
        lambda w: w.h5_config(
            "tk.h5",
            lambda c: with_layer(
                with_input(c, batch_input_shape=[None, 100_000, 1]),
                class_name="Bidirectional",
                config={
                    "name": "y",
                    "layer": {"class_name": "SimpleRNN", "config": {"name": "z", "units": 1, "unroll": True}},
                },
            ),
        ),
        "100,000 steps; 2,000 are allowed",
    ),
    "unrolled in saved model": (
        lambda w: w.metadata(
            lambda c: with_layer(
                with_input(c, batch_input_shape=[None, 100_000, 1]),
                class_name="LSTM",
                config={"name": "y", "units": 1, "unroll": True},
            )
        ),
        "100,000 steps; 2,000 are allowed",
    ),
    "nested 300 times": (lambda w: w.archive("k3.keras", text=nested(300)), "more than 256 deep"),
    "nested 100,000 times": (lambda w: w.archive("k3.keras", text=nested(100_000)), "more than 256 deep"),
    "large config": (lambda w: w.archive("k3.keras", text=" " * (33 << 20)), "config.json may have"),
}  # fmt: skip


def test_there_are_fifty():
    assert len(BAD) >= 50


@ON_LINUX
@pytest.mark.parametrize("make", [make for make, _ in BAD.values()], ids=list(BAD))
def test_a_bad_file_is_refused(make, request, good, tmp_path, monkeypatch):
    workshop = Workshop(good, tmp_path)
    path = make(workshop)
    name = request.node.callspec.id
    calls = []
    monkeypatch.setattr(os, "system", calls.append)
    monkeypatch.setattr("subprocess.Popen", calls.append)
    before, modules, started = restart_peak(), set(sys.modules), time.perf_counter()
    with pytest.raises((ModelError, InvalidArgumentError), match=BAD[name][1]):
        load(path)
    assert time.perf_counter() - started < SECONDS
    assert peak_megabytes() - before < MEGABYTES
    assert not calls and not workshop.canary.exists()
    assert "shop" not in set(sys.modules) - modules


@ON_LINUX
def test_the_count_of_memory_sees_what_was_freed():
    before = restart_peak()
    np.ones(25_000_000).sum()
    assert 150 < peak_megabytes() - before < 250


def test_the_payloads_would_run(tmp_path, good):
    """Or a test that nothing ran would say nothing."""
    workshop = Workshop(good, tmp_path)
    pickle.loads(workshop.pickled(4)).close()
    assert workshop.canary.exists()
    workshop.canary.unlink()
    path = workshop.archive("k3.keras", lambda_3(workshop))
    load(path, allow_lambda=True)
    assert workshop.canary.exists()


HIDDEN = {
    "Lambda": (lambda w: lambda_2(w)({"config": {"layers": [{}]}})["config"]["layers"][0]["config"], "a Lambda layer"),
    "StringLookup": (lambda w: {"name": "y", "vocabulary": "/etc/hostname"}, "would read the file '/etc/hostname'"),
    "TFOpLambda": (lambda w: {"name": "y", "function": "io.read_file"}, "the TensorFlow function 'io.read_file'"),
    "Dense": (lambda w: {"name": "y", "units": 10**7}, "units=10,000,000"),
}
# Known to Keras 3 only, and to tf_keras only.
KNOWN = ("tfcompress>legacy_hard_sigmoid", "tfcompress>Keras3Operation")


@pytest.mark.parametrize("registered", KNOWN)
@pytest.mark.parametrize("name", ["k3.keras", "tk.keras", "k3.h5", "tk.h5"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_nothing_hides_behind_a_known_name(hidden, name, registered, good, tmp_path):
    import tfcompress.bridge.operation_layer  # noqa: F401  (registers the second)

    workshop = Workshop(good, tmp_path)
    make, match = HIDDEN[hidden]
    change = workshop.archive if name.endswith(".keras") else workshop.h5_config

    def hide(config):
        return with_layer(config, class_name=hidden, registered_name=registered, config=make(workshop))

    with pytest.raises(ModelError, match=match):
        load(change(name, hide))
    assert not workshop.canary.exists()


@pytest.mark.parametrize("name", ["k3.h5", "tk.h5"])
def test_a_class_that_says_to_be_another_one_is_refused(name, good, tmp_path):
    def change(config):
        return with_layer(config, module=None, registered_name=KNOWN[0])

    with pytest.raises(ModelError, match="names the class 'Dense', and says that it is registered as 'tfcompress>"):
        load(Workshop(good, tmp_path).h5_config(name, change))


@pytest.mark.parametrize(("name", "registered"), [("k3.keras", KNOWN[1]), ("tk.keras", KNOWN[0])])
def test_a_name_that_only_the_other_keras_knows_imports_nothing(name, registered, good, tmp_path, monkeypatch):
    import tfcompress.bridge.operation_layer  # noqa: F401

    (tmp_path / "shop.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)

    def change(config):
        return with_layer(config, module="shop", class_name="Mine", registered_name=registered)

    with pytest.raises(ModelError, match="neither of Keras nor registered"):
        load(Workshop(good, tmp_path).archive(name, change))


def test_safe_mode_is_a_second_wall(good, tmp_path, monkeypatch):
    """Where the guard would overlook a Lambda, the loader of `.h5` files refuses it still."""
    workshop = Workshop(good, tmp_path)
    path = workshop.h5_config("tk.h5", lambda_2(workshop))
    monkeypatch.setattr("tfcompress.bridge.read_model.check_config", lambda text, *rest: json.loads(text))
    with pytest.raises(ModelError, match="arbitrary code execution"):
        load(path)
    assert not workshop.canary.exists()


def operation(**changes) -> str:
    relu = {"module": "keras.src.ops.nn", "class_name": "Relu", "config": {"name": "r"}, "registered_name": "Relu"}
    return json.dumps(relu | changes)


TENSOR = '[[{"__tensor_at__": 0}], {}]'
SET_FLOATX = {"module": "keras.config", "class_name": "function", "config": "set_floatx", "registered_name": None}
NO_OPERATIONS = {
    "a function": (operation(**SET_FLOATX), '[["float16"], {}]'),
    "a function of keras.ops": (operation(module="keras.ops", class_name="function", config="relu"), TENSOR),
    "a layer": (
        operation(module="keras.layers", class_name="Dense", config={"units": 2}, registered_name=None),
        TENSOR,
    ),
    "a model": (operation(module="keras.src.ops.function", class_name="Function"), TENSOR),
    "a known name": (operation(registered_name="tfcompress>legacy_hard_sigmoid"), TENSOR),
    "a function within": (operation(class_name="Map", config={"f": SET_FLOATX}, registered_name="Map"), TENSOR),
    "a class within": (operation(), json.dumps([[{"__tensor_at__": 0}, {"class_name": "Popen", "config": {}}], {}])),
    "no tensor": (operation(), "[[1.0], {}]"),
    "no JSON": ("{", TENSOR),
    "a number": (1, TENSOR),
}


@pytest.mark.parametrize("case", NO_OPERATIONS)
@pytest.mark.parametrize("name", ["tk.keras", "tk.h5"])
def test_a_layer_of_an_operation_holds_nothing_else(case, name, good, tmp_path):
    from tfcompress.bridge.operation_layer import Keras3Operation

    described, arguments = NO_OPERATIONS[case]
    config = {"name": "y", "operation": described, "arguments": arguments}
    with pytest.raises(ModelError, match="must hold an operation of Keras"):
        Keras3Operation(**config)
    workshop = Workshop(good, tmp_path)
    if name == "tk.keras":
        where = {"module": "tfcompress.bridge.operation_layer", "registered_name": "tfcompress>Keras3Operation"}
        path = workshop.archive(name, lambda c: with_layer(c, class_name="Keras3Operation", config=config, **where))
    else:
        path = workshop.h5_config(name, lambda c: with_layer(c, class_name="tfcompress>Keras3Operation", config=config))
    with pytest.raises(ModelError, match="its layer 'y' is no operation of Keras"):
        load(path)
    assert keras.config.floatx() == "float32"


def test_large_networks_are_not_refused():
    """A ResNet-152 for 224x224, and a segmentation network for 1024x1024 with 32 channels, by their largest tensors."""
    inputs = tf_keras.Input((1024, 1024, 3))
    x = tf_keras.layers.Conv2D(32, 3, padding="same")(inputs)
    for _ in range(4):
        x = tf_keras.layers.Conv2D(32, 3, padding="same")(x)
    check_outputs(tf_keras.Model(inputs, x), "file", LOADING_ERRORS)
    small = tf_keras.Input((224, 224, 3))
    check_outputs(tf_keras.Model(small, tf_keras.layers.Conv2D(64, 7, strides=2)(small)), "file", LOADING_ERRORS)
    for _ in range(40):
        x = tf_keras.layers.ReLU()(x)
    with pytest.raises(ModelError, match="its layers give"):
        check_outputs(tf_keras.Model(inputs, x), "file", LOADING_ERRORS)


def test_outputs_of_a_layer_that_is_called_twice_are_counted():
    inputs = tf_keras.Input((64, 64, 1))
    grow = tf_keras.layers.UpSampling2D(10)
    with pytest.raises(ModelError, match="gives 327,680,000 values"):
        check_outputs(tf_keras.Model(inputs, grow(grow(inputs))), "file", LOADING_ERRORS)


def test_unrolled_layers_of_some_steps_are_read(tmp_path):
    inputs = tf_keras.Input((6, 2))
    original = tf_keras.Model(inputs, tf_keras.layers.LSTM(3, unroll=True)(inputs))
    original.save(tmp_path / "unrolled.h5")
    model = load(tmp_path / "unrolled.h5")
    x = np.random.default_rng(0).normal(size=(4, 6, 2)).astype("float32")
    assert model.layers[-1].unroll and np.allclose(model(x), original(x), atol=1e-5)


def test_the_input_of_a_custom_class_is_found_in_consent():
    config = {"module": "shop", "class_name": "Mine", "registered_name": "Mine", "config": {}}
    text = json.dumps({"class_name": "Functional", "config": {"layers": [config]}}).encode()
    with pytest.raises(ModelError, match="names 'shop.Mine'"):
        check_config(text, "file", Consent(), None)
    assert check_config(text, "file", Consent({"Mine": layers.Dense}), None)["config"]["layers"] == [config]


def test_losses_are_never_built(good, tmp_path):
    """A model that was compiled with a loss of the user's own is loaded without it."""

    def change(config):
        config["compile_config"] = {"loss": {"module": "shop", "class_name": "function", "config": "own_loss"}}
        return config

    assert load(Workshop(good, tmp_path).archive("k3.keras", change)).output_shape == (None, 3)


@ON_LINUX
@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_the_budget_counts_before_memory_is_taken(library):
    before = restart_peak()
    with pytest.raises(ModelError, match="more weights than the 10 "), weight_budget(10, "file"):
        library.layers.Dense(1 << 20).build((None, 1 << 20))
    assert peak_megabytes() - before < MEGABYTES
    with weight_budget(20_000_000, "file"):
        layer = library.layers.Dense(1000)
        layer.build((None, 100))
    assert layer.count_params() == 101_000
