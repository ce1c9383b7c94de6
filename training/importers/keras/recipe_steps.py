"""Steps of the layers that recipes have, which their own code runs, and of cells that are such layers in other words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from training.importers.keras.entry import Entry, name_of
from training.importers.keras.keras_file import StoredLayer
from training.importers.keras.layers import from_keras_config
from training.importers.keras.leaf import run_layer
from training.importers.keras.masked_tensor import MaskedTensor, Result, flat
from training.importers.keras.step import Axes, Step, step
from training.importers.keras.weights import load_weights
from training.importers.model import SourceLayer
from training.layers.named import snake_case
from training.layers.registry import LAYERS, Layer, Shape, build_layer


class LayerStep(Step):
    """A layer that recipes have."""

    layer: Layer
    _MASKED: ClassVar[tuple[str, ...]] = ("mask", "initial_state")

    def build(self, shapes: Sequence[Axes]) -> None:
        self.table = self.read_table()
        shape = Shape(shapes[0])
        if LAYERS[self.table["type"]].reads_tokens:
            shape = Shape(shapes[0], vocabulary=int(self.table["input_dim"]))
        self.layer = build_layer(self.table, shape, shape, self.stored.place).eval()
        self.load()
        super().build(shapes)

    def read_table(self) -> dict[str, Any]:
        """The layer's table as a recipe has it."""
        return table_of(self.stored.entry, self.stored.keras_version)

    def load(self) -> None:
        """Give the layer its weights."""
        entry = self.stored.entry
        held = StoredLayer(name_of(entry), str(entry["class_name"]), entry, self.stored.weights)
        load_weights(self.layer, SourceLayer(self.table, self.stored.place, held))

    def part_name(self, part: int) -> str:
        return self.layer.others[part - 1][0] if 0 < part <= len(self.layer.others) else super().part_name(part)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, *self._MASKED)
        given = list(flat(args))
        value, states = given[0], [*given[1:], *flat(kwargs.get("initial_state"))]
        own = next(flat(kwargs.get("mask")), None)
        mask = own.values if own is not None else value.mask
        if states and not self.layer.is_recurrent and self.table["type"] != "bidirectional":
            raise self.refuse(f"reads {len(given)} tensors")
        is_read = mask is not None and self.layer.mask_use(self.layer.config) != "ignored"
        found = run_layer(value.values, mask if is_read else None, *(state.values for state in states), layer=self.layer)
        first = MaskedTensor(found[0], self._mask_of(value.values, mask, found[0]))
        return first if len(found) == 1 else (first, *(MaskedTensor(part) for part in found[1:]))

    def _mask_of(self, values: Tensor, mask: Tensor | None, result: Tensor) -> Tensor | None:
        if self.table["type"] == "embedding":
            return values != 0 if self.table.get("mask_zero") else None
        if self.layer.mask_value is not None:
            return (values != self.layer.mask_value).any(-1)
        carries = self.layer.mask_use(self.layer.config) == "carried"
        return mask if carries and mask is not None and result.dim() > 2 else mask if carries and result.dim() == 1 else None


@step("CuDNNLSTM", "CuDNNGRU")
class CudnnStep(LayerStep):
    """CuDNNLSTM and CuDNNGRU: the same layers, whose weights lie gate by gate transposed."""

    def read_table(self) -> dict[str, Any]:
        kind = self.stored.entry["class_name"].removeprefix("CuDNN")
        config = {key: value for key, value in self.stored.config.items() if key not in ("reset_after", "time_major")}
        entry = {"class_name": kind, "config": {**config, **({"reset_after": True} if kind == "GRU" else {})}}
        return from_keras_config(entry, keras_version="2")

    def load(self) -> None:
        gates = 4 if self.table["type"] == "lstm" else 3
        if len(self.stored.weights) != 3:
            raise self.refuse(
                f"weights are missing: expected kernel, recurrent_kernel and bias, found {len(self.stored.weights)}"
            )
        kernel, recurrent, bias = (weight.values for weight in self.stored.weights)
        arrays = [
            np.hstack([part.T.reshape(part.shape, order="F") for part in np.hsplit(kernel, gates)]),
            np.hstack([part.T for part in np.hsplit(recurrent, gates)]),
            bias.reshape(2, -1).sum(0) if gates == 4 else bias.reshape(2, -1),
        ]
        self.layer.load_keras_weights(arrays)


@step("RNN")
class CellsStep(Step):
    """RNN(cell) and RNN([cells]): the layer of each cell, one over the other."""

    def build(self, shapes: Sequence[Axes]) -> None:
        cell = self.option("cell")
        cells = cell["config"]["cells"] if cell["class_name"] == "StackedRNNCells" else [cell]
        weights = list(self.stored.weights)
        self.layers = nn.ModuleList()
        shape = Shape(shapes[0])
        for number, own in enumerate(cells):
            kind = str(own["class_name"]).removesuffix("Cell")
            if snake_case(kind) not in LAYERS:
                raise self.refuse(f'cell "{own["class_name"]}" is not supported; LSTMCell, GRUCell and SimpleRNNCell are')
            is_last = number == len(cells) - 1
            config = {
                **own["config"],
                "return_sequences": self.option("return_sequences", False) if is_last else True,
                "return_state": self.option("return_state", False),
                "go_backwards": self.option("go_backwards", False) if number == 0 else False,
            }
            table = table_of({"class_name": kind, "config": config}, self.stored.keras_version)
            layer = build_layer(table, shape, shape, self.stored.place).eval()
            arrays = [weight.values for weight in weights[: len(layer.weights)]]
            del weights[: len(layer.weights)]
            layer.load_keras_weights(arrays)
            self.layers.append(layer)
            shape = layer.output
        if weights:
            raise self.refuse(f"the file holds {len(weights)} weights more than the cells have")
        super().build(shapes)

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask")
        (value,) = flat(args)
        own = next(flat(kwargs.get("mask")), None)
        mask = own.values if own is not None else value.mask
        result, states = value.values, []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            result, *final = run_layer(result, mask, layer=layer)
            states += [MaskedTensor(part) for part in final]
        first = MaskedTensor(result, mask if self.option("return_sequences") else None)
        return (first, *states) if self.option("return_state") else first


def table_of(entry: Entry, keras_version: str) -> dict[str, Any]:
    """A layer's table as a recipe has it. Raises LayerError."""
    if entry["class_name"] == "GRU" and keras_version.split(".")[0] in ("1", "2"):
        # Files older than the option were written by a GRU that resets before the product.
        entry = {**entry, "config": {"reset_after": False, **entry["config"]}}
    return from_keras_config(entry, keras_version=keras_version)
