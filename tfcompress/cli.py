"""The command `tfcompress`: one short handler for each subcommand, each calling what a notebook calls.

Invariant: exit code 0 is success, 1 an error whose message alone is on stderr, 2 a wrong use of the command, 130 an
interruption. Help and wrong uses load no TensorFlow. Left out: everything else, which is in what the handlers call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags

import tfcompress as tfc
from tfcompress import command_flags, files
from tfcompress.command_help import Command, help_of, overview

if TYPE_CHECKING:
    from tfcompress.data import Dataset

_HELP = ("--help", "-h", "-help", "--helpfull")
_PIPE_WIDTH = 120


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of this process, and exits with its code."""
    app.run(lambda rest: run_command(rest[1:]), argv=list(argv or sys.argv), flags_parser=_parse_global)


def run_command(arguments: Sequence[str]) -> int:
    """Runs the command line without the program's name.

    Args:
        arguments: The subcommand, its arguments and its flags.

    Returns:
        The exit code.
    """
    try:
        if not arguments or arguments[0] in (*_HELP, "help"):
            print(overview(COMMANDS))
            return 0 if arguments else 2
        if arguments[0] == "--version":
            print(f"tfcompress {tfc.__version__}")
            return 0
        name, *rest = arguments
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise app.UsageError(f"there is no command {name!r}.{hint} One of: {', '.join(COMMANDS)}.")
        if any(argument in _HELP for argument in rest):
            print(help_of(name, COMMANDS[name]))
            return 0
        return _call(name, COMMANDS[name], rest)
    except app.UsageError as error:
        return _fail(f"{error}\nSee `tfcompress --help`.", code=2)
    except tfc.TFCompressError as error:
        return _fail(str(error), code=1)
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.strerror}: {error.filename!r}.", code=1)
    except KeyboardInterrupt:
        return _fail("interrupted. A run that is started again goes on where it was.", code=130)


def _call(name: str, command: Command, arguments: Sequence[str]) -> int:
    command.flags.unparse_flags()
    for flag in command.flags:
        command.flags[flag].unparse()
    try:
        positional = command.flags([name, *arguments])[1:]
    except flags.Error as error:
        raise app.UsageError(f"{name}: {error}") from error
    if len(positional) != len(command.arguments):
        expected = " ".join(command.arguments) or "no arguments"
        raise app.UsageError(f"{name} takes {expected}. Received: {' '.join(positional) or 'nothing'}.")
    command.handler(positional, command.flags)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"tfcompress: {message}", file=sys.stderr)
    return code


def _parse_global(argv: Sequence[str]) -> Sequence[str]:
    # absl's own flags, which TFDS reads, are not ours: they keep their defaults, but for its messages below errors.
    flags.FLAGS([argv[0], "--verbosity=-2"])
    return argv


def _run(arguments: Sequence[str], values: flags.FlagValues) -> None:
    from tfcompress.recipe import load_recipe

    recipe = load_recipe(arguments[0], values.set)
    out = values.out or os.path.join("runs", recipe.name)
    with _quiet_start():
        run, write_report, print_table = tfc.run, tfc.write_report, tfc.print_table
    result = run(recipe, out, overwrite=values.overwrite, progress=values.progress)
    write_report(result.out)
    if values.progress:
        print_table(result.out)


def _inspect(arguments: Sequence[str], values: flags.FlagValues) -> None:
    from rich.console import Console

    with _quiet_start():
        inspect = tfc.inspect
    # A pipe has no width of its own.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(inspect(arguments[0]).table())


def _export(arguments: Sequence[str], values: flags.FlagValues) -> None:
    input_range = _input_range(values)
    with _quiet_start():
        load = tfc.load
    model = load(arguments[0])
    data = _load_data(values, input_range) if values.data else None
    result = tfc.export_tflite(
        model,
        arguments[1],
        mode=values.mode,
        io=values.io,
        calibration=data,
        class_names=data.class_names if data else None,
    )
    print(f"{result.path}: {result.file_bytes:,} bytes ({result.gzip_bytes:,} after gzip), mode {result.mode}")
    parity = result.parity
    print(f"compared with the Keras model on {parity.samples} samples ({parity.inputs})")
    for agreement in parity.agreements:
        figures = dataclasses.asdict(agreement).items()
        shown = [f"{key} {value:.4g}" for key, value in figures if isinstance(value, float)]
        print(f"  {agreement.output}, delegate {agreement.delegate}: {', '.join(shown)}")
    if values.target:
        folder = result.path.with_name(f"{result.path.stem}_{values.target}")
        bundle = tfc.write_bundle(result, folder, values.target, input_range=input_range if data else None)
        print(f"{bundle.folder}: {', '.join(bundle.files)}")


