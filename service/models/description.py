"""What `GET /models` and `GET /models/{name}` say of a model that is READY, as JSON values.

It stands here and not in `service/api`, which would have to be handed every one of these facts to say the same.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from service.models.model import Model


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
    if about_task := model.describe_task():
        description[manifest.task] = about_task
    return description
