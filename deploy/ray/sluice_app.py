"""Sluice on Ray Serve: each replica is the whole app, with endpoints, batches and metrics of its own; Ray adds and removes them.

    serve run deploy.ray.sluice_app:sluice_app models=models
    serve deploy deploy/ray/serve.yaml

Ray's proxy stands where uvicorn does elsewhere: it reads requests and hands them to replicas, so that what Sluice does with its
own connections (the fast path, TLS, limits of connections, several processes) has no part here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from ray import serve

from service.api.gateway import Gateway
from service.app import create_app
from service.models.repository import Repository
from service.settings import Settings, read_settings

REPLICA_CPUS = 1.0
TARGET_ONGOING_REQUESTS = 8.0
"""Requests under way at a replica from which on Ray starts another one: enough for the batches of a core."""
MAX_ONGOING_REQUESTS = 64
"""Beyond them Ray sends requests to another replica, or has them wait; a replica's own queue stays short."""
PROBE_S = 2.0


class SluiceReplica:
    """The app of one replica, as Ray runs it: its start is over when its models are loaded."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings` are those of `read_settings`. Raises StartError and SettingsError, with which the deployment fails."""
        self._loaded = asyncio.Event()
        self._settings = read_settings({}, **settings)
        self._failure: Exception | None = None
        self.app: Gateway = create_app(self._settings, on_loaded=self._take, on_failed=self._fail)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI app. Its start is over when each model is READY or UNAVAILABLE: until then Ray sends no requests."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_when_loaded(message: Any) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self._loaded.wait()
                if self._failure is not None:
                    message = {"type": "lifespan.startup.failed", "message": str(self._failure)}
            await send(message)

        await self.app(scope, receive, send_when_loaded)

    def _take(self, _: Repository) -> None:
        self._loaded.set()

    def _fail(self, exc: Exception) -> None:
        self._failure = exc
        self._loaded.set()


def sluice_app(settings: Settings | Mapping[str, Any] | None = None) -> serve.Application:
    """The application that `serve.run` takes: `settings` as those of the server, by their names; None: the environment's alone.

    Beside them, of Ray: `min_replicas` (1), `max_replicas` (4), `num_cpus` of a replica (1). Settings that are left out are
    taken from the environment of the calling process, so that all replicas have the same.
    """
    given = settings.model_dump(exclude_unset=True) if isinstance(settings, Settings) else dict(settings or {})
    least = int(given.pop("min_replicas", 1))
    most = int(given.pop("max_replicas", max(4, least)))
    num_cpus = float(given.pop("num_cpus", REPLICA_CPUS))
    given.setdefault("num_threads", max(1, int(num_cpus)))
    # Read here too, so that a misspelt one fails before anything is deployed.
    values = read_settings(os.environ, **given).model_dump(exclude_unset=True)

    def build() -> SluiceReplica:
        return SluiceReplica(values)

    deployment = serve.deployment(
        name="sluice",
        ray_actor_options={"num_cpus": num_cpus},
        autoscaling_config={"min_replicas": least, "max_replicas": most, "target_ongoing_requests": TARGET_ONGOING_REQUESTS},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=PROBE_S,
        graceful_shutdown_timeout_s=values.get("request_timeout_ms", 10_000) / 1000 + 1,
    )
    return deployment(serve.ingress(build)()).bind()