def _slim(arguments: Sequence[str], values: flags.FlagValues) -> None:
    from rich.console import Console
    from rich.table import Table

    with _quiet_start():
        slim = tfc.slim_tflite
    result = slim(arguments[0], arguments[1])
    table = Table(title=str(result.path), title_justify="left")
    for heading in ("", "before", "after", "saved"):
        table.add_column(heading, justify="right" if heading else "left")
    sizes = (
        ("bytes", result.bytes_before, result.bytes_after),
        ("gzip bytes", result.gzip_bytes_before, result.gzip_bytes_after),
    )
    for name, before, after in sizes:
        table.add_row(name, f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}")
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
    removed = ", ".join(f"{count} {what}" for what, count in result.removed)
    print(f"removed: {removed or 'nothing, but equal parts are stored once'}")
    print(f"the same outputs, to the bit, with kernels: {', '.join(result.checked)}")


def _simplify(arguments: Sequence[str], values: flags.FlagValues) -> None:
    if not arguments[1].endswith(".keras"):
        raise app.UsageError(f"OUT must end in .keras. Received: {arguments[1]}.")
    input_range = _input_range(values)
    with _quiet_start():
        load, simplify = tfc.load, tfc.simplify_with_certificate
    data = _load_data(values, input_range) if values.data else None
    simplified, certificate = simplify(load(arguments[0]), data=data)
    with files.atomic_path(arguments[1]) as temporary:
        simplified.save(temporary)
    print(certificate)
    print(f"{arguments[1]}: {os.path.getsize(arguments[1]):,} bytes")


def _sensitivity(arguments: Sequence[str], values: flags.FlagValues) -> None:
    if not values.data:
        raise app.UsageError("sensitivity needs --data NAME, such as --data digits.")
    if not values.out:
        raise app.UsageError("sensitivity needs --out DIR, a folder for the table and the picture.")
    input_range = _input_range(values)
    with _quiet_start():
        from tfcompress.report import write_sensitivity

        load, sensitivity = tfc.load, tfc.sensitivity
    model, data = load(arguments[0]), _load_data(values, input_range)
    found = sensitivity(model, data, progress=values.progress)
    print(found.table())
    mixed = None
    if values.max_accuracy_drop is not None:
        mixed = found.choose(max_accuracy_drop=values.max_accuracy_drop, progress=values.progress)
        print(f"in float: {', '.join(mixed.float_layers) or 'no layer'}; {len(mixed.content):,} bytes")
        print(f"accuracy {mixed.accuracy:.4f} on the validation split, {mixed.float_accuracy:.4f} in float")
    written = write_sensitivity(found, values.out, mixed)
    print(f"{values.out}: {', '.join(path.name for path in written)}")


def _evaluate(arguments: Sequence[str], values: flags.FlagValues) -> None:
    if not values.data:
        raise app.UsageError("evaluate needs --data NAME, such as --data digits.")
    input_range = _input_range(values)
    with _quiet_start():
        evaluate = tfc.evaluate
    data = _load_data(values, input_range)
    result = evaluate(arguments[0], data, split=values.split, batch_size=values.batch_size, limit=values.limit)
    print(f"accuracy {result.accuracy:.4f}, loss {result.loss:.4f}, {result.num_samples} samples of {data.name}")


