from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.costs import CostModel

parts = st.floats(0, 10)
costs = st.builds(CostModel, parts, parts, parts, parts)


def test_a_run_costs_its_overhead_its_rows_its_steps_and_their_product() -> None:
    cost = CostModel(overhead_ms=1000, row_ms=100, step_ms=10, row_step_ms=1)
    assert cost.predict_ms(2, 3) == 1000 + 2 * 100 + 3 * 10 + 2 * 3 * 1


@given(costs, st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 9), st.integers(0, 9))
def test_more_rows_or_steps_never_cost_less(cost: CostModel, rows: int, steps: int, more_rows: int, more_steps: int) -> None:
    assert cost.predict_ms(rows + more_rows, steps + more_steps) >= cost.predict_ms(rows, steps)
