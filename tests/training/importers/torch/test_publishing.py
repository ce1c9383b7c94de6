"""Which modules become graphs and how; what is refused and with which words; what is written and what never is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.torch_models import (
    CASES,
    FEATURES,
    HIDDEN,
    ONE_ROW,
    ROWS,
    BiLSTMConcat,
    StatefulGRU,
    TorchCase,
    TutorialLSTM,
    floats,
    words,
)
from tests.torch_refusals import MODULES, NO_WAY, OBJECTS
from training.export.publish import PublishError
from training.importers.torch.errors import ModuleRefused
from training.importers.torch.publishing import Forecast, publish

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning"),
]
TRANSLATED = [case for case in CASES if case.route == "translate"]
OF_EQUAL_LENGTH = [case for case in CASES if case.route == "translate equal"]
EXPORTED = [case for case in CASES if case.route == "export"]


def tutorial(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return TutorialLSTM().eval()


@pytest.mark.parametrize("case", TRANSLATED, ids=lambda case: case.name)
def test_a_module_is_translated_and_answers_rows_of_any_length_in_one_batch(case: TorchCase, tmp_path: Path) -> None:
    result = publish(case.make(), case.name, example=case.rows(), models=tmp_path, dry_run=True, **case.options)
    assert (result.route, result.batching, result.tried) == ("translated", "ragged", ())
    checked = {check.name: check.error for check in result.verdict.checks}
    assert {"graph = module", "row in a batch = row alone", "padding changes nothing"} <= checked.keys()
    assert ("pieces with state = whole" in checked) == ("state" in case.options)
    assert max(checked.values()) < 1e-5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", OF_EQUAL_LENGTH, ids=lambda case: case.name)
def test_an_answer_whose_steps_are_not_those_of_the_row_is_translated_for_rows_of_equal_length(
    case: TorchCase, tmp_path: Path
) -> None:
    result = publish(case.make(), case.name, example=case.rows(), models=tmp_path, dry_run=True, **case.options)
    assert (result.route, result.batching) == ("translated", "equal")
    assert "steps" in result.tried[0]
    assert max(check.error for check in result.verdict.checks) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED, ids=lambda case: case.name)
def test_what_the_translator_does_not_know_is_exported_and_served_in_batches_of_equal_length(
    case: TorchCase, tmp_path: Path
) -> None:
    result = publish(case.make(), case.name, example=case.rows(), models=tmp_path, dry_run=True, **case.options)
    assert result.route.startswith("exported")
    assert result.batching == "equal"
    assert result.tried[0].startswith("not translated: torch_models.py, line") or "number of steps" in result.tried[0]
    words = ("row in a batch = row alone", "froze", "neither the rows nor the steps")
    assert any(word in line for line in result.tried for word in words)


@pytest.mark.slow
def test_the_default_exporter_of_torch_is_tried_before_the_older_one(tmp_path: Path) -> None:
    (case,) = [case for case in EXPORTED if case.name == "middle-step"]
    result = publish(case.make(), case.name, example=case.rows(), models=tmp_path, dry_run=True, **case.options)
    assert result.route == "exported (dynamo exporter)"


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (number > 0)) for number, case in enumerate(ONE_ROW)]
)
def test_a_module_that_takes_one_row_at_a_time_is_published_when_asked(case: TorchCase, tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused) as refusal:
        publish(case.make(), case.name, example=case.rows(), models=tmp_path)
    assert 'batching="none"' in str(refusal.value)
    result = publish(case.make(), case.name, example=case.rows(), models=tmp_path, dry_run=True, **case.options)
    assert (result.route.partition(" ")[0], result.batching) == ("exported", "none")
    assert "one row at a time" in str(result)
    checked = {check.name: check.error for check in result.verdict.checks}
    assert {"graph = module", "row in a batch = row alone", "padding changes nothing"} <= checked.keys()
    assert max(checked.values()) < 1e-5


@pytest.mark.parametrize("case", MODULES, ids=lambda case: case.name)
def test_a_module_that_no_graph_can_serve_is_refused_with_the_line(case: TorchCase, tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused) as refusal:
        publish(case.make(), case.name, example=case.rows(), models=tmp_path, **case.options)
    for part in case.words:
        assert part in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_is_no_network_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    make, parts = OBJECTS[name]
    with pytest.raises(ModuleRefused) as refusal:
        publish(make(), "refused", example=ROWS(), models=tmp_path)
    for part in parts:
        assert part in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_neither_way_can_write_is_refused_with_all_reasons(tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused) as refusal:
        publish(NO_WAY.make(), "refused", example=NO_WAY.rows(), models=tmp_path)
    for part in NO_WAY.words:
        assert part in str(refusal.value)


def rows_of(*shapes: tuple[int, ...]) -> list[Any]:
    return [np.zeros(shape, np.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (rows_of((6, FEATURES)), "at least two rows"),
        (np.zeros((2, 6, FEATURES), np.float32), "at least two rows"),
        (rows_of((6, FEATURES), (9,)), "have [1, 2] axes"),
        (rows_of((6, FEATURES), (9, FEATURES + 1)), "differ in 2 axes"),
        (rows_of((6, FEATURES), (0, FEATURES)), 'example row 1, "x": it is empty'),
        ([np.full((6, FEATURES), np.nan), *rows_of((9, FEATURES))], "not finite"),
        ([["a"], ["b", "c"]], "expected numbers"),
        (rows_of((6, 4), (9, 4)), "forward fails for example row 0"),
        ([{"y": np.zeros((6, FEATURES))}, {"y": np.zeros((9, FEATURES))}], 'forward takes no "y"'),
    ],
)
def test_rows_that_do_not_fit_are_refused(example: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused) as refusal:
        publish(tutorial(), "m", example=example, models=tmp_path)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lengths": "sizes"}, "forward takes ['x']"),
        ({"state": {"h0": "h_n"}}, 'forward takes no "h0"'),
        ({"inputs": {"x": ("time",)}}, "has 1 axes"),
        ({"task": "regress"}, 'expected "tensor", Forecast(...) or Classify(...)'),
        ({"batching": "padded"}, 'expected one of "auto", "ragged", "equal", "none"'),
        ({"tolerance": 0.0}, "between 0 and 1"),
        ({"scale": object()}, "expected a fitted MinMaxScaler or StandardScaler"),
        ({"expected": [[0.0] * 3]}, "1 answers for 3 example rows"),
        ({"expected": [[0.0] * 3] * 3}, "the expected answers are not the module's"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused) as refusal:
        publish(tutorial(), "m", example=ROWS(), models=tmp_path, **options)
    assert words in str(refusal.value)


def test_rows_of_one_length_are_refused_while_the_time_axis_is_declared_open(tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused, match="all have 6 steps while the time axis is open"):
        publish(tutorial(), "m", example=floats(6, 6)(), inputs={"x": ("time", FEATURES)}, models=tmp_path)


def test_a_module_of_a_fixed_length_is_published_without_a_time_axis(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
            self.fc = nn.Linear(6 * HIDDEN, 2)

        def forward(self, x: Tensor) -> Any:
            return self.fc(self.lstm(x)[0].flatten(1))

    result = publish(Flat(), "flat", example=floats(6, 6)(), models=tmp_path)
    assert result.folder is not None
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert [tensor["shape"] for tensor in manifest["inputs"]] == [["batch", 6, FEATURES]]


def test_the_folder_says_what_was_checked_and_the_service_serves_it(tmp_path: Path) -> None:
    net = tutorial()
    result = publish(
        net, "net", example=ROWS(), description="a trial", licence="CC0-1.0", scores={"accuracy": 0.9}, models=tmp_path
    )
    assert result.folder == tmp_path / "net" / "1"
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["description"] == "a trial"
    assert manifest["licence"] == "CC0-1.0"
    assert manifest["graphs"][0]["score"] == {"accuracy": 0.9}
    checks = manifest["training"]["checks"]
    assert checks["min_length"] == 1
    assert checks["graph = module"]["error"] < 1e-5
    assert manifest["training"]["import"]["class"] == "TutorialLSTM"
    assert "row in a batch = row alone" in str(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net"]


def test_a_version_that_exists_is_refused_and_the_next_free_one_taken(tmp_path: Path) -> None:
    publish(tutorial(), "net", example=ROWS(), models=tmp_path)
    before = (tmp_path / "net" / "1" / "model.onnx").read_bytes()
    with pytest.raises(PublishError, match="exists"):
        publish(tutorial(4), "net", example=ROWS(), version=1, models=tmp_path)
    assert (tmp_path / "net" / "1" / "model.onnx").read_bytes() == before
    assert publish(tutorial(4), "net", example=ROWS(), models=tmp_path).folder == tmp_path / "net" / "2"
    publish(tutorial(5), "net", example=ROWS(), version=1, replace=True, models=tmp_path)
    assert (tmp_path / "net" / "1" / "model.onnx").read_bytes() != before


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("a file where the folder should be")
    with pytest.raises(PublishError, match="net cannot be written"):
        publish(tutorial(), "net", example=ROWS(), version=1, models=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_the_module_is_as_it_was_before(tmp_path: Path) -> None:
    net = BiLSTMConcat()
    net.train()
    net.dropout.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    publish(net, "net", example=ROWS(), models=tmp_path, dry_run=True)
    assert net.training
    assert not net.dropout.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_weights_of_float64_are_served_in_float32(tmp_path: Path) -> None:
    result = publish(tutorial().double(), "net", example=ROWS(), models=tmp_path, dry_run=True)
    assert result.route == "translated"


def test_state_is_carried_from_input_to_output(tmp_path: Path) -> None:
    result = publish(StatefulGRU(), "net", example=ROWS(), state={"h0": "h_n"}, models=tmp_path)
    assert result.folder is not None
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["state"] == [{"input": "h0", "output": "h_n"}]
    assert {"name": "h0", "datatype": "FP32", "shape": ["batch", 1, HIDDEN]} in manifest["inputs"]


class Horizon(nn.Module):
    """Forecasts all features, as scaled as they came."""

    def __init__(self, num_answers: int, features: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, num_answers)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize(
    ("features", "num_answers", "options"),
    [
        (1, 4, {}),
        (1, 12, {"quantiles": (0.1, 0.5, 0.9)}),
        (2, 8, {"features": ("load", "heat")}),
        (2, 4, {"features": ("load", "heat"), "targets": ("heat",)}),
        (2, 12, {"features": ("load", "heat"), "targets": ("heat",), "quantiles": (0.1, 0.5, 0.9)}),
    ],
)
def test_a_forecaster_answers_in_the_units_of_the_series(
    features: int, num_answers: int, options: dict[str, Any], tmp_path: Path
) -> None:
    sklearn = pytest.importorskip("sklearn.preprocessing")
    torch.manual_seed(3)
    net = Horizon(num_answers, features)
    rows = [100 + 10 * row for row in floats(8, 12, features=features)()]  # type: ignore[operator]
    scaler = sklearn.MinMaxScaler().fit(np.concatenate(rows))
    task = Forecast(4, frequencies=("H",), scaler=scaler, **options)
    result = publish(net, "net", example=rows, task=task, models=tmp_path)
    assert result.folder is not None
    example = json.loads((result.folder / "example.json").read_text())
    with torch.no_grad():
        answer = net(torch.tensor(scaler.transform(rows[0]), dtype=torch.float32)[None])[0].numpy()
    targets = options.get("targets", options.get("features", ("value",)))
    num_quantiles = len(options.get("quantiles", (0.5,)))
    answer = np.sort(answer.reshape(4, len(targets), num_quantiles), axis=2)[..., num_quantiles // 2]
    places = [options.get("features", ("value",)).index(target) for target in targets]
    expected = (answer - scaler.min_[places]) / scaler.scale_[places]
    prediction = example["response"]["predictions"][0]
    found = np.array(prediction.get("forecast", prediction.get("mean"))).reshape(4, len(targets))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def _standard(sklearn: Any, values: Any) -> Any:
    return sklearn.StandardScaler().fit(values)


def _minmax(sklearn: Any, values: Any) -> Any:
    return sklearn.MinMaxScaler((-1, 1)).fit(values)


@pytest.mark.parametrize("fit", [_standard, _minmax])
def test_scalers_become_nodes(fit: Callable[..., Any], tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.preprocessing")
    net = tutorial()
    rows: list[Any] = [5 + 3 * row for row in ROWS()]  # type: ignore[operator]
    scaler, answers = fit(sklearn, np.concatenate(rows)), fit(sklearn, np.random.default_rng(1).normal(7, 3, (50, 3)))
    with torch.no_grad():
        expected = [
            answers.inverse_transform(net(torch.tensor(scaler.transform(row), dtype=torch.float32)[None]).numpy())[0]
            for row in rows
        ]
    result = publish(net, "net", example=rows, scale=scaler, unscale=answers, expected=expected, models=tmp_path, dry_run=True)
    assert "expected answers" in {check.name for check in result.verdict.checks}


def test_a_token_model_reads_whole_numbers(tmp_path: Path) -> None:
    result = publish(nn.Embedding(30, 4), "net", example=words(4, 7)(), models=tmp_path)
    assert result.folder is not None
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["inputs"][0] == {"name": "input", "datatype": "INT64", "shape": ["batch", "time"]}
