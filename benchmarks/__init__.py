"""Speed, measured: cases, targets, load, ceilings and tables. Not installed, not a test.

`compare.py` is the run (`make bench`), `target_run.py` one target in one round of it. `cases.py` and `workloads.py` define the
requests, `targets.py` and `rivals/` the servers, `reference.py` makes the network. `load.py` (closed loops, wrk) and
`open_loop.py` send the load; `responses.py` verifies predictions against the bare graph. `echo.py`, `bare_graph.py` and
`ceilings.py` give the upper bound; `results.py`, `summary.py`, `report.py` and `plot.py` make the page.

`before_after.py` compares two checkouts of Sluice (`make bench-against`), `in_process.py` what Python does in them,
`batch_invariance.py` ragged rows with each row alone. `overload.py` compares servers beyond their capacity, with load from
`overload_load.py`. `isolation.py`, `stall.py`, `leaks.py`,
`precision.py`, `equal_shapes.py` and `gpu.py` each measure one property of Sluice;
`train_speed.py` and `transfer.py` are about training and stand alone.
"""
