"""A folder of files, scored one by one: in this process, or by the processes of a Ray cluster. The only file that imports ray.

A file is the unit: the rows of a series lie in one file. A file whose output is there is done, since outputs appear whole; so is
one of which all was rejected, which has no output.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from service.models.folder import ModelOptions
from service.models.model import Model
from service.scoring.formats import SUFFIXES
from service.scoring.parts import is_done
from service.scoring.run import Show, Summary, find_model, score_file
from service.tasks.tables import TableError, TableOptions

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class FolderRun:
    """What is the same for all files; goes to other processes as it is."""

    model_name: str
    model_folders: Sequence[Path]
    make_options: Callable[[], ModelOptions]
    """Makes how the model is run where it is run: a function that can be named in another process."""
    options: TableOptions
    output: Path
    overwrite: bool = False
    max_rejected: int | None = None

    def open_model(self) -> Model:
        return find_model(self.model_name, self.model_folders, self.make_options())

    def score(self, model: Model, path: Path, show: Show = lambda *_: None) -> Summary:
        """Score one file. Raises what `score_file` raises."""
        return score_file(
            model,
            path,
            self.output / path.name,
            self.options,
            overwrite=self.overwrite,
            max_rejected=self.max_rejected,
            show=show,
        )


def score_folder(run: FolderRun, folder: Path, engine: Engine = "local", show: Show = lambda *_: None) -> Summary:
    """Score all files of a folder whose output is not there yet.

    With "ray" each process of the cluster loads the model once, and takes file after file; all nodes see both folders and the
    model. Raises TableError where there is no file to score, and what `score_file` raises for the first file that fails.
    """
    paths = list_files(folder)
    if run.output.exists() and run.output.samefile(folder):
        raise TableError(f"{run.output} is the input: the output needs a folder of its own")
    if run.output.exists() and not run.output.is_dir():
        raise TableError(f"{run.output} is a file: a folder of files is scored into a folder")
    run.output.mkdir(parents=True, exist_ok=True)
    todo = [path for path in paths if run.overwrite or not is_done(run.output / path.name)]
    num_records = num_rejected = 0
    started = time.monotonic()
    for number, summary in enumerate((_score_here if engine == "local" else _score_on_ray)(run, todo), 1):
        num_records += summary.num_records
        num_rejected += summary.num_rejected
        show(number / len(todo), num_records, num_rejected)
    return Summary(num_records, num_rejected, time.monotonic() - started, is_resumed=len(todo) < len(paths))


def list_files(folder: Path) -> list[Path]:
    """The files of a folder that can be scored, by name; what begins with `.` or `_` is not one."""
    names = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "_")))
    found = sorted(path for path in names if set(path.suffixes[-2:]) & SUFFIXES.keys() and path.suffix != ".gz")
    if not found:
        raise TableError(f"{folder} holds no file whose name ends in one of {sorted(SUFFIXES)}")
    return found


def _score_here(run: FolderRun, paths: Sequence[Path]) -> Iterator[Summary]:
    if paths:
        model = run.open_model()
        for path in paths:
            yield run.score(model, path)


def _score_on_ray(run: FolderRun, paths: Sequence[Path]) -> Iterator[Summary]:
    if not paths:
        return
    import ray.data

    files = ray.data.from_items([{"path": str(path)} for path in paths], override_num_blocks=len(paths))
    num_cpus = run.make_options().num_workers
    num_processes = max(1, min(len(paths), int(ray.cluster_resources().get("CPU", 1)) // num_cpus))
    scored = files.map_batches(
        _FileScorer, fn_constructor_args=(run,), batch_size=1, batch_format="numpy", concurrency=num_processes, num_cpus=num_cpus
    )
    for row in scored.iter_rows():
        if row["error"]:
            raise TableError(str(row["error"]))
        yield Summary(int(row["num_records"]), int(row["num_rejected"]), float(row["duration_s"]))


class _FileScorer:
    """One process of the cluster: a model, and file after file."""

    def __init__(self, run: FolderRun) -> None:
        self._run = run
        self._model = run.open_model()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"num_records": [], "num_rejected": [], "duration_s": [], "error": []}
        for path in batch["path"]:
            try:
                found, error = self._run.score(self._model, Path(str(path))), ""
            except Exception as exc:  # what is raised here would arrive as Ray's own, with a trace of its processes
                found, error = Summary(0, 0, 0.0), f"{path}: {exc}"
            for name, value in (("num_records", found.num_records), ("num_rejected", found.num_rejected)):
                rows[name].append(value)
            rows["duration_s"].append(found.duration_s)
            rows["error"].append(error)
        return rows
