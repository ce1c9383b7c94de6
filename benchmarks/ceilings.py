"""The upper bound of a server's throughput: HTTP and graph one after the other, each as fast as alone. Measures nothing.

HTTP alone is a server with canned responses (`echo.py`), the graph alone a loop at its best batch size (`bare_graph.py`).
"""

from __future__ import annotations


def ceiling_per_s(num_processes: int, echo_per_s: float, graph_rows_per_s: float, num_rows: int) -> float:
    """Requests of `num_rows` rows per second of processes on a core each that do nothing but HTTP and the graph."""
    return num_processes / (1 / echo_per_s + num_rows / graph_rows_per_s)


def efficiency(requests_per_s: float, num_processes: int, echo_per_s: float, graph_rows_per_s: float, num_rows: int = 1) -> float:
    """The share of the ceiling that was reached; above 1 where HTTP and graph of one process run in parallel."""
    return requests_per_s / ceiling_per_s(num_processes, echo_per_s, graph_rows_per_s, num_rows)