def _list(arguments: Sequence[str], values: flags.FlagValues) -> None:
    from tfcompress.recipe import TECHNIQUES, load_technique

    with _quiet_start():
        from tfcompress.export.modes import IO_TYPES, MODES
        from tfcompress.models import FAMILIES
        from tfcompress.techniques.distill import LOSSES
        from tfcompress.techniques.schedules import SCHEDULES
    sections: dict[str, dict[str, Any]] = {
        "techniques (stages:)": {name: load_technique(name) for name in TECHNIQUES},
        "model families (model:)": dict(FAMILIES),
        "distillation losses (kind:)": dict(LOSSES),
        "pruning schedules (schedule:)": dict(SCHEDULES),
        "data (name:)": {
            "digits": "1,797 handwritten digits of 8x8 pixels, which come with the package.",
            "folder": "Images in one folder for each class.",
            "<TFDS name>": "Any image classification set of TensorFlow Datasets, such as mnist or cifar10.",
        },
        "export (tflite:)": {"mode": f"One of {', '.join(MODES)}.", "io": f"One of {', '.join(IO_TYPES)}."},
    }
    for title, entries in sections.items():
        print(title)
        for name, entry in entries.items():
            text = entry if isinstance(entry, str) else (entry.__doc__ or "").strip().partition("\n")[0]
            print(f"  {name:<20} {text}")


def _load_data(values: flags.FlagValues, input_range: tuple[float, float]) -> Dataset:
    return tfc.load_dataset(values.data, data_dir=values.data_dir, download=values.download, input_range=input_range)


def _input_range(values: flags.FlagValues) -> tuple[float, float]:
    try:
        low, high = map(float, values.input_range)
    except ValueError as error:
        received = ",".join(values.input_range)
        raise app.UsageError(f"--input_range must be LOW,HIGH, such as 0,255. Received: {received}.") from error
    return low, high


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Hides what TensorFlow's libraries write to stderr while they load, unless loading fails.

    They write it from C++ before any of their settings for messages is read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        hidden = stack.enter_context(tempfile.TemporaryFile())
        original = os.dup(2)
        stack.callback(os.close, original)
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(original, hidden.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)


COMMANDS = {
    "run": Command(
        ("RECIPE",),
        "Runs a recipe, or what is left of it: trains, compresses, exports, measures, reports.",
        _run,
        command_flags.run_flags(),
        "tfcompress run configs/digits.yaml --set stages.prune.train.epochs=3",
    ),
    "inspect": Command(
        ("FILE",),
        "Shows layers, parameters, MACs, sparsity and bytes of a .keras, .h5 or .tflite file.",
        _inspect,
        command_flags.no_flags(),
        "tfcompress inspect runs/digits/export/model_int8.tflite",
    ),
    "export": Command(
        ("MODEL", "OUT.tflite"),
        "Exports a Keras model file to a .tflite file that is audited, run and compared.",
        _export,
        command_flags.export_flags(),
        "tfcompress export model.keras model.tflite --data digits",
    ),
    "slim": Command(
        ("IN.tflite", "OUT.tflite"),
        "Rewrites a .tflite file to its fewest bytes, with outputs that are the same to the bit.",
        _slim,
        command_flags.no_flags(),
        "tfcompress slim model.tflite smaller.tflite",
    ),
    "simplify": Command(
        ("MODEL", "OUT.keras"),
        "Makes a Keras model file smaller without changing what it computes, and proves it.",
        _simplify,
        command_flags.data_flags(),
        "tfcompress simplify model.keras simpler.keras",
    ),
    "sensitivity": Command(
        ("MODEL",),
        "Measures what each layer of a Keras model file loses by int8; keeps the worst in float on demand.",
        _sensitivity,
        command_flags.sensitivity_flags(),
        "tfcompress sensitivity model.keras --data digits --out sensitivity --max_accuracy_drop 0.002",
    ),
    "evaluate": Command(
        ("MODEL",),
        "Measures accuracy and loss of a .keras, .h5 or .tflite file on a data set.",
        _evaluate,
        command_flags.evaluate_flags(),
        "tfcompress evaluate runs/digits/export/model_int8.tflite --data digits",
    ),
    "list": Command(
        (),
        "Lists techniques, model families, losses, schedules, data and export modes.",
        _list,
        command_flags.no_flags(),
        "tfcompress list",
    ),
}


if __name__ == "__main__":
    main()
