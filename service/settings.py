"""What an operator can set: one field per `SLUICE_*` name, with its help text.

Reads the environment it is given, and refuses names it does not know. Decides nothing; `__main__` and `app` hand the
values on as arguments.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from service.errors import StartError

PREFIX = "SLUICE_"
# Set beside ours for training and tests: where the public data sets lie.
NOT_OURS = frozenset({"SLUICE_DATA"})
# Kubernetes tells every container of every service: one that is named `sluice` becomes SLUICE_SERVICE_HOST,
# SLUICE_PORT_8000_TCP_ADDR and the like, and a SLUICE_PORT that is a URL.
SERVICE_LINK = re.compile(r"SLUICE_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|SLUICE_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.*")


class SettingsError(StartError):
    """A `SLUICE_*` name that does not exist, or a value that it cannot have."""

    code = "settings_error"


class Settings(BaseSettings):
    """Every setting with its default. Build it with `read_settings`, or by keyword in tests."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on; `0.0.0.0` for every interface.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Server processes that share the port and, on Linux without a GPU, the models in memory. 0: one per core of "
        "this machine or container, as far as there are 128 MiB of memory for each; where models cannot be shared, 1.",
    )
    models: Path = Field(default=Path("models"), description="The folder that holds the model folders.")
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        default="auto",
        description="Where graphs run. `cuda` and `tensorrt` refuse to start without a usable GPU; `auto` takes CUDA if it "
        "can be had and answers rightly, and says in the log, `GET /models` and the metrics what it took. "
        "See docs/how-to/gpu.md.",
    )
    device_id: int = Field(default=0, ge=0, description="Which GPU, counted as CUDA counts them.")
    gpu_memory_limit_bytes: int = Field(
        default=0, ge=0, description="What one model of one process may take of the GPU's memory. 0: as it needs."
    )
    tensorrt_cache: Path | None = Field(
        default=None,
        description="The folder that keeps TensorRT's engines from one start to the next. Empty: each start builds them anew.",
    )
    precision: Literal["auto", "fp32", "int8"] = Field(
        default="auto",
        description="Which graph of a folder runs. `auto` takes the int8 one where its measured loss is inside the bound that "
        "the manifest states; `int8` takes it wherever there is one. Both keep fp32 where there is none, and on a GPU; the log "
        "and `GET /models` say which it is, and why.",
    )
    latency_target_ms: float = Field(
        default=50.0,
        gt=0,
        le=60_000,
        description="How long one batch may take, by what the graph was measured to cost at load; batches are bounded so that "
        "it does, and a request waits for about one batch that runs and its own. Where the longest row alone takes more than "
        "half of it: twice that row's time.",
    )
    max_batch_size: int = Field(
        default=0,
        ge=0,
        le=65536,
        description="Rows that run together at most. 0: as many as the graph was measured to run well within the latency target.",
    )
    max_padded_steps: int = Field(
        default=0,
        ge=0,
        description="Time steps of a batch at most, padding included: rows times the longest row. 0: measured, as the rows are.",
    )
    max_queue_size: int = Field(
        default=1024, ge=1, description="Rows that may wait in front of one model; beyond it a request gets 503 at once."
    )
    max_queue_delay_ms: float = Field(
        default=0.0, ge=0, le=60_000, description="How long a batch waits for more rows. 0: it runs as soon as a thread is free."
    )
    request_timeout_ms: float = Field(
        default=10_000.0, gt=0, description="A request that cannot be answered in this time gets 504."
    )
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1, description="Bytes of one request body at most.")
    max_instances: int = Field(default=10_000, ge=1, description="Instances of one request at most.")
    max_horizon_multiple: int = Field(
        default=10, ge=1, description="How far beyond its own horizon a forecast may go, in horizons of the model."
    )
    num_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Threads that run one model's graph, per process. 0: the cores this machine or container has, divided by "
        "the processes.",
    )
    pin_workers: bool = Field(
        default=False,
        description="Keep each of several processes to cores of its own (Linux). Faster on a machine that does nothing else; "
        "where others use the same cores, a process cannot move out of their way.",
    )
    default_forecast_model: str | None = Field(
        default=None,
        description="Model of `/predict/forecast` when a request names none. Empty: the first forecasting model by name.",
    )
    default_sentiment_model: str | None = Field(
        default=None, description="Model of `/predict/sentiment` when a request names none. Empty: the first text model by name."
    )
    fast_path: bool = Field(
        default=True,
        description="Answer simple requests to predict directly from the HTTP parser, without ASGI. `false`: every request takes "
        "the regular path through uvicorn, as it does in any case with a version of uvicorn that was not tested. The answers are "
        "the same.",
    )
    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Serve `/metrics` on this port, and no longer on the main one. 0: on the main port.",
    )
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
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least level that is logged.")
    log_format: Literal["text", "json"] = Field(default="text", description="Log lines for people, or one JSON object per line.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: the environment enters through `read_settings`, which also refuses unknown names."""
        return (init_settings,)


def read_settings(environ: Mapping[str, str], **overrides: object) -> Settings:
    """Settings from `SLUICE_*` in `environ`, with `overrides` (field names) on top. An empty value means the default.

    Raises SettingsError that names the variable, what was found and, for an unknown name, which was probably meant.
    """
    known = {environment_name(field): field for field in Settings.model_fields}
    environ = {name: value for name, value in environ.items() if not _is_service_link(name, value)}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name not in NOT_OURS:
            meant = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), Settings.model_fields, n=1)
            hint = (
                f"; did you mean {environment_name(meant[0])}?" if meant else "; `python -m service settings` lists what there is"
            )
            raise SettingsError(f"{name} is not a setting{hint}", name=name)
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


def _is_service_link(name: str, value: str) -> bool:
    return SERVICE_LINK.fullmatch(name) is not None or (name == "SLUICE_PORT" and SERVICE_URL.fullmatch(value) is not None)


def environment_name(field: str) -> str:
    """`max_batch_size` → `SLUICE_MAX_BATCH_SIZE`."""
    return PREFIX + field.upper()


def settings_table() -> str:
    """The configuration table in Markdown, as the README holds it."""
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
