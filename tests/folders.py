"""Tiny valid model folders for tests: a forecast, a text classifier, and a tensor model with state.

Each is a real ONNX graph of a few KB with seeded weights, a right sha256 and an example that onnxruntime itself answered.
To make a broken folder, write a good one and change it with `edit_manifest`, `edit_example` or `write_graph`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from training.export.int8_graph import find_ranged_tensors, quantize_graph

OPSET = 17
Json = dict[str, Any]

HIDDEN = 4
WORDS = ("good", "bad", "film", "a", "very", "not", "the", "was", "i", "saw", "it", "plot")


def write_forecast_folder(
    models_dir: Path,
    name: str = "toy-forecast",
    version: str = "1",
    *,
    features: Sequence[str] = ("y",),
    targets: Sequence[str] | None = None,
    horizon: int = 4,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    context_length: int = 24,
    min_length: int = 2,
    frequencies: Sequence[str] = ("H",),
    seed: int = 0,
    output: str = "forecast",
) -> Path:
    """A ragged LSTM over `history`; outputs `forecast` and, where there are levels, `quantiles`. Returns the version folder.

    `output="mean"` writes the folder as the first release did.
    """
    targets = list(features if targets is None else targets)
    random = np.random.default_rng(seed)
    weights = {
        "W": random.normal(size=(1, 4 * HIDDEN, len(features))) * 0.3,
        "R": random.normal(size=(1, 4 * HIDDEN, HIDDEN)) * 0.3,
        "B": random.normal(size=(1, 8 * HIDDEN)) * 0.3,
        "head": random.normal(size=(HIDDEN, horizon * len(targets))),
        "bias": np.full(horizon * len(targets), 2.0),
        "offsets": np.array(quantiles) - 0.5,
    }
    nodes = [
        helper.make_node("Transpose", ["history"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Cast", ["lengths"], ["lengths32"], to=TensorProto.INT32),
        helper.make_node("LSTM", ["steps", "W", "R", "B", "lengths32"], ["", "last", ""], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["last", "zero"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "head", "bias"], ["flat"]),
        helper.make_node("Reshape", ["flat", "forecast_shape"], [output]),
    ]
    integers = {"zero": [0], "forecast_shape": [-1, horizon, len(targets)]}
    outputs: list[Json] = [{"name": output, "datatype": "FP32", "shape": ["batch", horizon, len(targets)]}]
    if quantiles:
        nodes += [
            helper.make_node("Unsqueeze", [output, "last_axis"], ["forecast4"]),
            helper.make_node("Add", ["forecast4", "offsets"], ["quantiles"]),
        ]
        integers["last_axis"] = [-1]
        shape = ["batch", horizon, len(targets), len(quantiles)]
        outputs.append({"name": "quantiles", "datatype": "FP32", "shape": shape})
    else:
        del weights["offsets"]
    manifest: Json = {
        "schema_version": 1,
        "name": name,
        "version": version,
        "task": "forecast",
        "description": "a toy that forecasts",
        "licence": "CC0",
        "inputs": [
            {"name": "history", "datatype": "FP32", "shape": ["batch", "time", len(features)]},
            {"name": "lengths", "datatype": "INT64", "shape": ["batch"]},
        ],
        "outputs": outputs,
        "forecast": {
            "context_length": context_length,
            "min_length": min_length,
            "horizon": horizon,
            "frequencies": list(frequencies),
            "season_length": 1,
            "quantiles": list(quantiles),
            "features": list(features),
            "targets": targets,
        },
        "training": {"metrics": {"mase": 0.9}, "baselines": {"seasonal naive": {"mase": 1.1}}, "seed": seed},
    }
    folder = models_dir / name / version
    _write(folder, manifest, build_graph(manifest, nodes, weights, integers))

    histories = [random.normal(size=(length, len(features))).round(3) for length in (max(min_length, 5), max(min_length, 8))]
    predictions = []
    for history in histories:
        answer = run_graph(folder, {"history": history[None], "lengths": np.array([len(history)])})
        point = answer[output][0]
        prediction: Json = {output: (point[:, 0] if len(targets) == 1 else point).tolist()}
        if quantiles:
            levels = answer["quantiles"][0]
            prediction["quantiles"] = {
                f"{level:g}": (levels[:, 0, i] if len(targets) == 1 else levels[:, :, i]).tolist()
                for i, level in enumerate(quantiles)
            }
        predictions.append(prediction)
    instances = [{"history": (h[:, 0] if len(features) == 1 else h).tolist()} for h in histories]
    _write_example(folder, name, instances, predictions)
    return folder


def write_text_folder(
    models_dir: Path,
    name: str = "toy-sentiment",
    version: str = "1",
    *,
    labels: Sequence[str] = ("negative", "positive"),
    max_length: int = 8,
    head: int = 4,
    seed: int = 0,
) -> Path:
    """An LSTM over word ids with a softmax, and a word-level tokenizer of `WORDS` that writes in lower case."""
    random = np.random.default_rng(seed)
    weights = {
        "embedding": random.normal(size=(len(WORDS) + 1, 3)),
        "W": random.normal(size=(1, 4 * HIDDEN, 3)),
        "R": random.normal(size=(1, 4 * HIDDEN, HIDDEN)),
        "B": random.normal(size=(1, 8 * HIDDEN)),
        "head": random.normal(size=(HIDDEN, len(labels))),
        "bias": random.normal(size=len(labels)),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["embedded"]),
        helper.make_node("Transpose", ["embedded"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Cast", ["lengths"], ["lengths32"], to=TensorProto.INT32),
        helper.make_node("LSTM", ["steps", "W", "R", "B", "lengths32"], ["", "last", ""], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["last", "zero"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "head", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    manifest: Json = {
        "schema_version": 1,
        "name": name,
        "version": version,
        "task": "classify",
        "description": "a toy that tells good from bad",
        "inputs": [
            {"name": "tokens", "datatype": "INT64", "shape": ["batch", "time"]},
            {"name": "lengths", "datatype": "INT64", "shape": ["batch"]},
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": ["batch", len(labels)]}],
        "classify": {
            "labels": list(labels),
            "max_length": max_length,
            "truncation": {"head": head, "tail": max_length - head},
            "language": "en",
        },
    }
    folder = models_dir / name / version
    _write(folder, manifest, build_graph(manifest, nodes, weights, {"zero": [0]}))

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0} | {word: i for i, word in enumerate(WORDS, 1)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))

    texts = ["good film", "I saw it , the plot was not a bad plot at all !"]
    predictions = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        is_truncated = len(ids) > max_length
        if is_truncated:
            ids = ids[:head] + ids[len(ids) - (max_length - head) :]
        row = run_graph(folder, {"tokens": np.array([ids]), "lengths": np.array([len(ids)])})["probabilities"][0].tolist()
        best = max(range(len(labels)), key=row.__getitem__)
        prediction: Json = {"label": labels[best], "score": row[best], "probabilities": dict(zip(labels, row, strict=True))}
        predictions.append(prediction | ({"truncated": True} if is_truncated else {}))
    _write_example(folder, name, [texts[0], {"text": texts[1]}], predictions)
    return folder


def write_tensor_folder(models_dir: Path, name: str = "toy-tensor", version: str = "1", *, seed: int = 0) -> Path:
    """A streaming RNN with 2 features and 3 units: `x` and `state` in, `y` for every step and `new_state` out."""
    random = np.random.default_rng(seed)
    weights = {
        "W": random.normal(size=(1, 3, 2)),
        "R": random.normal(size=(1, 3, 3)),
        "B": random.normal(size=(1, 6)),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Cast", ["lengths"], ["lengths32"], to=TensorProto.INT32),
        helper.make_node("Unsqueeze", ["state", "zero"], ["before"]),
        helper.make_node("RNN", ["steps", "W", "R", "B", "lengths32", "before"], ["every", "last"], hidden_size=3),
        helper.make_node("Squeeze", ["every", "one"], ["every3"]),
        helper.make_node("Transpose", ["every3"], ["y"], perm=[1, 0, 2]),
        helper.make_node("Squeeze", ["last", "zero"], ["new_state"]),
    ]
    manifest: Json = {
        "schema_version": 1,
        "name": name,
        "version": version,
        "task": "tensor",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": ["batch", "time", 2]},
            {"name": "lengths", "datatype": "INT64", "shape": ["batch"]},
            {"name": "state", "datatype": "FP32", "shape": ["batch", 3]},
        ],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": ["batch", "time", 3]},
            {"name": "new_state", "datatype": "FP32", "shape": ["batch", 3]},
        ],
        "state": [{"input": "state", "output": "new_state"}],
    }
    folder = models_dir / name / version
    _write(folder, manifest, build_graph(manifest, nodes, weights, {"zero": [0], "one": [1]}))

    rows = [random.normal(size=(length, 2)).round(3) for length in (2, 4)]
    answers = [run_graph(folder, {"x": r[None], "lengths": np.array([len(r)]), "state": np.zeros((1, 3))}) for r in rows]
    _write_example(folder, name, [{"x": rows[0].tolist()}, rows[1].tolist()], [a["y"][0].tolist() for a in answers])
    return folder


def build_graph(
    manifest: Json,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    integers: Mapping[str, Sequence[int]],
) -> bytes:
    """An ONNX file with the manifest's inputs and outputs; weights become FP32, integers INT64."""
    kinds = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}

    def values(tensors: list[Json]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(t["name"], kinds[t["datatype"]], t["shape"]) for t in tensors]

    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    constants += [numpy_helper.from_array(np.array(numbers, np.int64), name) for name, numbers in integers.items()]
    graph = helper.make_graph(nodes, manifest["name"], values(manifest["inputs"]), values(manifest["outputs"]), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_graph(folder: Path, graph: bytes) -> None:
    """Put another graph into a folder; the manifest gets its sha256."""
    (folder / "model.onnx").write_bytes(graph)
    edit_manifest(folder, lambda manifest: manifest["graphs"][0].update(sha256=hashlib.sha256(graph).hexdigest()))


def add_int8_graph(folder: Path, *, loss: float | None = 0.001, bound: float = 0.01, tolerance: float = 0.1) -> None:
    """Give a folder an int8 graph, with what the manifest says it loses (None: nothing) and how far its answers may be."""
    graph = (folder / "model.onnx").read_bytes()
    int8 = quantize_graph(graph, {tensor.values: (-4.0, 4.0) for tensor in find_ranged_tensors(graph)}).payload
    (folder / "model.int8.onnx").write_bytes(int8)
    entry: Json = {
        "file": "model.int8.onnx",
        "sha256": hashlib.sha256(int8).hexdigest(),
        "precision": "int8",
        "opset": OPSET,
        "loss": [] if loss is None else [{"measure": "mae", "kind": "relative", "value": loss, "bound": bound}],
        "tolerance": {"absolute": tolerance, "relative": 0.0},
    }
    edit_manifest(folder, lambda manifest: manifest["graphs"].append(entry))


def edit_manifest(folder: Path, edit: Callable[[Json], object]) -> None:
    """Change `manifest.json` in place."""
    _edit(folder / "manifest.json", edit)


def edit_example(folder: Path, edit: Callable[[Json], object]) -> None:
    """Change `example.json` in place."""
    _edit(folder / "example.json", edit)


def run_graph(folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime itself answers, outputs by name; floats are given as FP32, integers as INT64."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    fed = {k: v.astype(np.float32 if v.dtype.kind == "f" else np.int64) for k, v in inputs.items()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def _write(folder: Path, manifest: Json, graph: bytes) -> None:
    folder.mkdir(parents=True)
    entry = {"file": "model.onnx", "sha256": hashlib.sha256(graph).hexdigest(), "precision": "fp32", "opset": OPSET}
    (folder / "model.onnx").write_bytes(graph)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"graphs": [entry]}))


def _write_example(folder: Path, name: str, instances: list[Any], predictions: list[Any]) -> None:
    example = {
        "request": {"model": name, "instances": instances},
        "response": {"predictions": predictions},
        "tolerance": {"absolute": 1e-4, "relative": 1e-3},
    }
    (folder / "example.json").write_text(json.dumps(example))


def _edit(path: Path, edit: Callable[[Json], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
