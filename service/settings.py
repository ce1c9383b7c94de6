"""What an operator can set: one field per `SLUICE_*` name, with its help text.

A new setting is one field of `Settings`: the command line, `settings_table` and the check for misspelt names follow from it.
Decides nothing; `__main__` and `app` hand the values on as arguments.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from service.errors import StartError

PREFIX = "SLUICE_"
# Names of training and tests: the folder of the public data sets.
OTHER_NAMES = frozenset({"SLUICE_DATA"})
# Kubernetes sets variables for every service in every container: for a service named `sluice` SLUICE_SERVICE_HOST,
# SLUICE_PORT_8000_TCP_ADDR and the like, and a SLUICE_PORT that is a URL.
SERVICE_LINK = re.compile(r"SLUICE_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|SLUICE_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.*")
# A path without placeholders.
ROUTE = r"^(/[A-Za-z0-9._:-]+)+$"
# What hosts of containers set → the setting whose default it is. Such a host connects from outside.
PLATFORM_NAMES = {
    "AIP_HTTP_PORT": "port",
    "AIP_PREDICT_ROUTE": "vertex_predict_route",
    "AIP_HEALTH_ROUTE": "vertex_health_route",
    "SAGEMAKER_BIND_TO_PORT": "port",
}

PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,127}):(?P<version>latest|[1-9][0-9]{0,8})")


class SettingsError(StartError):
    """A `SLUICE_*` name that does not exist, or a value that it cannot have."""

    code = "settings_error"


def parse_versions(text: str) -> dict[str, frozenset[str]]:
    """The pins of `name:2,other:latest`; a model with several versions stands there several times. Raises ValueError."""
    pins: dict[str, set[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = PIN.fullmatch(part)
        if found is None:
            raise ValueError(f'"{part[:200]}" is no pin: expected name:2 or name:latest')
        pins.setdefault(found["name"], set()).add(found["version"])
    for name, versions in pins.items():
        if "latest" in versions and len(versions) > 1:
            raise ValueError(f"{name} is pinned to latest and to numbers")
    return {name: frozenset(versions) for name, versions in pins.items()}


class Settings(BaseSettings):
    """Every setting with its default and its bounds. Made by `read_settings`, or by keyword in tests."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # What is served, and where.
    models: Path = Field(
        default=Path("models"),
        description="The folder that holds the model folders, or one model (`1/` in it), or one version (`manifest.json` or "
        "`model.onnx` in it). Several have `:` between them, on Windows `;`.",
    )
    model_control: Literal["none", "poll", "explicit"] = Field(
        default="none",
        description="How models change while the server runs. `none`: they do not. `poll`: as the folders do. `explicit`: by "
        "`POST /models/{name}/load` and `/unload`. See docs/how-to/update-a-model.md.",
    )
    load_models: str = Field(
        default="",
        description="With `SLUICE_MODEL_CONTROL=explicit`, the models that are loaded at the start, with commas between them; "
        "`*` for all. Empty: none.",
    )
    poll_seconds: float = Field(
        default=5.0,
        ge=0.1,
        le=86_400,
        description="With `SLUICE_MODEL_CONTROL=poll`, how often the folders are looked at. What has changed is loaded once two "
        "looks find the same.",
    )
    versions: str = Field(
        default="",
        description="Versions that are served of a model, as `name:2,other:latest`; `latest` is the highest that is valid. Of "
        "models that are not named, all are.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; `0.0.0.0` listens on every interface.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 chooses a free one.")
    strict_readiness: bool = Field(
        default=True,
        description="`/health/ready` is 200 when every model folder is READY. `false`: when at least one is.",
    )
    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port that serves `/metrics`, which the main port then does not. 0: the main port.",
    )
    playground: bool = Field(
        default=True,
        description="Whether `/play` is there, a page that shows the answers of models in the browser. It calls the public API "
        "alone, with the key that its user enters. See docs/how-to/playground.md.",
    )
    vertex_predict_route: str | None = Field(
        default=None,
        pattern=ROUTE,
        description="Route that also answers predictions as Vertex AI sends them. Empty: what AIP_PREDICT_ROUTE says, or none.",
    )
    vertex_health_route: str | None = Field(
        default=None,
        pattern=ROUTE,
        description="Route that also says whether the server is ready. Empty: what AIP_HEALTH_ROUTE says, or none.",
    )

    # Which model answers a request that names none.
    default_forecast_model: str | None = Field(
        default=None,
        description="Model of `/predict/forecast` when a request names neither a model nor a frequency. Empty: the only one that "
        "fits; where several do, 409.",
    )
    default_sentiment_model: str | None = Field(
        default=None,
        description="Model of `/predict/sentiment` when a request names none. Empty: the only one that classifies sentiment; "
        "of several, a Chinese one for Chinese characters and another one else; where several fit, 409.",
    )

    # Processes and threads.
    workers: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Server processes that share the port and, on Linux without a GPU, the models in memory. 0: one per core of "
        "this machine or container, if there are 128 MiB of memory for each; 1 where models cannot be shared.",
    )
    pin_workers: bool = Field(
        default=False,
        description="Pin each of several processes to cores of its own (Linux). Faster on a machine that does nothing else; "
        "where other programs use the same cores, a pinned process cannot move to free ones.",
    )
    num_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads that run one model's graph, per process. 0: the cores of this machine or container, divided by the "
        "processes.",
    )
    fast_path: bool = Field(
        default=True,
        description="Answer simple requests to predict directly from the HTTP parser, without ASGI. `false`: every request takes "
        "the regular path through uvicorn, slower and with the same answers; so it is in any case with a version of uvicorn that "
        "the fast path was not tested with.",
    )

    # What runs graphs.
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        default="auto",
        description="Device that runs graphs. With `cuda` and `tensorrt` the server does not start without a usable GPU; `auto` "
        "uses CUDA if it is available and passes the device check. The log, `GET /models` and the metrics name the provider in "
        "use. See docs/how-to/gpu.md.",
    )
    device_id: int = Field(default=0, ge=0, description="Index of the GPU, as CUDA counts them.")
    gpu_memory_limit_bytes: int = Field(
        default=0, ge=0, description="GPU memory that one model of one process may use. 0: no limit."
    )
    tensorrt_cache: Path | None = Field(
        default=None,
        description="Folder that keeps TensorRT's engines from one start to the next. Empty: each start builds them.",
    )
    precision: Literal["auto", "fp32", "int8"] = Field(
        default="auto",
        description="Which graph of a folder runs. `auto` chooses the int8 graph where its measured loss is within the bound in "
        "the manifest; `int8` chooses it wherever there is one. Both keep fp32 where there is none, and on a GPU; the log and "
        "`GET /models` give the choice and its reason.",
    )

    load_timeout_ms: float = Field(
        default=30_000.0,
        gt=0,
        le=3_600_000,
        description="Time to open and verify one model folder, with its example and the measuring of its graph; beyond it the "
        "model is UNAVAILABLE.",
    )
    load_memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Memory that verifying one model folder may take; beyond it the model is UNAVAILABLE. 0: half of what this "
        "machine or container has.",
    )

    process_memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Memory that one process may take beyond what it has when its models are loaded. A run of a graph for which "
        "that is not enough fails with 500; one of several processes that keeps more for 10 s finishes its requests and is "
        "replaced. 0: an equal share of this machine's or container's memory, or 1 GiB if that is more.",
    )

    # How rows become batches.
    latency_target_ms: float = Field(
        default=50.0,
        gt=0,
        le=60_000,
        description="Time that one batch may take, by the cost of the graph as measured at load: batches are bounded by it. A "
        "request waits for about one running batch and its own. Where the longest row alone takes more than half of it: twice "
        "the time of that row.",
    )
    max_batch_size: int = Field(
        default=0,
        ge=0,
        le=65536,
        description="Rows of a batch at most. 0: chosen from the measured cost of the graph and the latency target.",
    )
    max_padded_steps: int = Field(
        default=0,
        ge=0,
        description="Time steps of a batch at most, padding included: rows times the longest row. 0: chosen as the rows are.",
    )
    max_queue_delay_ms: float = Field(
        default=0.0, ge=0, le=60_000, description="Time that a batch waits for more rows. 0: it runs as soon as a thread is free."
    )

    # What one request, or all that wait, may use.
    max_queue_size: int = Field(
        default=1024, ge=1, description="Rows that may wait for one model; beyond them a request gets 503 at once."
    )
    request_timeout_ms: float = Field(
        default=10_000.0,
        gt=0,
        description="Time to answer a request once its body has arrived; after it, 504. A graph that runs three times as long, "
        "and 5 s at least, is stopped, and its model UNAVAILABLE from then on.",
    )
    max_pending_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1,
        description="Bytes of bodies that one process has admitted and not answered, at most; beyond them, 503.",
    )
    max_body_bytes: int = Field(
        default=2 * 1024 * 1024,
        ge=1,
        description="Bytes of a request body at most. The process answers nothing else while one is read: 2 MB take about 10 ms.",
    )
    max_json_values: int = Field(
        default=1_000_000,
        ge=1,
        description="JSON values of a request body beyond 64 KB at most, by its commas; a list or an object counts as 10, a key "
        "as 20, as they take that much longer to read.",
    )
    max_instances: int = Field(default=10_000, ge=1, description="Instances of a request at most.")
    max_horizon_multiple: int = Field(
        default=10, ge=1, description="Longest forecast, in horizons of its model; beyond one, forecasts are fed back as history."
    )

    # Drift.
    drift_models: str = Field(
        default="",
        description="The models whose drift is measured, with commas between them; `*` for all. Their manifests need "
        "statistics of the training part. Empty: none. See docs/how-to/drift.md.",
    )
    drift_window_seconds: float = Field(
        default=3600.0,
        ge=60,
        le=31_536_000,
        description="The sliding window of what is compared with the training part; it slides in steps of a twelfth of it.",
    )

    # Sequences that go on from one request to the next.
    state_key_file: Path | None = Field(
        default=None,
        description="The file with the keys that sign the states which clients carry from one request to the next (HMAC-SHA256): "
        "one per line, of at least 32 characters; the first signs, each verifies, so that keys can be changed. It is read again "
        "when it changes. Empty: states are not signed, and whoever carries one can change it. See docs/streams.md.",
    )
    sequence_store: str = Field(
        default="local",
        pattern=r"^(local|(redis|rediss|unix)://.+)$",
        description="Where the states of sequences are kept. `local`: in the memory of this server, for all of its processes. "
        "The URL of a Redis, as `redis://host:6379/0`: there, for all servers that name it; needs the extra `redis`.",
    )
    sequence_ttl_seconds: float = Field(
        default=3600.0,
        ge=0.1,
        le=31_536_000,
        description="A sequence without a step for so long ends.",
    )
    sequence_max: int = Field(
        default=100_000,
        ge=1,
        description="Sequences whose states are kept at most. Beyond them one ends of the API key that has most: that which was "
        "not used for longest.",
    )
    sequence_max_bytes: int = Field(
        default=256 * 1024 * 1024,
        ge=1024,
        description="Bytes of all states that are kept at most. Beyond them a sequence ends of the API key that has most: that "
        "which was not used for longest.",
    )

    # What a connection may take.
    max_connections: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Connections of one process at most, and fewer where it may open fewer files. A new one beyond them takes "
        "the place of an idle one; where none is idle it gets 503 and is closed.",
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="A connection without a request for so long is closed. Longer than the idle time of a load balancer in "
        "front, or it sends requests to connections that are just being closed.",
    )
    header_timeout_ms: float = Field(
        default=10_000.0,
        gt=0,
        le=3_600_000,
        description="Time from the first byte of a request to the end of its headers; then 408, and the connection is closed.",
    )
    body_timeout_ms: float = Field(
        default=10_000.0,
        gt=0,
        le=3_600_000,
        description="Time for a request's body to arrive, and a second more for each 16 KB that did; after it, 408, and the "
        "connection is closed.",
    )
    websocket_idle_seconds: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="A WebSocket on which no message comes for so long is closed, with the state to go on from. An empty message "
        "counts; that the client answers pings is seen to besides. The first message has to come within "
        "SLUICE_BODY_TIMEOUT_MS.",
    )
    send_timeout_ms: float = Field(
        default=30_000.0,
        gt=0,
        le=3_600_000,
        description="A client that reads neither all that waits to be sent to it in this time nor 16 KB a second is closed.",
    )

    # How it ends.
    drain_seconds: float = Field(
        default=5.0,
        ge=0,
        le=3600,
        description="Seconds for which a server that is told to end (SIGTERM, SIGINT, SIGHUP) still accepts connections, and "
        "answers with `Connection: close`, while `/health/ready` is 503 so that balancers stop sending to it. Then it finishes "
        "what it has begun. A second signal ends it at once.",
    )

    # Who may send requests, and how.
    api_keys_file: Path | None = Field(
        default=None,
        description="The TOML file with the hashes of API keys (`sluice key` makes them); it is read again when it changes. "
        "Predictions and the list of models then need a key. Empty: nothing does. See docs/how-to/access.md.",
    )
    protect_operations: bool = Field(
        default=False,
        description="Whether metrics and health need a key with the scope `admin`, and the documentation pages any key. Needs "
        "SLUICE_API_KEYS_FILE.",
    )
    rate_limit: str | None = Field(
        default=None,
        description="Requests that each key, or without keys each address, may send: `100/s`, `6000/min` or `100000/h`, as many "
        "at once and then evenly; beyond it they get 429. A key may have a rate of its own. Empty: no limit.",
    )
    trusted_proxies: str | None = Field(
        default=None,
        description="Networks and addresses of proxies, with commas between them, whose `X-Forwarded-For` says where a request "
        "comes from. Empty: the peer of the connection counts, whatever it claims.",
    )
    cors_origins: str | None = Field(
        default=None,
        description="Origins, with commas between them, whose pages may call this server from a browser, such as "
        "`https://app.example.com`; `*` for any. Empty: none.",
    )
    tls_certfile: Path | None = Field(
        default=None,
        description="The certificate chain (PEM) with which every port speaks HTTPS; it is read again when it changes. Empty: "
        "HTTP.",
    )
    tls_keyfile: Path | None = Field(
        default=None, description="The private key of the certificate (PEM). Empty: it stands in the file of the certificate."
    )
    tls_key_password_file: Path | None = Field(
        default=None, description="The file with the password of the private key. Empty: the key is not encrypted."
    )
    tls_handshake_timeout_ms: float = Field(
        default=10_000.0, gt=0, le=60_000, description="A client that has not finished the TLS handshake by then is disconnected."
    )

    # The log.
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest level that is logged.")
    log_format: Literal["text", "json"] = Field(default="text", description="Form of a log line: text, or one JSON object.")
    access_log: Literal["off", "text", "json"] = Field(
        default="off",
        description="A line on standard output for every request: its ids, client, model, rows, outcome and the time of each "
        "stage. See docs/how-to/observe.md.",
    )
    tracing: bool = Field(
        default=False,
        description="Send spans of requests to a collector (OpenTelemetry, by OTLP over HTTP). Needs the extra `otel`; the "
        "collector and the sampling are set by the variables `OTEL_…`. See docs/how-to/observe.md.",
    )

    @field_validator("versions")
    @classmethod
    def _check_versions(cls, value: str) -> str:
        parse_versions(value)
        return value

    @property
    def model_folders(self) -> list[Path]:
        """The folders of `models`, which are listed as in PATH."""
        return [Path(part) for part in str(self.models).split(os.pathsep) if part]

    @property
    def models_to_load(self) -> frozenset[str] | None:
        """The models that are loaded at the start; None for all."""
        if self.model_control != "explicit" or self.load_models.strip() == "*":
            return None
        return frozenset(filter(None, (name.strip() for name in self.load_models.split(","))))

    @property
    def models_to_watch(self) -> frozenset[str]:
        """The models whose drift is measured; `*` for all."""
        return frozenset(filter(None, (name.strip() for name in self.drift_models.split(","))))

    @property
    def version_pins(self) -> dict[str, frozenset[str]]:
        """Model → the versions that are served of it, or `latest`."""
        return parse_versions(self.versions)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: the environment is read by `read_settings`, which also refuses unknown names."""
        return (init_settings,)


def read_settings(environ: Mapping[str, str], **overrides: object) -> Settings:
    """Settings from `SLUICE_*` in `environ`, with `overrides` (field names) on top. An empty value means the default.

    Where `environ` is of a container of Vertex AI (`AIP_*`) or SageMaker (`SAGEMAKER_BIND_TO_PORT`), their port and routes are
    the defaults.

    Raises SettingsError that names the variable, what was found and, for an unknown name, which was probably meant.
    """
    known = {environment_name(field): field for field in Settings.model_fields}
    environ = {name: value for name, value in environ.items() if not _is_service_link(name, value)}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name not in OTHER_NAMES:
            meant = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), Settings.model_fields, n=1)
            hint = (
                f"; did you mean {environment_name(meant[0])}?" if meant else "; `python -m service settings` lists what there is"
            )
            raise SettingsError(f"{name} is not a setting{hint}", name=name)
    environ = _platform_defaults(environ) | {name: value for name, value in environ.items() if value != ""}
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in environ.items() if name in known and value != ""}
    values: dict[str, Any] = {**source(), **overrides}
    try:
        return Settings(**values)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        name = environment_name(field)
        raise SettingsError(f"{name}={first['input']}: {first['msg']}", name=name) from exc


def _platform_defaults(environ: Mapping[str, str]) -> dict[str, str]:
    """What Vertex AI or SageMaker set for the container that this server runs in, by the names of the settings."""
    given = {environment_name(field): environ[name] for name, field in PLATFORM_NAMES.items() if environ.get(name)}
    return {environment_name("host"): "0.0.0.0", **given} if given else {}


def _is_service_link(name: str, value: str) -> bool:
    return SERVICE_LINK.fullmatch(name) is not None or (name == "SLUICE_PORT" and SERVICE_URL.fullmatch(value) is not None)


def environment_name(field: str) -> str:
    """`max_batch_size` → `SLUICE_MAX_BATCH_SIZE`."""
    return PREFIX + field.upper()


def settings_table() -> str:
    """The configuration table in Markdown, as docs/reference/settings.md holds it."""
    lines = ["| Name | Default | What it does |", "|---|---|---|"]
    for field, about in Settings.model_fields.items():
        lines.append(f"| `{environment_name(field)}` | {_shown(about.default)} | {about.description} |")
    return "\n".join(lines) + "\n"


def _shown(default: object) -> str:
    if default is None:
        return "(none)"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"`{default}`" if isinstance(default, str | Path) else f"`{json.dumps(default)}`"
