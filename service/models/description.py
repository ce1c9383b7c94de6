"""What `GET /models` and `GET /models/{name}` say of a model that is READY, as JSON values.

It stands here and not in `service/api`, which would have to be handed every one of these facts to say the same.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from service.models.model import Model
from service.runtime.base import CPU
from service.runtime.tensors import TensorSpec

Shape = tuple[int | str, ...]

PLATFORM = "onnxruntime_onnx"
"""How Triton calls models that onnxruntime runs."""


def summarize_model(model: Model) -> dict[str, Any]:
    """A model in a few facts."""
    manifest, runtime = model.manifest, model.runtime
    return {
        "name": model.name,
        "version": model.version,
        "task": manifest.task,
        "description": manifest.description,
        "provider": runtime.provider,
        "device": runtime.requested,
        "precision": model.graph.precision,
        **({"precision_note": model.precision_note} if model.precision_note else {}),
        **({"fallback": runtime.fallback} if runtime.fallback else {}),
    }


def describe_model(model: Model) -> dict[str, Any]:
    """A model with all that its manifest says, what its task says of it, and how this server runs it."""
    manifest, limits, tuning = model.manifest, model.limits, model.tuning
    description = {
        **summarize_model(model),
        "licence": manifest.licence,
        "graph": model.graph.model_dump(exclude_none=True),
        "inputs": [tensor.model_dump() for tensor in manifest.inputs],
        "outputs": [tensor.model_dump() for tensor in manifest.outputs],
        "recurrent_state": [pair.model_dump() for pair in manifest.state],
        "streaming": (
            {"can_stream": True, "state_bytes": model.state_bytes}
            if model.can_stream
            else {"can_stream": False, "reason": model.why_not_streaming}
        ),
        "training": manifest.training.model_dump(exclude_none=True),
        "batching": {
            "max_batch_size": limits.max_batch_size,
            "max_padded_steps": limits.max_padded_steps,
            "max_queue_size": limits.max_queue_size,
            "max_queue_delay_ms": limits.max_queue_delay_s * 1000,
            "num_workers": model.options.num_workers,
            "latency_target_ms": model.options.latency_target_ms,
            "cost": asdict(limits.cost) | {"is_measured": tuning is not None},
        },
    }
    if tuning is not None:
        best = tuning.best
        description["batching"]["best"] = {
            "rows": best.rows,
            "steps": best.steps,
            "ms": round(best.ms, 4),
            "rows_per_s": round(best.rows_per_s),
        }
    if model.sampler is not None:
        description["drift"] = model.sampler.describe()
    elif model.options.watches(model.name):
        description["drift"] = {"reason": "its manifest has no statistics of the training part"}
    if about_task := model.describe_task():
        description[manifest.task] = about_task
    return description


def describe_tensors(model: Model) -> dict[str, Any]:
    """The public tensors of a model, as the metadata of the Open Inference Protocol: -1 is an open axis.

    An input of one value per row is described as a column, [-1, 1]: Triton's perf_analyzer knows no row without axes.
    """
    tensors, is_batched = model.public_tensors, model.is_batched
    return {
        "inputs": [_describe_tensor(spec, _column(spec.shape) if is_batched else spec.shape[1:]) for spec in tensors.inputs],
        "outputs": [_describe_tensor(spec, spec.shape if is_batched else spec.shape[1:]) for spec in tensors.outputs],
    }


def describe_config(model: Model, max_rows: int) -> dict[str, Any]:
    """A model as Triton's model configuration, as far as clients read it; `max_rows` is what one request may hold."""
    tensors, limits = model.public_tensors, model.limits

    def dims(shape: Shape) -> list[int]:
        return [size if isinstance(size, int) else -1 for size in shape[1:]]

    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_rows if model.is_batched else 0,
        "input": [
            {
                "name": spec.name,
                "data_type": _config_datatype(spec),
                "dims": dims(_column(spec.shape) if model.is_batched else spec.shape),
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": model.signature.may_lack(spec.name),
            }
            for spec in tensors.inputs
        ],
        "output": [
            {"name": spec.name, "data_type": _config_datatype(spec), "dims": dims(spec.shape), "is_shape_tensor": False}
            for spec in tensors.outputs
        ],
        "instance_group": [
            {
                "name": model.name,
                "kind": "KIND_CPU" if model.runtime.provider == CPU else "KIND_GPU",
                "count": model.options.num_workers,
            }
        ],
        "dynamic_batching": {
            "preferred_batch_size": [limits.max_batch_size],
            "max_queue_delay_microseconds": round(limits.max_queue_delay_s * 1e6),
        },
        "default_model_filename": model.graph.file,
        "parameters": {},
    }


def _column(shape: Shape) -> Shape:
    return (*shape, 1) if len(shape) == 1 else shape


def _describe_tensor(spec: TensorSpec, shape: Shape) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [size if isinstance(size, int) else -1 for size in shape]}


def _config_datatype(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
