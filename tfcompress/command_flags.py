"""The flags of each subcommand of `tfcompress`.

Invariant: each function gives flags of its own, so no command knows those of another; TensorFlow is not loaded. Left
out: what the flags do, which is in `cli.py`.
"""

from __future__ import annotations

from absl import flags


def no_flags() -> flags.FlagValues:
    """For commands that take arguments only."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may stand before, between and after the arguments
    return values


def run_flags() -> flags.FlagValues:
    """Those of `tfcompress run`."""
    own = no_flags()
    flags.DEFINE_string("out", None, "Folder for the results; runs/<recipe name> by itself.", flag_values=own)
    flags.DEFINE_multi_string(
        "set",
        [],
        "Changes one key of the recipe, as key.path=value; may be given many times. A stage is named by its name or "
        "its index: --set stages.prune.train.epochs=3.",
        flag_values=own,
    )
    flags.DEFINE_bool("overwrite", False, "Replace another recipe's results in the folder.", flag_values=own)
    flags.DEFINE_bool("progress", True, "Show progress bars and the table.", flag_values=own)
    return own


def data_flags() -> flags.FlagValues:
    """Which data, and how its values are scaled for the model."""
    own = no_flags()
    flags.DEFINE_string("data", None, "Name of the data: digits, or a name of TFDS.", flag_values=own)
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS data.", flag_values=own)
    flags.DEFINE_bool("download", True, "Fetch data that is not there.", flag_values=own)
    flags.DEFINE_list("input_range", ["0", "1"], "Pixel range LOW,HIGH of the model's input.", flag_values=own)
    return own


def export_flags() -> flags.FlagValues:
    """Those of `tfcompress export`."""
    own = data_flags()
    modes = ["float32", "float16", "dynamic", "int8", "int8_float_io", "int16x8", "int4"]
    flags.DEFINE_enum("mode", "int8", modes, f"Arithmetic: {', '.join(modes)}.", flag_values=own)
    text = "Inputs and outputs of a file of integers: int8, int16 or float32; by itself the mode's own."
    flags.DEFINE_enum("io", None, ["int8", "int16", "float32"], text, flag_values=own)
    targets = ["android", "microcontroller", "edgetpu"]
    text = "Writes a folder beside OUT with what this target needs: android, microcontroller or edgetpu."
    flags.DEFINE_enum("target", None, targets, text, flag_values=own)
    return own


def sensitivity_flags() -> flags.FlagValues:
    """Those of `tfcompress sensitivity`."""
    own = data_flags()
    flags.DEFINE_string("out", None, "Folder for the table, the picture and the file.", flag_values=own)
    text = (
        "Writes an int8 file too, with the most sensitive layers in float until its accuracy on the validation split "
        "is at most this share below that of the float file: 0.002 is 0.2 points."
    )
    flags.DEFINE_float("max_accuracy_drop", None, text, lower_bound=0.0, upper_bound=1.0, flag_values=own)
    flags.DEFINE_bool("progress", True, "Show progress bars.", flag_values=own)
    return own


def evaluate_flags() -> flags.FlagValues:
    """Those of `tfcompress evaluate`."""
    own = data_flags()
    splits = ["train", "validation", "test"]
    flags.DEFINE_enum("split", "test", splits, "Split: train, validation or test.", flag_values=own)
    flags.DEFINE_integer("batch_size", 256, "Samples at a time.", lower_bound=1, flag_values=own)
    flags.DEFINE_integer("limit", None, "Stop after so many samples.", lower_bound=1, flag_values=own)
    return own
