"""What an import prints: the network, its notes, the four checks, the folder. Needs none of what only training needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.export.verify import Verification
from training.network.network import Network


def show_import(network: Network, verification: Verification, notes: Sequence[str], folder: Path, console: Console) -> None:
    """Print the results of an import that was published to `folder`."""
    num_parameters = network.num_parameters + network.num_fixed_parameters
    console.print(f"network     {len(network.layer_names)} layers, {num_parameters:,} parameters", highlight=False)
    for note in notes:
        console.print(f"note        {escape(note)}", highlight=False, soft_wrap=True)
    console.print(verification_table(verification))
    console.print(f"published   {folder}", highlight=False, soft_wrap=True)


def verification_table(verification: Verification) -> Table:
    """The largest error of each check."""
    table = Table("check", "largest error", caption=_describe(verification), caption_justify="left")
    for check, error in verification.errors.items():
        table.add_row(check.replace("_", " "), "cannot stream" if error is None else f"{error:.1e}")
    return table


def _describe(verification: Verification) -> str:
    """Which rows were tried, what the network itself rounds there, and what could not be tried."""
    rows = f"at {', '.join(verification.rows)}; the network's own rounding {verification.rounding:.0e}"
    return escape("\n".join([rows, *verification.notes]))
