"""Requests are drawn from a seed: the same for every server and every run, within the lengths of the case."""

from __future__ import annotations

import pytest

from benchmarks.cases import CASES, GROUPS, MODELS, QUICK, SATURATION_CASES, Case, select_cases
from benchmarks.workloads import draw_requests


def size(instance: object) -> int:
    """Values of a history, or words of a text."""
    return len(instance.split()) if isinstance(instance, str) else len(instance["history"])  # type: ignore[index]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_request_has_the_instances_and_lengths_of_its_case(case: Case) -> None:
    requests = draw_requests(case)
    assert {len(instances) for instances in requests} == {case.num_instances}
    sizes = [size(instance) for instances in requests for instance in instances]
    assert min(sizes) >= case.lengths[0]
    assert max(sizes) <= case.lengths[1]
    assert draw_requests(case) == requests


@pytest.mark.parametrize("case", [case for case in CASES if case.is_ragged], ids=lambda case: case.name)
def test_mixed_lengths_are_uniform(case: Case) -> None:
    sizes = [size(instance) for instances in draw_requests(case) for instance in instances]
    assert len(set(sizes)) > 100
    assert sum(sizes) / len(sizes) == pytest.approx(sum(case.lengths) / 2, rel=0.1)


def test_requests_differ_and_numbers_are_short() -> None:
    requests = draw_requests(select_cases(["c64"])[0])
    assert len({str(instances) for instances in requests}) == len(requests)
    (instance,) = requests[0]
    assert isinstance(instance, dict)
    assert all(value == round(value, 2) > 0 for value in instance["history"])


def test_cases_are_known_by_name_and_belong_to_a_group_and_a_model() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.group for case in CASES} == set(GROUPS)
    assert {case.model for case in CASES} == set(MODELS)
    assert set(QUICK) <= set(names)


def test_the_maximum_comes_from_closed_loops_with_the_requests_of_the_open_ones() -> None:
    same = {(case.model, case.lengths, case.num_instances, case.load is None) for case in select_cases(SATURATION_CASES)}
    assert {(case.model, case.lengths, case.num_instances, case.load is not None) for case in CASES if case.load} == same


def test_an_unknown_case_is_refused_with_the_known_names() -> None:
    with pytest.raises(SystemExit, match="unknown case c63; known cases: c1, "):
        select_cases(["c64", "c63"])
