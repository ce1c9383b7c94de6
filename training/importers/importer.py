"""A source model becomes a model folder: adapt → build → weights → graph → verify → publish, as one page.

Reads no file format. Whatever cannot be imported is refused before anything is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.export.graph import describe_tensors, write_graph
from training.export.publish import Publication, publish, require_free
from training.export.verify import Verification, verify
from training.importers.adapters.base import SEED
from training.importers.adapters.registry import ADAPTERS, options_by_task
from training.importers.adapters.tensor import tensor_spec
from training.importers.model import LoadWeights, ModelImportError, SourceModel
from training.importers.options import ImportOptions, parse_options
from training.layers.registry import Layer, LayerError
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.scoring.evaluate import Graph


@dataclass(frozen=True)
class ImportResult:
    """The folder that was published, the largest error of each check, and the notes of layers and adapter."""

    folder: Path
    network: Network
    verification: Verification
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImportSubject:
    """What the folder is of, in the place of a recipe."""

    options: ImportOptions
    model: SourceModel
    seed: int = SEED

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def version(self) -> int | None:
        return self.options.version

    @property
    def task(self) -> str:
        return self.options.task

    @property
    def description(self) -> str:
        return self.options.description or f"imported from {self.model.origin['file']}"

    @property
    def licence(self) -> str:
        return self.options.licence

    def as_json(self) -> dict[str, Any]:
        """The options, the file and the layers, plain JSON; of files their names alone."""
        values = self.options.model_dump(exclude_unset=True)
        given = {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
        return {**given, "import": dict(self.model.origin), "layers": list(self.model.tables)}


def read_options(**values: Any) -> ImportOptions:
    """Check the values of the command line. Raises ModelImportError that names the option."""
    return parse_options(values, options_by_task())


def import_model(
    model: SourceModel,
    load_weights: LoadWeights,
    options: ImportOptions,
    models: Path,
    *,
    example: Path | None = None,
    replace_version: bool = False,
) -> ImportResult:
    """Publish a model as `models/<name>/<version>`; `example` is a JSON list of instances for its example.json.

    Raises LayerError, ModelImportError or PublishError before anything is written, VerificationFailed if the graph does not
    compute what the network does, and what `load_weights` raises.
    """
    require_free(ImportSubject(options, model), models, replace=replace_version)
    adapter = ADAPTERS[options.task](model, options)
    target = adapter.target
    network = build_network(target.model, target.spec, load_weights)

    instances = adapter.draw_instances(network) if example is None else _read_instances(example)
    rows = [adapter.read_instance(network, instance, f"instance {index}") for index, instance in enumerate(instances)]

    payload = write_graph(network).SerializeToString()
    examples = [] if example is None else [row.inputs for row in rows]
    verification = verify(network, payload, SEED, examples=examples)

    graph = Graph(payload)
    publication = Publication(
        recipe=ImportSubject(options, target.model),
        graph=payload,
        tensors=describe_tensors(network),
        spec=adapter.manifest_block(network),
        instances=instances,
        predictions=[adapter.format_prediction(network, graph.run(row.inputs), row) for row in rows],
        metrics={},
        baselines={},
        data=[],
        facts={
            "num_parameters": network.num_parameters + network.num_fixed_parameters,
            "network": network.spec.model_dump(mode="json", exclude_defaults=True),
        },
        files=target.files,
    )
    folder = publish(publication, models, replace=replace_version)
    return ImportResult(folder, network, verification, (*target.notes, *network.notes))


def build_network(model: SourceModel, spec: NetworkSpec | None, load_weights: LoadWeights) -> Network:
    """The network with the model's weights, ready to predict; without a spec as a plain stack of layers.

    Raises LayerError that names the model's own layer, and what `load_weights` raises.
    """
    try:
        network = Network(spec or tensor_spec(model))
    except LayerError as exc:
        raise _name_source_layer(exc, model) from exc
    if model.scale is not None:
        # Two rows with this mean and deviation.
        offset, deviation = model.scale.offset, model.scale.deviation
        network.set_statistics(torch.from_numpy(np.stack([offset - deviation, offset + deviation])))
    for layer, source in zip(network.layers, model.layers, strict=True):
        assert isinstance(layer, Layer)
        if source.weights is not None:
            load_weights(layer, source)
    return network.eval()


def _name_source_layer(exc: LayerError, model: SourceModel) -> LayerError:
    found = re.match(r"layers\[(\d+)\]", exc.where)
    if not found:
        return exc
    message = str(exc)[len(f"{exc.where} ({exc.kind})" if exc.kind else exc.where) :].removeprefix(": ")
    return LayerError(model.layers[int(found[1])].place, "", None, message)


def _read_instances(path: Path) -> list[Any]:
    """Two or more instances of POST /predict from a JSON file. Raises ModelImportError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelImportError(f"--example: {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ModelImportError(f"--example: {path} is not JSON: {exc}") from exc
    if isinstance(content, Mapping) and "instances" in content:
        content = content["instances"]
    if not isinstance(content, list) or len(content) < 2:
        raise ModelImportError(f"--example: {path} must be a list of two or more instances")
    return content
