"""A model that Keras saved becomes a model folder: read the file, then as every import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from training.importers.importer import ImportResult, build_network, import_model
from training.importers.keras.calls_importer import ImportedCalls, import_calls
from training.importers.keras.chain import NotAChain
from training.importers.keras.keras_file import read_keras_calls, read_keras_file
from training.importers.keras.reading import source_model
from training.importers.keras.scales import NO_SCALES, Scales, with_scales
from training.importers.keras.steps import require_known
from training.importers.keras.texts import options_with_tokenizer
from training.importers.keras.weights import load_weights
from training.importers.options import ImportOptions
from training.layers.registry import LayerError
from training.network.network import Network


def import_keras(
    path: Path,
    options: ImportOptions,
    models: Path,
    *,
    example: Path | None = None,
    architecture: Path | None = None,
    replace_version: bool = False,
    scales: Scales = NO_SCALES,
    state: Mapping[str, str] | None = None,
) -> ImportResult | ImportedCalls:
    """Publish the model at `path` as `models/<name>/<version>`; `example` is a JSON list of instances for its example.json.

    `scales` are those that lie outside the model; `state` maps an input to the output that carries it on. `architecture` is what
    `model.to_json()` gave, for a file of weights alone. A chain of layers that recipes have becomes a network of them, which can
    stream; any other model, and one with `state`, a module of calls. Raises KerasFileError, and what `import_model` and
    `import_calls` raise.
    """
    try:
        if state:
            raise NotAChain("a state that the caller names")
        file = read_keras_file(path, architecture, require_known)
        model = with_scales(source_model(file), scales, options)
    except (NotAChain, LayerError):
        calls = read_keras_calls(path, architecture, require_known)
        with options_with_tokenizer(options, calls.texts) as chosen:
            return import_calls(
                calls, chosen, models, example=example, replace_version=replace_version, scales=scales, state=state
            )
    with options_with_tokenizer(options, file.texts) as chosen:
        return import_model(model, load_weights, chosen, models, example=example, replace_version=replace_version)


def read_network(path: Path) -> Network:
    """The network of a Keras file with its weights, as a plain stack of layers. Raises KerasFileError or LayerError."""
    return build_network(source_model(read_keras_file(path)), None, load_weights)
