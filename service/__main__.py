"""The command line of the server: `python -m service`.

Reads the environment, and hands everything on as arguments; an error is one line that names its remedy.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service import __version__
from service.api.access.keys import SCOPES, describe_entry, new_key
from service.errors import RestartReason, ServiceError, StartError
from service.files import find_readers
from service.observability.logs import escape_controls, set_up_logs
from service.process.machine import (
    can_fork,
    default_memory_per_process,
    default_workers,
    disable_tokenizer_threads,
    limit_blas_threads,
    memory_bytes,
    num_cores,
    threads_per_worker,
)
from service.process.memory import configure_malloc
from service.process.shared_folder import shared_folder
from service.process.supervisor import CANNOT_START, Supervisor, signals_to_handle
from service.settings import Settings, environment_name, read_settings, settings_table

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from service.models.scanning import ModelVersion
    from service.models.verification import Verdict, Verification

# The settings that matter to a run without a server.
SCORE_SETTINGS = ("models", "device", "num_threads", "precision")
# The settings that name files which nobody else should read.
SECRET_FILES = ("api_keys_file", "state_key_file", "tls_keyfile", "tls_key_password_file")
# Each verifies one folder after the other.
MAX_VERIFIERS = 4
# Read by prometheus_client when it is imported, so it must be set before service.observability.prometheus is imported.
METRICS_DIR_NAME = "PROMETHEUS_MULTIPROC_DIR"

log = logging.getLogger("service")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for findings, 2 for a wrong command line, 3 when it cannot start."""
    args = _parser().parse_args(_with_default_command(list(sys.argv[1:] if argv is None else argv)))
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
    check = commands.add_parser("check", help="verify model folders, and list what is wrong with each")
    check.set_defaults(run=_check)
    check.add_argument(
        "folder",
        type=Path,
        help="a version (models/<name>/<version>), a model with its versions, or the models folder",
    )
    score = commands.add_parser("score", help="score a file of rows or series with a model, without a server")
    score.set_defaults(run=_score)
    score.add_argument("model", help="its name, with :VERSION behind it where not the highest is meant, or its folder")
    score.add_argument("input", type=Path, help="a file in .parquet, .csv, .tsv or .ndjson (these three also .gz), or a folder")
    score.add_argument("output", type=Path, help="where predictions go: a file in one of these formats, or a folder")
    score.add_argument(
        "--column", action="append", default=[], metavar="COLUMN=NAME", help="what the file calls a column; may be repeated"
    )
    score.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="as in requests, horizon=24; may be repeated"
    )
    score.add_argument("--keep", action="append", default=[], metavar="NAME", help="a column to copy; may be repeated [none]")
    score.add_argument("--max-rejected", type=int, metavar="N", help="stop when more cannot be scored [any number may]")
    score.add_argument("--overwrite", action="store_true", help="replace the output where it is there")
    engines = ("local", "ray")
    score.add_argument("--engine", choices=engines, default="local", help="who scores the files of a folder [local]")
    for field in SCORE_SETTINGS:
        text = f"{Settings.model_fields[field].description} [{environment_name(field)}]".replace("%", "%%")
        score.add_argument(f"--{field.replace('_', '-')}", metavar="VALUE", help=text)
    key = commands.add_parser("key", help="make an API key, and its entry for the keys file")
    key.set_defaults(run=_key)
    key.add_argument("name", help="of its holder, as logs and metrics call it")
    key.add_argument("--scope", action="append", choices=SCOPES, help="what it opens; may be repeated [predict]")
    key.add_argument("--model", action="append", default=[], help="a model that it may use; may be repeated [all]")
    key.add_argument("--expires", type=datetime.date.fromisoformat, metavar="DATE", help="the first day without it [never]")
    key.add_argument("--rate-limit", metavar="RATE", help='its own rate, such as 100/s, or "none" [SLUICE_RATE_LIMIT]')
    settings = commands.add_parser("settings", help="print every setting as a table in Markdown")
    settings.set_defaults(run=_settings)
    return parser


