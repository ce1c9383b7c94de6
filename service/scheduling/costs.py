"""What one run of a graph costs, by its rows and its steps. Measures nothing: `tuning.py` finds the numbers."""

from __future__ import annotations

from dataclasses import dataclass

# What a batch costs the server beside the graph: it is planned, handed over, gathered, split and counted while the graph
# could have gone on. From the processor time of a server per request at bounds of 4 to 128 rows (a 2x64 LSTM over 84 steps,
# `forecast-hourly`; 64 and 256 connections): 0.2 to 0.35 ms, up to 0.9 under crowding.
BATCH_MS = 0.3
# What a run costs beside the graph: to the worker thread and back. Worth about 64 steps of a small LSTM.
HANDOVER_MS = 0.035


@dataclass(frozen=True, slots=True)
class CostModel:
    """Milliseconds of a run of `rows` x `steps`: overhead + rows · row + steps · (step + rows · row_step).

    A step costs `step_ms` whatever the rows, because the weights are read once for all of them: that is what batching saves.
    No part is negative, so more rows or more steps never cost less.
    """

    overhead_ms: float = 0.0
    row_ms: float = 0.0
    step_ms: float = 0.0
    row_step_ms: float = 0.0

    def predict_ms(self, rows: int, steps: float) -> float:
        """Time of the graph alone; the hand-over to the worker thread is not in it."""
        return self.overhead_ms + rows * self.row_ms + steps * (self.step_ms + rows * self.row_step_ms)


# Of a graph that was not measured: one LSTM of 64 units on one thread of onnxruntime 1.31.
SMALL_LSTM = CostModel(row_ms=0.035, step_ms=0.00055, row_step_ms=0.00055)
