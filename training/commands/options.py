"""Arguments and options that several commands have: one type and one sentence for each. Reads none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(help="A recipe file, a bundled recipe's name, or a folder that was published.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, as fit.epochs=3.")
]
Data = Annotated[
    Path | None, typer.Option("--data", envvar="SLUICE_DATA", help="The folder with the data files that recipes name.")
]
Runs = Annotated[Path, typer.Option(help="The folder of checkpoints and other results of runs.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch. Small networks gain nothing from more than one.")]
VersionFolder = Annotated[Path, typer.Argument(help="A version folder, as models/sentiment-en/1.")]

# Of the commands that publish finished models.
Name = Annotated[str, typer.Option(help="Name of the model.")]
Version = Annotated[int | None, typer.Option(help="Its version; the next free number if left out.")]
Description = Annotated[str, typer.Option(help="One sentence about the model.")]
Licence = Annotated[str, typer.Option(help="Of the data that it learned from.")]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite the version.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check all, write nothing.")]
Models = Annotated[Path, typer.Option(help="The folder where the model folder is published.")]

Task = Annotated[str, typer.Option(help="What instances are: tensor (nested lists), forecast or classify.")]
Expected = Annotated[Path | None, typer.Option(help="Answers to the example rows, recorded elsewhere; a file as of rows.")]
TimeFirst = Annotated[bool, typer.Option("--time-first", help="Steps come before rows, in the network or graph.")]
Batching = Annotated[str, typer.Option(help="auto, ragged (rows of any length in a batch), equal or none.")]
State = Annotated[
    list[str] | None, typer.Option(metavar="INPUT=OUTPUT", help="What carries a sequence on, as h0=h_n; may be repeated.")
]
Tolerance = Annotated[float, typer.Option(help="The largest difference from the source, of an answer's size.")]
Scale = Annotated[
    str | None, typer.Option(help="Of the first input: minmax:LOW,HIGH, standard:MEAN,DEVIATION, or a scaler's .json.")
]
Unscale = Annotated[str | None, typer.Option(help="The scale whose inverse the first output goes through.")]

Labels = Annotated[str | None, typer.Option(help="classify: the labels in the order of the outputs, as bad,good.")]
Tokenizer = Annotated[Path | None, typer.Option(help="classify: the tokenizer.json that splits texts into the ids.")]
MaxLength = Annotated[int | None, typer.Option(help="classify: tokens read of a text, if the model reads any number.")]
Language = Annotated[str | None, typer.Option(help="classify: the texts' language, as en.")]
Subject = Annotated[str | None, typer.Option(help="classify: what the labels are about, as sentiment.")]

Horizon = Annotated[int | None, typer.Option(help="forecast: how many steps the model forecasts.")]
ContextLength = Annotated[int | None, typer.Option(help="forecast: steps read of a history, if the model reads any number.")]
Frequency = Annotated[str | None, typer.Option(help="forecast: S T H D W M Q Y, several separated by commas.")]
SeasonLength = Annotated[int | None, typer.Option(help="forecast: steps in a season.")]
Features = Annotated[str | None, typer.Option(help="forecast: the names of the model's features, as load,heat.")]
Targets = Annotated[str | None, typer.Option(help="forecast: which of the features are forecast.")]
Quantiles = Annotated[str | None, typer.Option(help="forecast: the levels that the model gives, as 0.1,0.5,0.9.")]
Scaler = Annotated[
    str | None, typer.Option(help="forecast: the scale of the features, which the model was trained behind; as of --scale.")
]
