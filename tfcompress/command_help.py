"""What a subcommand is, and the help texts of the command `tfcompress`.

Invariant: help is made of the commands and their flags alone, and loads no TensorFlow. Left out: the commands
(`cli.py`).
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence

from absl import flags

Handler = Callable[[Sequence[str], flags.FlagValues], None]

_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Command:
    """One subcommand.

    Args:
        arguments: Names of its positional arguments.
        summary: What it does, in one line.
        handler: Called with the positional arguments and the flags.
        flags: Its flags.
        example: A command line to show.
    """

    arguments: tuple[str, ...]
    summary: str
    handler: Handler
    flags: flags.FlagValues
    example: str


def overview(commands: Mapping[str, Command]) -> str:
    """What there is, for `tfcompress --help`."""
    lines = [
        "usage: tfcompress COMMAND [ARGUMENTS] [FLAGS]",
        "",
        "Takes any Keras model and gives back a smaller, faster one that runs on a phone or a microcontroller.",
        "",
        "commands:",
        *(f"  {name:<11} {command.summary}" for name, command in commands.items()),
        "",
        "`tfcompress COMMAND --help` shows its flags; `tfcompress --version` the version.",
        "",
        "examples:",
        *(f"  {command.example}" for command in commands.values()),
    ]
    return "\n".join(lines)


def help_of(name: str, command: Command) -> str:
    """How one subcommand is used, with its flags."""
    usage = " ".join(["usage: tfcompress", name, *command.arguments, *(["[FLAGS]"] if list(command.flags) else [])])
    lines = [usage, "", command.summary]
    if list(command.flags):
        lines += ["", "flags:"]
    titles = {key: f"--[no]{key}" if command.flags[key].boolean else f"--{key}=VALUE" for key in sorted(command.flags)}
    width = max(map(len, titles.values()), default=0)
    for key, title in titles.items():
        flag = command.flags[key]
        default = "" if flag.boolean or not flag.default else f" Default: {flag.default_as_str}."
        text = textwrap.fill(f"{_plain_help(flag)}{default}", _WIDTH - width - 3, break_long_words=False)
        lines += [f"  {title:<{width}} " + text.replace("\n", "\n" + " " * (width + 3))]
    return "\n".join([*lines, "", "example:", f"  {command.example}"])


def _plain_help(flag: flags.Flag) -> str:
    """The help as it was written; absl puts an enum's values before it, and a remark behind that of a list."""
    text = flag.help.partition(">: ")[2] if flag.help.startswith("<") else flag.help
    return text.partition(";\n")[0]
