"""What a source of `import` is: a file or folder of which library, or what makes a torch network. Opens nothing, and no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from training.errors import TrainingError

Kind = Literal["keras", "onnx", "torch", "neuralforecast"]
CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")


class UnknownSource(TrainingError):
    """It is not known what the source is; the message says what it may be."""


def is_module_source(source: str) -> bool:
    """Whether a source is `package.module:name`, and no file."""
    module, separator, name = source.partition(":")
    return bool(separator) and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])


def kind_of(source: str, module: str | None) -> Kind:
    """Who reads a source; `module` is what makes the network of a checkpoint. Raises UnknownSource."""
    path = Path(source)
    if module is not None:
        if path.suffix not in CHECKPOINTS:
            raise UnknownSource(f"--module belongs to a checkpoint ({', '.join(CHECKPOINTS)}), the source is {source}")
        if not is_module_source(module):
            raise UnknownSource(f"--module: expected package.module:Class, got {module!r}")
        return "torch"
    if path.suffix in CHECKPOINTS:
        raise UnknownSource(f"{source} holds weights, not a network: name what makes it by --module package.module:Class")
    if is_module_source(source) and not path.exists():
        return "torch"
    if is_neuralforecast_folder(path):
        return "neuralforecast"
    return "onnx" if path.suffix == ".onnx" else "keras"


def is_neuralforecast_folder(path: Path) -> bool:
    """Whether `NeuralForecast.save` wrote the folder: pickles, and in newer versions JSON and safetensors."""
    if (path / "configuration.pkl").is_file():
        return True
    return (path / "configuration.json").is_file() and any(path.glob("*.safetensors"))
