"""Speed, measured: what is asked, who is asked, the load, the ceilings and the tables. Not installed, not a test.

`compare.py` is the run (`make bench`), `turns.py` one server's turn in it. `cases.py` and `questions.py` say what is asked,
`contestants.py` and `rivals/` who takes part, `reference.py` makes the network. `load.py` (closed loops, wrk) and `open_loop.py`
ask; `answers.py` holds what is answered against the bare graph. `echo.py`, `bare_graph.py` and `ceilings.py` tell what could be
at best; `results.py`, `summary.py`, `report.py` and `plot.py` make the page of it. `train_speed.py` and `transfer.py` are about
training and stand alone.
"""
