"""The command `sluice`: hands each command's arguments on to the package that carries it out.

Knows the commands by name and by one line; their options, their help and their exit statuses are the packages' own.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sluice.packages import PackageError, load

WRONG_COMMAND = 2
CANNOT_START = 3
PACKAGES = ("service", "training", "sluice")


class Command(NamedTuple):
    """One command: which package has it, under which name there, and which extras install what it needs."""

    package: Literal["service", "training"]
    name: str
    extras: str
    about: str


COMMANDS = {
    "serve": Command("service", "serve", "cpu", "serve the models folder over REST"),
    "check": Command("service", "check", "cpu", "say what is wrong with a model folder"),
    "score": Command("service", "score", "cpu,score", "score a file with a model, larger than memory, without a server"),
    "key": Command("service", "key", "cpu", "make an API key, and its entry for the keys file"),
    "settings": Command("service", "settings", "cpu", "list every SLUICE_ setting with its default"),
    "init": Command("training", "init", "cpu,train", "write a commented recipe for a CSV file"),
    "train": Command("training", "run", "cpu,train", "train by a recipe and publish the model folder"),
    "import": Command("training", "import", "cpu,import", "publish a finished model as a model folder"),
    "import-torch": Command("training", "import-torch", "cpu,import", "publish any torch network as a model folder"),
    "summary": Command("training", "summary", "cpu,train", "print the layers of a recipe or model with their parameters"),
    "compare": Command("training", "compare", "cpu,train", "train a recipe with other cells and compare the scores"),
    "tune": Command("training", "tune", "cpu,train,tune", "search options of a recipe within a time budget"),
    "evaluate": Command("training", "evaluate", "cpu,train", "score a running service on the standard benchmarks"),
    "quantize": Command("training", "quantize", "cpu,train", "add an int8 graph to a model folder"),
    "statistics": Command("training", "statistics", "cpu,train", "add statistics of the training part to a model folder"),
    "card": Command("training", "card", "cpu,train", "write the model cards of published folders again"),
    "data list": Command("training", "list", "cpu,train", "show the bundled recipes and the public data sets"),
    "data fetch": Command("training", "fetch", "cpu,train", "download a public data set and check it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 where there is no such command, 3 where it cannot be imported."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(help_text())
        return 0 if args else WRONG_COMMAND
    name, rest = _split(args)
    if name != "--version" and name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f'did you mean "{close[0]}"?' if close else "`sluice --help` lists what there is"
        print(f'sluice: no command "{name}"; {hint}', file=sys.stderr)
        return WRONG_COMMAND
    try:
        if name == "--version":
            print(f"sluice {load('service').__version__}")
            return 0
        return _run(name, rest)
    except PackageError as exc:
        message = str(exc)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] in PACKAGES:
            raise  # a fault of ours, not a library that is not installed
        message = f"`sluice {name}` needs {exc.name}: pip install 'sluice-serving[{COMMANDS[name].extras}]'"
    print(f"sluice: {message}", file=sys.stderr)
    return CANNOT_START


def help_text() -> str:
    """Every command with its line."""
    lines = ["usage: sluice <command> [options]", ""]
    lines += ["Train recurrent networks or import finished ones, publish them as model folders, and serve them over REST.", ""]
    lines += [f"  {name:14}{command.about}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`sluice <command> --help` says more; `sluice --version` names the version."])


def _split(args: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and what follows it."""
    if any(name.startswith(f"{args[0]} ") for name in COMMANDS):
        return " ".join(args[:2]), list(args[2:])
    return args[0], list(args[1:])


def _run(name: str, rest: Sequence[str]) -> int:
    command = COMMANDS[name]
    module = load(f"{command.package}.__main__")
    if command.package == "service":
        status: int = module.main([command.name, *rest])
    else:
        status = module.main(rest, command=command.name, prog_name=f"sluice {name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