def _with_default_command(argv: list[str]) -> list[str]:
    """The arguments with `serve` in front where they name no command."""
    if argv and (not argv[0].startswith("-") or argv[0] in ("-h", "--help", "--version")):
        return argv
    return ["serve", *argv]


# -------------------------------------------------------------------------------------------- check, key, settings


def _key(args: argparse.Namespace) -> int:
    key = new_key()
    scopes = args.scope or ["predict"]
    entry = describe_entry(key, args.name, scopes=scopes, models=args.model, expires=args.expires, rate_limit=args.rate_limit)
    # So that `>> keys.toml` takes the entry and leaves the key on the terminal.
    print(f"The key of {args.name}, which is shown this once:\n\n  {key}\n\nIts entry for the keys file:\n", file=sys.stderr)
    print(entry)
    return 0


def _settings(_: argparse.Namespace) -> int:
    print(settings_table(), end="")
    return 0


def _check(args: argparse.Namespace) -> int:
    from service.models.loading import check_folder
    from service.runtime.onnx_runtime import require_runtime

    require_runtime()
    folder: Path = args.folder
    if not folder.is_dir():
        raise StartError(f"there is no folder {folder}")
    num_findings = 0
    for version in _folders_to_check(folder):
        findings = check_folder(version)
        num_findings += len(findings)
        print(f"{version}: {_count_text(len(findings))}")
        for finding in findings:
            print(f"  {escape_controls(finding)}")
    return 1 if num_findings else 0


def _folders_to_check(folder: Path) -> list[Path]:
    """The folder itself, its versions, or the versions of every model in it; a model without one stands for itself."""
    if (folder / "manifest.json").exists():
        return [folder]
    if versions := _versions(folder):
        return versions
    models = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    if not any(map(_versions, models)):
        return [folder]
    return [version for model in models for version in _versions(model) or [model]]


def _versions(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()), key=lambda path: int(path.name))


def _count_text(num_findings: int) -> str:
    return {0: "ok", 1: "1 finding"}.get(num_findings, f"{num_findings} findings")


# ------------------------------------------------------------------------------------------------------------ score


def _score(args: argparse.Namespace) -> int:
    given = {field: value for field in SCORE_SETTINGS if (value := getattr(args, field)) is not None}
    settings = read_settings(os.environ, **given)
    columns = dict(_split_pair(pair, "--column") for pair in args.column)
    parameters = {name: _read_value(value) for name, value in (_split_pair(pair, "--parameter") for pair in args.parameter)}
    set_up_logs(settings.log_level, settings.log_format)
    limit_blas_threads(os.environ)  # before numpy is imported
    disable_tokenizer_threads(os.environ)
    configure_malloc()
    try:
        from service.scoring.command import score
    except ImportError as exc:
        raise StartError(
            f"scoring files needs more than the service does ({exc}): pip install 'sluice-serving[cpu,score]'"
        ) from exc
    from service.app import model_options

    return score(
        args.model,
        settings.model_folders,
        functools.partial(model_options, settings.model_copy(update={"workers": 1})),
        args.input,
        args.output,
        columns=columns,
        parameters=parameters,
        keep=args.keep,
        overwrite=args.overwrite,
        max_rejected=args.max_rejected,
        engine=args.engine,
    )


