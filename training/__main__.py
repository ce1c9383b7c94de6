"""The command line: `python -m training run <recipe>` and the other commands, which `commands/` holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

try:
    import typer

    from training.commands import evaluation, folders, imports, runs, starting
except ImportError as missing:
    raise SystemExit(
        f"training needs more than the service does: pip install 'sluice-serving[cpu,train]' ({missing})"
    ) from missing

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train recurrent networks and publish them as model folders.")
# In the order of the help.
app.command("run")(runs.run_command)
app.command("summary")(runs.summary_command)
app.command("compare")(runs.compare_command)
app.command("tune")(runs.tune_command)
app.command("quantize")(folders.quantize_command)
app.command("statistics")(folders.statistics_command)
app.command("card")(folders.card_command)
app.command("evaluate")(evaluation.evaluate_command)
app.command("fetch")(starting.fetch_command)
app.command("import-keras")(imports.import_keras_command)
app.command("import-torch")(imports.import_torch_command)
app.command("import-onnx")(imports.import_onnx_command)
app.command("import-neuralforecast")(imports.import_neuralforecast_command)
app.command("import")(imports.import_any_command)
app.command("init")(starting.init_command)
app.command("recipe-reference", hidden=True)(starting.recipe_reference_command)
app.command("list")(starting.list_command)


def main(argv: Sequence[str] | None = None, *, command: str | None = None, prog_name: str | None = None) -> NoReturn:
    """Run the command line, or one `command` of it that is called `prog_name` in its help, and exit."""
    if os.environ.get("SLUICE_DATA") == "":
        del os.environ["SLUICE_DATA"]  # the Makefile exports it empty where there is no data folder
    group = typer.main.get_group(app)
    found = group if command is None else group.commands[command]
    found.main(None if argv is None else list(argv), prog_name=prog_name or "python -m training")
    raise AssertionError("a command line of typer ends the process")


if __name__ == "__main__":
    main()
