"""What `sluice score` does once its arguments are read: loads the model, runs, shows how far it is, says what became of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from service.errors import RequestError
from service.models.folder import ModelOptions
from service.scoring.folders import Engine, FolderRun, score_folder
from service.scoring.progress import ProgressDisplay
from service.scoring.run import TooManyRejected, score_file
from service.tasks.tables import TableError, TableOptions

FAILED = 1


def score(
    model_name: str,
    folders: Sequence[Path],
    make_options: Callable[[], ModelOptions],
    input_path: Path,
    output_path: Path,
    *,
    columns: Mapping[str, str],
    parameters: Mapping[str, object],
    keep: Sequence[str],
    overwrite: bool,
    max_rejected: int | None,
    engine: Engine,
) -> int:
    """The exit status: 0, or 1 where nothing could be scored, or not all to its end. Raises StartError without a model.

    `make_options` can be named in another process, where `engine` is "ray".
    """
    table = TableOptions(columns, parameters, keep)
    run = FolderRun(model_name, folders, make_options, table, output_path, overwrite, max_rejected)
    try:
        with ProgressDisplay() as display:
            if input_path.is_dir():
                summary = score_folder(run, input_path, engine, display.show)
            elif engine != "local":
                raise TableError(f"--engine {engine} scores folders, file by file: {input_path} is none")
            else:
                summary = score_file(
                    run.open_model(),
                    input_path,
                    output_path,
                    table,
                    overwrite=overwrite,
                    max_rejected=max_rejected,
                    show=display.show,
                )
    except (TableError, RequestError, TooManyRejected) as exc:
        print(f"sluice: {exc.message}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("sluice: stopped; the same command goes on from here", file=sys.stderr)
        return FAILED
    ending = ", resumed" if summary.is_resumed else ""
    print(f"{summary.num_records} scored, {summary.num_rejected} rejected, {summary.duration_s:.1f} s{ending}")
    if summary.num_records:
        print(f"predictions  {output_path}")
    if summary.num_rejected:
        print(f"rejected     {output_path / '*' if input_path.is_dir() else output_path}.rejected.ndjson")
    return 0 if summary.num_records or not summary.num_rejected else FAILED
