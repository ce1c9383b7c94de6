"""The command line: `python -m service`, or `sluice` once installed.

Reads the environment, says in plain words why it cannot start, and hands everything on as arguments.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from service import __version__
from service.errors import ModelNotFound, ModelNotReady, ServiceError, StartError
from service.logs import set_up_logs
from service.runtime import require_runtime
from service.settings import Settings, environment_name, read_settings, settings_table
from service.workers import CANNOT_START, Supervisor

if TYPE_CHECKING:
    from service.repository import Repository

# Read by prometheus_client when it is imported, so it must be settled before service.app is.
METRICS_DIR_NAME = "PROMETHEUS_MULTIPROC_DIR"
BACKLOG = 2048
# Longer than the 60 s after which load balancers drop idle connections, so that never we close one just as it is used.
KEEP_ALIVE_S = 75

log = logging.getLogger("service")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for findings, 2 for a wrong command line, 3 when it cannot start."""
    args = _parser().parse_args(_with_command(list(sys.argv[1:] if argv is None else argv)))
    try:
        status: int = args.run(args)
    except ServiceError as exc:
        print(f"sluice: {exc.message}", file=sys.stderr)
        return CANNOT_START
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sluice", description="Serve recurrent networks over REST.")
    parser.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    serve = commands.add_parser("serve", help="serve the models folder (the default)")
    serve.set_defaults(run=_serve)
    for field, about in Settings.model_fields.items():
        text = f"{about.description} [{environment_name(field)}]".replace("%", "%%")
        serve.add_argument(f"--{field.replace('_', '-')}", default=None, metavar="VALUE", help=text)
    check = commands.add_parser("check", help="say what is wrong with a model folder")
    check.set_defaults(run=_check)
    check.add_argument("folder", type=Path, help="models/<name>/<version>, or models/<name> for all its versions")
    settings = commands.add_parser("settings", help="list every setting, in Markdown")
    settings.set_defaults(run=_settings)
    return parser


def _with_command(argv: list[str]) -> list[str]:
    """`serve` where no command is named."""
    if argv and (not argv[0].startswith("-") or argv[0] in ("-h", "--help", "--version")):
        return argv
    return ["serve", *argv]


# ------------------------------------------------------------------------------------------------- check, settings


def _settings(_: argparse.Namespace) -> int:
    print(settings_table(), end="")
    return 0


def _check(args: argparse.Namespace) -> int:
    from service.model import check_folder

    require_runtime()
    folder: Path = args.folder
    if not folder.is_dir():
        raise StartError(f"there is no folder {folder}")
    versions = sorted((path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()), key=lambda p: int(p.name))
    num_findings = 0
    for version in [folder] if (folder / "manifest.json").exists() or not versions else versions:
        findings = check_folder(version)
        num_findings += len(findings)
        print(f"{version}: {'sound' if not findings else f'{len(findings)} findings'}")
        for finding in findings:
            print(f"  {finding}")
    return 1 if num_findings else 0


# ------------------------------------------------------------------------------------------------------------ serve


def _serve(args: argparse.Namespace) -> int:
    given = {field: value for field in Settings.model_fields if (value := getattr(args, field)) is not None}
    settings = read_settings(os.environ, **given)
    set_up_logs(settings.log_level, settings.log_format)
    if not settings.models.is_dir():
        raise StartError(f"there is no models folder {settings.models}; SLUICE_MODELS says where it lies")
    sockets = [listen(settings.host, settings.port, "SLUICE_PORT")]
    if settings.metrics_port:
        sockets.append(listen(settings.host, settings.metrics_port, "SLUICE_METRICS_PORT"))
    url = _url(settings.host, sockets[0].getsockname()[1])
    log.info("listening", extra={"url": url, "workers": settings.workers})
    if settings.workers == 1:
        os.environ.pop(METRICS_DIR_NAME, None)
        return serve_here(settings, sockets, on_ready=lambda try_it: _greet(url, try_it), url=url)
    with tempfile.TemporaryDirectory(prefix="sluice-metrics-") as folder:
        os.environ[METRICS_DIR_NAME] = folder
        from service.metrics import forget_worker

        return Supervisor(
            functools.partial(_work, settings, url, Path(folder)),
            sockets,
            settings.workers,
            on_ready=lambda try_it: _greet(url, try_it),
            on_death=lambda pid: forget_worker(pid, Path(folder)),
            grace_s=_grace_s(settings) + 5,
        ).run()


def serve_here(
    settings: Settings,
    sockets: Sequence[socket.socket],
    *,
    on_ready: Callable[[str], None],
    url: str,
    metrics_dir: Path | None = None,
) -> int:
    """Serve the sockets in this process until SIGTERM or SIGINT; requests that are being answered are finished.

    `on_ready` gets a command to try when every model is loaded.
    """
    from service.app import create_app

    failures: list[StartError] = []

    def failed(exc: StartError) -> None:
        failures.append(exc)
        server.should_exit = True

    app = create_app(
        settings,
        metrics_dir=metrics_dir,
        on_ready=lambda repository: on_ready(command_to_try(repository, url)),
        on_failed=failed,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(_grace_s(settings)),
        )
    )

    def end(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again when it is done; with this handler the process then ends with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server.run(list(sockets))
    if failures:
        raise failures[0]
    return 0


def _work(settings: Settings, url: str, metrics_dir: Path, sockets: Sequence[socket.socket], reports: Connection) -> None:
    """The life of one worker process."""
    set_up_logs(settings.log_level, settings.log_format)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        status = serve_here(settings, sockets, on_ready=reports.send, url=url, metrics_dir=metrics_dir)
    except ServiceError as exc:
        print(f"sluice: {exc.message}", file=sys.stderr)
        status = CANNOT_START
    sys.exit(status)


def _end_with_parent() -> None:
    """A worker whose parent was killed would hold the port for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises StartError that names the setting when the port is taken or the host is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        raise StartError(
            f"cannot listen on {host}:{port}: {exc.strerror or exc}; {setting} chooses another port, SLUICE_HOST the address"
        ) from exc


def command_to_try(repository: Repository, url: str) -> str:
    """One curl that these models answer."""
    curl = f"curl -s {url}"
    for task, door, instance in (
        ("classify", "sentiment", lambda _: '"A quiet, moving film."'),
        ("forecast", "forecast", _series),
    ):
        try:
            model = repository.default_for(task)
        except (ModelNotFound, ModelNotReady):
            continue
        forecast = model.manifest.forecast
        body = f'{{"instances": [{instance(forecast.min_length if forecast else 1)}]}}'
        return f"{curl}/predict/{door} -H 'Content-Type: application/json' -d '{body}'"
    return f"{curl}/models"


def _series(min_length: int) -> str:
    history = [round(10 + 3 * math.sin(2 * math.pi * hour / 24), 1) for hour in range(max(24, min_length))]
    return f'{{"history": {history}, "horizon": 6}}'


def _greet(url: str, try_it: str) -> None:
    print(f"Sluice {__version__} is ready: {url} (documentation at {url}/docs)\nTry it:\n  {try_it}", flush=True)


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _grace_s(settings: Settings) -> float:
    return settings.request_timeout_ms / 1000 + 1


if __name__ == "__main__":
    sys.exit(main())