def _split_pair(pair: str, option: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not separator or not name:
        raise StartError(f"{option} {pair}: expected NAME=VALUE")
    return name, value


def _read_value(text: str) -> object:
    """A value as JSON has it; what is no JSON is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# ------------------------------------------------------------------------------------------------------------ serve


def _serve(args: argparse.Namespace) -> int:
    given = {field: value for field in Settings.model_fields if (value := getattr(args, field)) is not None}
    settings = read_settings(os.environ, **given)
    set_up_logs(settings.log_level, settings.log_format)
    for folder in settings.model_folders:
        if not folder.is_dir():
            raise StartError(f"there is no models folder {folder}; SLUICE_MODELS is its path")
    _warn_of_readable_secrets(settings)
    limit_blas_threads(os.environ)  # before numpy is imported
    disable_tokenizer_threads(os.environ)
    configure_malloc()
    from service.runtime.onnx_runtime import may_use_gpu

    shares_models = can_fork() and not may_use_gpu(settings.device)
    # By default there are several processes only where they share the models. A GPU runs one large batch faster than several
    # small ones, too.
    workers = settings.workers or (default_workers(num_cores(), memory_bytes()) if shares_models else 1)
    threads = settings.num_threads or threads_per_worker(num_cores(), workers)
    max_bytes = settings.process_memory_bytes or default_memory_per_process(memory_bytes(), workers)
    settings = settings.model_copy(update={"workers": workers, "num_threads": threads, "process_memory_bytes": max_bytes})
    if settings.model_control != "none" and not hasattr(socket, "AF_UNIX"):
        raise StartError("SLUICE_MODEL_CONTROL needs Unix sockets, which this system has not")
    if workers == 1 and settings.model_control == "none":
        os.environ.pop(METRICS_DIR_NAME, None)
        return _serve_alone(settings)
    for number in signals_to_handle():
        signal.signal(number, lambda *_: sys.exit(0))  # nothing serves yet, but there is a folder to remove
    with shared_folder("sluice-metrics-", Path(tempfile.gettempdir())) as folder:
        os.environ[METRICS_DIR_NAME] = str(folder)
        return _serve_with_workers(settings, folder, shares_models=shares_models)


def _warn_of_readable_secrets(settings: Settings) -> None:
    """A warning and no refusal: secrets are often mounted so, where nobody else is on the machine."""
    if not hasattr(os, "geteuid"):
        return  # Windows has other rights
    for field in SECRET_FILES:
        path: Path | None = getattr(settings, field)
        if path is not None and (readers := find_readers(path, os.geteuid())):
            log.warning(
                "a file of keys can be read by others than the server: mode 0600 is for it alone",
                extra={"setting": environment_name(field), "file": str(path), "readers": readers},
            )


def _serve_alone(settings: Settings) -> int:
    from service.server import Service

    with _verification(settings) as verification:
        sockets, url = _listen(settings)
        service = Service(settings, url, verification=verification, max_bytes=_max_bytes(settings))
        return service.serve(sockets, on_loaded=print_line)


def _max_bytes(settings: Settings) -> int | None:
    """What the address space of a process is bounded by; a GPU's driver takes far more of it than there is memory."""
    from service.runtime.onnx_runtime import may_use_gpu

    return None if may_use_gpu(settings.device) else settings.process_memory_bytes


@contextlib.contextmanager
def _verification(settings: Settings, entries: Sequence[ModelVersion] | None = None) -> Iterator[Verification | None]:
    """These versions, None: all, are verified beside, by a process that is forked now; None where that cannot be."""
    from service.app import model_options
    from service.models.verification import Verification, verify_folders, verify_versions
    from service.process.sandbox import run_beside, run_in_children

    if not can_fork():
        log.warning("graphs are verified in the server itself: one that never ends would keep it from starting")
        yield None
        return
    run = functools.partial(
        run_in_children,
        num_children=min(MAX_VERIFIERS, max(2, num_cores())),
        timeout_s=settings.load_timeout_ms / 1000,
        memory_bytes=settings.load_memory_bytes or memory_bytes() // 2,
    )
    options = model_options(settings)

    def verify(sender: Connection) -> None:
        if entries is None:
            verify_folders(settings.model_folders, options, run, sender.send, settings.version_pins)
        else:
            verify_versions(entries, options, run, sender.send)

    process, receiver = run_beside(verify)

    def kill() -> None:
        process.kill()
        process.join()

    verification = Verification(receiver, kill=kill)
    try:
        yield verification
    finally:
        verification.stop()


def _serve_with_workers(settings: Settings, metrics_dir: Path, *, shares_models: bool) -> int:
    from service.api.access.wiring import make_rate_tables
    from service.app import access_options, model_options, share_sequences
    from service.controlling import preload_state, run_controller, socket_path
    from service.models.preloading import preload_folders
    from service.models.verification import Verification
    from service.observability.prometheus import forget_worker, restart_counter
    from service.server import Service, grace_s, run_worker

    class Observer:
        count_restart = staticmethod(restart_counter())

        def loaded(self, report: str) -> None:
            print_line(report)

        def died(self, pid: int) -> None:
            forget_worker(pid, metrics_dir)

        def replaced(self, reason: RestartReason) -> None:
            self.count_restart(reason)

    sockets, url = _listen(settings)
    build = functools.partial(Service, settings, url, metrics_dir=metrics_dir, max_bytes=_max_bytes(settings))
    service = preload = verification = None
    companions = []
    if settings.model_control != "none":
        copies = metrics_dir / "models"
        copies.mkdir(mode=0o700)

        def verify(entries: Sequence[ModelVersion]) -> dict[tuple[str, str], Verdict] | None:
            with _verification(settings, entries) as verification:
                return None if verification is None else verification.collect()

        state, preload = preload_state(settings, copies, verify, opens_graphs=shares_models)
        companions.append(functools.partial(run_controller, settings, copies, state))
        build = functools.partial(build, control_path=socket_path(copies))
    else:
        with _verification(settings) as verification:
            if shares_models:
                options = model_options(settings)
                preload = preload_folders(settings.model_folders, options, verification=verification, pins=settings.version_pins)
            elif verification is not None:
                verification = Verification(known=verification.collect())
    may_stream = settings.model_control != "none" or preload is None or preload.can_stream
    if settings.sequence_store == "local" and settings.workers > 1 and may_stream:
        build = functools.partial(build, sequence_memory=share_sequences(settings, metrics_dir))
    if shares_models:
        rates = make_rate_tables(access_options(settings), multiprocessing.get_context("fork"))
        service = build(preload=preload, rates=rates)
        forget_worker(os.getpid(), metrics_dir)  # its gauges are those of a process that serves nothing
        if not can_fork():
            log.warning("every worker loads the models for itself: a library has started threads, which rules out a fork")
            service = None
    if service is None:
        rates = make_rate_tables(access_options(settings), multiprocessing.get_context("spawn"))
        build = functools.partial(build, rates=rates, verification=verification)
    return Supervisor(
        functools.partial(run_worker, settings, service or build),
        sockets,
        settings.workers,
        observer=Observer(),
        companions=companions,
        forks=service is not None,
        drain_s=settings.drain_seconds,
        grace_s=grace_s(settings) + 5,
        max_bytes=settings.process_memory_bytes,
    ).run()


def _listen(settings: Settings) -> tuple[list[socket.socket], str]:
    """The sockets of both ports, and where the main one answers. Raises StartError when they cannot be had."""
    from service.server import listen

    sockets = [listen(settings.host, settings.port, "SLUICE_PORT")]
    if settings.metrics_port:
        sockets.append(listen(settings.host, settings.metrics_port, "SLUICE_METRICS_PORT"))
    url = _url("http" if settings.tls_certfile is None else "https", settings.host, sockets[0].getsockname()[1])
    log.info("listening", extra={"url": url, "workers": settings.workers, "threads": settings.num_threads})
    return sockets, url


def print_line(text: str) -> None:
    """Print to stdout, at once; the log goes to stderr."""
    print(text, flush=True)


def _url(scheme: str, host: str, port: int) -> str:
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{shown}:{port}"


if __name__ == "__main__":
    sys.exit(main())
