"""The command `import`: one command for all sources, made of the commands of the single libraries.

Its options are those of the commands it stands for, so that one that is added there is there at once. Knows no option by name
but `module`, which makes a checkpoint a source of torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from training.importers.sources import Kind, UnknownSource, kind_of

Command = Callable[..., None]
ABOUT = "An ONNX file, a Keras file or folder, package.module:make_net, a Lightning .ckpt, or a folder of neuralforecast."
MODULE = "What makes the network of a checkpoint: package.module:Class."
SOURCES: Mapping[Kind, str] = {"keras": "file", "onnx": "file", "torch": "source", "neuralforecast": "folder"}
"""What each command calls its argument."""
LABELS: Mapping[Kind, str] = {"keras": "Keras", "onnx": "ONNX", "torch": "torch", "neuralforecast": "neuralforecast"}


def import_command(commands: Mapping[Kind, Command], on_refusal: Callable[[UnknownSource], None]) -> Command:
    """A command of typer that takes the options of all `commands` and calls the one that reads the source.

    `on_refusal` ends the command where there is none, or where an option belongs to another.
    """
    options = _join(commands)
    flags = {name: _flag(parameter) for name, parameter in options.items()}

    def run(source: str, module: str | None = None, **given: Any) -> None:
        try:
            kind = kind_of(source, module)
            own = {name for name in options if name in inspect.signature(commands[kind]).parameters}
            chosen = {name: value for name, value in given.items() if value is not None and value is not False and value != []}
            for name in sorted(chosen.keys() - own):
                owners = [LABELS[other] for other in commands if name in inspect.signature(commands[other]).parameters]
                raise UnknownSource(f"{flags[name]} belongs to {' and '.join(owners)}, the source is of {LABELS[kind]}: {source}")
            needed = [
                flags[name]
                for name, parameter in inspect.signature(commands[kind]).parameters.items()
                if parameter.default is inspect.Parameter.empty and name != SOURCES[kind] and name not in chosen
            ]
            if needed:
                raise UnknownSource(f"{source} is of {LABELS[kind]}, which needs {', '.join(needed)}")
        except UnknownSource as exc:
            on_refusal(exc)
            return
        if module is not None:
            commands["torch"](source=module, weights=Path(source), **chosen)
        else:
            commands[kind](**{SOURCES[kind]: source if kind == "torch" else Path(source)}, **chosen)

    run.__doc__ = "Publish a finished model as a model folder: ONNX, Keras, torch, Lightning or neuralforecast."
    head = [
        _parameter("source", Annotated[str, typer.Argument(help=ABOUT)], inspect.Parameter.empty),
        options.pop("name"),
        _parameter("module", Annotated[str | None, typer.Option(help=f"torch: {MODULE}")], None),
    ]
    parameters = [*head, *options.values()]
    run.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    options["name"] = head[1]
    return run


def _flag(parameter: inspect.Parameter) -> str:
    """An option as the command line writes it."""
    _, info = get_args(parameter.annotation)
    declared = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    return declared[0] if declared else f"--{parameter.name.replace('_', '-')}"


def _join(commands: Mapping[Kind, Command]) -> dict[str, inspect.Parameter]:
    """The options of all commands by name, each with the libraries that have it before its help."""
    found: dict[str, inspect.Parameter] = {}
    for kind, command in commands.items():
        hints = get_type_hints(command, include_extras=True)
        for name in inspect.signature(command).parameters:
            if name == SOURCES[kind] or name in found:
                continue
            owners = [other for other in commands if name in inspect.signature(commands[other]).parameters]
            value_type, info = get_args(hints[name])
            help_text = info.help or ""
            label = "" if len(owners) == len(commands) else f"{', '.join(LABELS[other] for other in owners)}: "
            about = f"{label}{help_text}"
            names = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
            option = typer.Option(*names, help=about, metavar=info.metavar, min=info.min)
            if name == "name":
                found[name] = _parameter(name, Annotated[value_type, option], inspect.Parameter.empty)
            elif value_type is bool:
                found[name] = _parameter(name, Annotated[bool, option], False)
            else:
                found[name] = _parameter(name, Annotated[value_type | None, option], None)
    return found


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
