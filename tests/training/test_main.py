"""The command line, from a recipe to a folder, with the words it finds when something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from training.__main__ import app

FORECAST = """\
task = "forecast"
name = "toy"
seed = 5

[[data.train]]
path = "series.csv"
values = ["load", "heat"]

[data]
targets = ["load"]

[forecast]
context_length = 12
min_length = 4
horizon = 4
season_length = 4
quantiles = [0.1, 0.5, 0.9]

[scaling]
kind = "standard"

[[layers]]
type = "gru"
units = 6

[[layers]]
type = "dense"

[fit]
loss = "quantile"
learning_rate = 0.01
epochs = 3
batch_size = 16
"""

CLASSIFY = """\
task = "classify"
name = "moods"
language = "en"
subject = "mood"

[data]
labels = ["bad", "good"]

[[data.train]]
path = "train.txt"

[[data.test]]
path = "test.txt"

[tokenizer]
kind = "words"
vocabulary = 50
min_frequency = 1
head = 5
tail = 3

[[layers]]
type = "embedding"
output_dim = 8

[[layers]]
type = "bidirectional"
layer = { type = "lstm", units = 4, return_sequences = true }

[[layers]]
type = "global_max_pooling"

[[layers]]
type = "dense"
activation = "sigmoid"

[fit]
loss = "binary_crossentropy"
learning_rate = 0.02
epochs = 12
batch_size = 16
word_dropout = 0.1
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    steps = np.arange(80)
    load = 10 + np.sin(steps * np.pi / 2) + 0.01 * steps
    rows = "".join(f"{step},{value:.4f},{np.cos(step):.4f}\n" for step, value in zip(steps, load, strict=True))
    (tmp_path / "series.csv").write_text("hour,load,heat\n" + rows)
    moods = (("bad", "dull"), ("good", "fine"))
    lines = [f"{i % 2} a {moods[i % 2][i % 3 % 2]} film number {i}{' and so on' * (i % 4)}" for i in range(120)]
    (tmp_path / "train.txt").write_text("\n".join(lines[:100]))
    (tmp_path / "test.txt").write_text("\n".join(lines[100:]))
    (tmp_path / "toy.toml").write_text(FORECAST)
    (tmp_path / "moods.toml").write_text(CLASSIFY)
    return tmp_path


def train(workplace: Path, recipe: str, *options: str, runs: str = "runs") -> Result:
    folders = ["--models", str(workplace / "models"), "--runs", str(workplace / runs), "--data", str(workplace)]
    return CliRunner().invoke(app, ["run", str(workplace / recipe), *folders, *options], catch_exceptions=False)


def words(result: Result) -> str:
    return " ".join(result.output.split())


def test_a_forecasting_run_prints_scores_checks_and_folder_and_publishes(workplace: Path) -> None:
    result = train(workplace, "toy.toml")
    assert result.exit_code == 0, result.output
    for part in ("epoch 3/3", "seasonal_naive", "theta", "mase", "graph vs torch", "streamed vs whole", "published"):
        assert part in words(result)
    folder = workplace / "models" / "toy" / "1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["forecast"]["targets"] == ["load"]
    assert set(manifest["training"]["baselines"]) == {"seasonal_naive", "theta"}
    assert manifest["training"]["metrics"]["mase"] > 0
    assert len(manifest["training"]["data"][0]["sha256"]) == 64


def test_the_example_is_what_the_published_graph_answers(workplace: Path) -> None:
    train(workplace, "toy.toml")
    folder = workplace / "models" / "toy" / "1"
    example = json.loads((folder / "example.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    lengths = []
    for instance, prediction in zip(example["request"]["instances"], example["response"]["predictions"], strict=True):
        history = np.array(instance["history"], np.float32)[None]
        lengths.append(history.shape[1])
        states = {
            entry.name: np.zeros((1, entry.shape[1]), np.float32)
            for entry in session.get_inputs()
            if entry.name not in ("history", "lengths")
        }
        inputs = {"history": history, "lengths": np.array([history.shape[1]]), **states}
        point, quantiles = session.run(["forecast", "quantiles"], inputs)
        np.testing.assert_allclose(prediction["forecast"], point[0, :, 0], rtol=1e-5)
        np.testing.assert_allclose(prediction["quantiles"]["0.9"], quantiles[0, :, 0, 2], rtol=1e-5)
    assert len(set(lengths)) == 2


def test_a_classification_run_publishes_its_tokenizer_and_a_text_that_is_cut(workplace: Path) -> None:
    result = train(workplace, "moods.toml")
    assert result.exit_code == 0, result.output
    assert "tfidf_logistic" in result.output
    folder = workplace / "models" / "moods" / "1"
    example = json.loads((folder / "example.json").read_text())
    predictions = example["response"]["predictions"]
    assert predictions[-1]["truncated"] is True
    assert "truncated" not in predictions[0]
    assert set(predictions[0]["probabilities"]) == {"bad", "good"}
    assert (folder / "tokenizer.json").is_file()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["classify"]["truncation"] == {"head": 5, "tail": 3}
    assert manifest["classify"]["subject"] == "mood"
    assert manifest["training"]["metrics"]["accuracy"] > 0.8


def test_a_resumed_run_publishes_the_same_graph_as_an_uninterrupted_one(workplace: Path) -> None:
    train(workplace, "toy.toml", "--set", "fit.epochs=4")
    train(workplace, "toy.toml", "--set", "fit.epochs=2", runs="parts")
    result = train(workplace, "toy.toml", "--set", "fit.epochs=4", "--resume", runs="parts")
    assert result.exit_code == 0, result.output
    assert "epoch 1/4" not in result.output
    assert "epoch 3/4" in result.output
    versions = [(workplace / "models" / "toy" / version / "model.onnx").read_bytes() for version in ("1", "2", "3")]
    assert versions[0] == versions[2] != versions[1]


SELF_TRAINING = """
[[data.unlabelled]]
path = "unlabelled.csv"

[ngrams]
order = 1
buckets = 256
strength = 10.0

[self_training]
epochs = 2
"""


@pytest.fixture
def unlabelled(workplace: Path) -> Path:
    """`workplace` with texts in which words that have labels stand beside two that have none, and a recipe that reads them."""
    texts = ("a fine and grand film", "a grim and dull film")
    (workplace / "unlabelled.csv").write_text("text\n" + "\n".join(texts * 40))
    moods = CLASSIFY.replace("[tokenizer]", SELF_TRAINING + "[tokenizer]")
    (workplace / "self.toml").write_text(moods.replace("epochs = 12", "epochs = 6"))
    return workplace


def test_words_that_stand_in_no_labelled_text_are_learned_by_the_models_own_answers(unlabelled: Path) -> None:
    result = train(unlabelled, "self.toml")
    assert result.exit_code == 0, result.output
    folder = unlabelled / "models" / "moods" / "1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["training"]["epochs"] == 8
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def good(text: str) -> float:
        ids = np.array([tokenizer.encode(text, add_special_tokens=False).ids])
        return float(session.run(["probabilities"], {"tokens": ids, "lengths": np.array([ids.shape[1]])})[0][0, 1])

    assert good("a grand film") > 0.6
    assert good("a grim film") < 0.4


def test_layers_learn_texts_without_labels_before_the_fit_and_a_resumed_run_does_not_again(unlabelled: Path) -> None:
    changes = ("--set", "pretraining.window=2", "--set", "fit.epochs=1", "--set", "self_training.epochs=1")
    result = train(unlabelled, "self.toml", *changes)
    assert result.exit_code == 0, result.output
    assert "pretraining epoch 1 loss" in words(result)
    again = train(unlabelled, "self.toml", *changes, "--resume")
    assert "pretraining" not in words(again)
    first, second = ((unlabelled / "models" / "moods" / version / "model.onnx").read_bytes() for version in ("1", "2"))
    assert first == second


def test_layers_that_cannot_be_pretrained_are_refused_before_anything_is_learned(unlabelled: Path) -> None:
    head = '{ type = "dense", activation = "sigmoid" }'
    layers = f'layers=[{{ type = "embedding", output_dim = 4 }}, {{ type = "global_average_pooling1d" }}, {head}]'
    result = train(unlabelled, "self.toml", "--set", "pretraining.epochs=2", "--set", layers)
    assert result.exit_code == 1
    assert "pretraining needs an embedding and behind it" in words(result)
    assert "epoch 1" not in result.output


def test_a_calibration_by_length_is_in_the_manifest_and_in_the_graph(unlabelled: Path) -> None:
    changes = ("fit.epochs=1", "self_training.epochs=1", 'calibrate="by_length"')
    result = train(unlabelled, "self.toml", *(part for change in changes for part in ("--set", change)))
    assert result.exit_code == 0, result.output
    folder = unlabelled / "models" / "moods" / "1"
    calibration = json.loads((folder / "manifest.json").read_text())["training"]["calibration"]
    assert set(calibration) == {"layers", "ngrams", "shift", "slope"}
    assert any(node.op_type == "Log" for node in onnx.load(folder / "model.onnx").graph.node)


def test_self_training_is_resumed_where_it_was_interrupted(unlabelled: Path) -> None:
    train(unlabelled, "self.toml")
    result = train(unlabelled, "self.toml", "--resume")
    assert result.exit_code == 0, result.output
    assert "epoch 1/" not in result.output
    first, second = ((unlabelled / "models" / "moods" / version / "model.onnx").read_bytes() for version in ("1", "2"))
    assert first == second


def test_self_training_begins_anew_where_what_it_learns_from_has_changed(unlabelled: Path) -> None:
    train(unlabelled, "self.toml")
    result = train(unlabelled, "self.toml", "--resume", "--set", "ngrams.strength=1.0")
    assert "epoch 1/6" not in result.output
    assert "epoch 1/2" in result.output


def test_a_run_is_resumed_only_by_the_recipe_that_began_it(workplace: Path) -> None:
    train(workplace, "toy.toml", "--set", "fit.epochs=1")
    result = train(workplace, "toy.toml", "--resume", "--set", "seed=6", "--set", "fit.batch_size=8")
    assert result.exit_code == 1
    assert "the recipe has changed since that run: fit.batch_size, seed" in words(result)


def test_a_published_folder_trains_again_to_the_same_graph_by_the_command_of_its_card(workplace: Path) -> None:
    train(workplace, "toy.toml", "--set", "fit.epochs=2")
    folder = workplace / "models" / "toy" / "1"
    assert "sluice train models/toy/1 --models again" in (folder / "README.md").read_text(encoding="utf-8")
    result = train(workplace, "models/toy/1", runs="again")
    assert result.exit_code == 0, result.output
    assert (folder.parent / "2" / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    changed = train(workplace, "models/toy/1", "--set", "fit.epoch=1", runs="again")
    assert 'did you mean "epochs"?' in words(changed)


def test_a_model_behind_its_naive_baseline_is_published_with_a_warning_and_refused_on_request(workplace: Path) -> None:
    poor = ["--set", "fit.epochs=1", "--set", "fit.learning_rate=1e-9"]
    warned = train(workplace, "toy.toml", *poor)
    assert warned.exit_code == 0, warned.output
    assert "warning it is no better than seasonal_naive by mase on the test part" in words(warned)
    refused = train(workplace, "toy.toml", *poor, "--require-better-than", "naive")
    assert refused.exit_code == 1
    assert "not published: it is no better than seasonal_naive by mase" in words(refused)
    assert "theta" in words(refused)  # the scores are shown all the same
    assert [path.name for path in (workplace / "models" / "toy").iterdir()] == ["1"]


def test_a_model_that_beats_what_it_has_to_is_published(workplace: Path) -> None:
    good = ["--set", "fit.epochs=12", "--set", "fit.learning_rate=0.03", "--set", "evaluate.baselines=['last_value']"]
    result = train(workplace, "toy.toml", *good, "--require-better-than", "last_value")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output
    unknown = train(workplace, "toy.toml", *good, "--require-better-than", "theta")
    assert unknown.exit_code == 1
    assert "scores no such baseline; evaluate.baselines has last_value" in words(unknown)


def test_a_backtest_scores_each_of_its_origins_beside_the_naive_forecast(workplace: Path) -> None:
    options = ["--set", "fit.epochs=1", "--set", "evaluate.windows=5", "--set", "evaluate.stride=2"]
    result = train(workplace, "toy.toml", *options)
    assert result.exit_code == 0, result.output
    assert "4 each to validate, 12 to test" in words(result)
    assert "mase, seasonal_naive" in words(result)
    folder = workplace / "models" / "toy" / "1"
    training = json.loads((folder / "manifest.json").read_text())["training"]
    assert [window["first"] for window in training["windows"]] == [0, 2, 4, 6, 8]
    for name, overall in (("toy", training["metrics"]), ("seasonal_naive", training["baselines"]["seasonal_naive"])):
        assert np.mean([window["mase"][name] for window in training["windows"]]) == pytest.approx(overall["mase"], rel=1e-6)
    assert "| first step | toy | seasonal naive |" in (folder / "README.md").read_text(encoding="utf-8")
    refused = train(workplace, "toy.toml", *options, "--set", "data.test_length=9")
    assert "evaluate.windows makes the test part" in words(refused)


def test_cards_are_written_again_and_checked(workplace: Path) -> None:
    train(workplace, "toy.toml", "--set", "fit.epochs=1")
    models, card = str(workplace / "models"), workplace / "models" / "toy" / "1" / "README.md"
    assert CliRunner().invoke(app, ["card", models, "--check"]).exit_code == 0
    written = card.read_bytes()
    card.write_text("by hand")
    stale = CliRunner().invoke(app, ["card", models, "--check"])
    assert stale.exit_code == 1
    assert "not current" in words(stale)
    assert CliRunner().invoke(app, ["card", models]).exit_code == 0
    assert card.read_bytes() == written
    assert CliRunner().invoke(app, ["card", str(workplace / "runs")]).exit_code == 1


@pytest.mark.parametrize("change", ["data.train.0.path=gone.csv", "layers.1.units=7"])
def test_a_run_that_fails_before_it_fits_leaves_the_older_run_to_be_resumed(workplace: Path, change: str) -> None:
    train(workplace, "toy.toml", "--set", "fit.epochs=1")
    assert train(workplace, "toy.toml", "--set", "seed=6", "--set", change).exit_code == 1
    refused = train(workplace, "toy.toml", "--set", "seed=6", "--set", "fit.epochs=2", "--resume")
    assert "the recipe has changed since that run: seed" in words(refused)
    resumed = train(workplace, "toy.toml", "--set", "fit.epochs=2", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "epoch 1/2" not in resumed.output


def test_a_run_that_fails_in_its_first_epoch_leaves_nothing_of_the_older_run_to_resume(workplace: Path) -> None:
    train(workplace, "toy.toml", "--set", "fit.epochs=1")
    diverging = ["fit.optimizer=sgd", "fit.clip_norm=0", "fit.loss=mse", "forecast.quantiles=[]", "fit.learning_rate=1e38"]
    changes = [word for change in diverging for word in ("--set", change)]
    assert "the loss is" in words(train(workplace, "toy.toml", *changes))
    assert "nothing to resume" in words(train(workplace, "toy.toml", *changes, "--resume"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "fit.epoch=1"], 'unknown key "fit.epoch"; did you mean "epochs"?'),
        (["--set", "layers.0.unit=1"], 'line 22: layers[0] (gru): option "unit": unknown'),
        (["--set", "layers.0.type=lstmm"], "unknown layer 'lstmm'; there are "),
        (["--set", "data.train.0.path=gone.csv"], "gone.csv (nor .xz, .gz)"),
        (["--set", "forecast.context_length=200", "--set", "forecast.min_length=200"], "no series is long enough"),
        (["--set", "forecast.quantiles=[0.1,0.9]"], "quantiles must hold 0.5"),
        (["--set", "data.targets=['load','load']"], "targets must differ"),
        (["--set", "scaling.length=3"], 'length is for kind "window"'),
        (["--resume"], "nothing to resume"),
        (["--set", "layers.1.units=7"], 'layers[1] (dense): option "units": the forecast needs 4 steps'),
    ],
)
def test_a_fault_is_named_in_a_line_and_nothing_is_published(workplace: Path, options: list[str], message: str) -> None:
    result = train(workplace, "toy.toml", *options)
    assert result.exit_code == 1
    assert message in words(result)
    assert "Traceback" not in result.output
    assert not (workplace / "models").exists()


def test_a_published_version_is_refused_before_training(workplace: Path) -> None:
    train(workplace, "toy.toml", "--set", "version=7")
    shutil.rmtree(workplace / "runs")
    result = train(workplace, "toy.toml", "--set", "version=7")
    assert result.exit_code == 1
    assert "toy/7 exists" in words(result)
    assert not (workplace / "runs").exists()
    assert train(workplace, "toy.toml", "--set", "version=7", "--replace").exit_code == 0


def test_baselines_are_computed_once_for_the_same_data(workplace: Path) -> None:
    train(workplace, "toy.toml")
    kept = workplace / "runs" / "toy" / "baselines.json"
    scores = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: {**score, "mae": 123.0} for key, score in scores.items()}))
    train(workplace, "toy.toml", "--set", "fit.epochs=1")
    train(workplace, "toy.toml", "--set", "forecast.season_length=2", "--set", "fit.epochs=1")
    found = [
        json.loads((workplace / "models" / "toy" / version / "manifest.json").read_text())["training"]["baselines"]
        for version in ("1", "2", "3")
    ]
    assert found[1]["theta"] == {**found[0]["theta"], "mae": 123.0}
    assert found[2]["theta"]["mae"] != 123.0


@pytest.mark.parametrize("missing", ["typer", "polars", "torch"])
def test_without_its_libraries_the_message_names_what_to_install(missing: str) -> None:
    script = f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv = ['training', 'run', 'passengers']\n"
    script += "runpy.run_module('training', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "needs more than the service does: pip install 'sluice-serving[cpu,train]' (" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "Traceback" not in ended.stderr


def test_an_import_needs_none_of_the_libraries_that_only_training_needs(tmp_path: Path) -> None:
    libraries = ["lightning", "polars", "statsforecast", "utilsforecast", "sklearn", "matplotlib", "torchmetrics"]
    script = f"import runpy, sys; sys.modules |= dict.fromkeys({libraries})\n"
    script += f"sys.argv = ['training', 'import-keras', {str(tmp_path / 'absent.keras')!r}, '--name', 'toy']\n"
    script += "runpy.run_module('training', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "absent.keras: no such file" in ended.stderr


def test_without_its_libraries_an_import_names_what_to_install() -> None:
    script = "import runpy, sys; sys.modules['h5py'] = None; sys.argv = ['training', 'import-keras', 'x', '--name', 'toy']\n"
    script += "runpy.run_module('training', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stderr.startswith("this command needs more than the service does: pip install 'sluice-serving[cpu,import]' (")


def test_recipes_and_sets_are_listed() -> None:
    result = CliRunner().invoke(app, ["list"])
    for part in ("passengers", "forecast-hourly", "sentiment-en", "m4-hourly", "imdb"):
        assert part in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["fetch", "m5"], 'no set "m5"; there are m4-hourly, ett'), (["fetch", "ett"], "give --data FOLDER, or set SLUICE_DATA")],
)
def test_fetch_names_what_is_missing(arguments: list[str], message: str) -> None:
    result = CliRunner(env={"SLUICE_DATA": None}).invoke(app, arguments)
    assert result.exit_code == 1
    assert message in words(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imbd"], 'no benchmark "imbd"; there are m3'),
        (["sst2", "--url", "localhost:8000"], "sst2: not scored: --url: expected http://HOST:PORT, got 'localhost:8000'"),
        (["imdb"], "imdb: not scored: no file imdb/imdb_test.parquet (nor .xz, .gz) here, and $SLUICE_DATA is not set"),
        (["imdb"], "Fetch it: sluice data fetch imdb"),
        (["sst2", "--data", "data"], "data/sst2/test.txt: is not the content that the recipe names: expected sha256 6a80"),
    ],
)
def test_evaluate_says_what_it_could_not_read_and_fails(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    (tmp_path / "data" / "sst2" / "test.txt").write_text("1 another content\n")
    result = CliRunner(env={"SLUICE_DATA": None}).invoke(app, ["evaluate", *arguments])
    assert result.exit_code == 1
    assert message in words(result)


def test_options_are_searched_by_the_command_and_the_next_one_is_printed(tmp_path: Path) -> None:
    search = ["--option", "fit.learning_rate=1e-3..2e-3", "--trials", "2", "--set", "fit.epochs=1", "--runs", str(tmp_path)]
    result = CliRunner().invoke(app, ["tune", "feature-vectors", *search], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "sluice train feature-vectors --set fit.epochs=1 --set fit.learning_rate=0.001" in words(result)
    assert len(json.loads((tmp_path / "feature-vectors" / "tune" / "tune.json").read_text())["trials"]) == 2


def test_a_search_without_its_library_names_what_to_install() -> None:
    script = "import runpy, sys; sys.modules['optuna'] = None\n"
    script += "sys.argv = ['training', 'tune', 'feature-vectors', '--option', 'fit.epochs=1..3']\n"
    script += "runpy.run_module('training', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "needs more than the service does: pip install 'sluice-serving[cpu,train,tune]' (" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_passengers_beat_the_season_before(tmp_path: Path) -> None:
    options = ["--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, ["run", "passengers", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    training = json.loads((tmp_path / "models" / "passengers" / "1" / "manifest.json").read_text())["training"]
    assert training["metrics"]["mae"] < 0.5 * training["baselines"]["seasonal_naive"]["mae"]


VALUES = 'values = ["load", "heat"]'
LABELS = 'labels = ["bad", "good"]'


@pytest.mark.parametrize(
    ("recipe", "old", "new", "message"),
    [
        ("toy", VALUES, 'values = ["laod"]', 'line 7: "data.train.0.values": series.csv: has no column "laod"'),
        ("toy", "series.csv", "serie.csv", 'line 6: "data.train.0.path": no file'),
        ("toy", 'targets = ["load"]', 'targets = ["cold"]', 'line 10: "data.targets": target "cold" is not among'),
        (
            "toy",
            "length = 12\nmin_length = 4",
            "length = 90\nmin_length = 90",
            'line 14: "forecast.min_length": no series is long',
        ),
        ("toy", VALUES, f'{VALUES}\ntime = "day"', 'line 8: "data.train.0.time": series.csv: has no column "day"'),
        (
            "moods",
            LABELS,
            'labels = {"0" = "bad", "2" = "good"}',
            """ "data.train.0.label": train: row 2: label '1' is not one of 0, 2""",
        ),
    ],
)
def test_what_is_wrong_with_data_names_the_line_of_the_recipe(
    workplace: Path, recipe: str, old: str, new: str, message: str
) -> None:
    text = (workplace / f"{recipe}.toml").read_text()
    assert old in text
    (workplace / f"{recipe}.toml").write_text(text.replace(old, new))
    result = train(workplace, f"{recipe}.toml")
    assert result.exit_code == 1
    assert message in words(result)
    assert f"{recipe}.toml, line " in words(result)


def test_an_empty_text_names_the_line_of_the_recipe(workplace: Path) -> None:
    (workplace / "moods.toml").write_text(CLASSIFY.replace('path = "train.txt"', 'path = "train.csv"'))
    (workplace / "train.csv").write_text("text,label\nfine,1\n ,0\n")
    result = train(workplace, "moods.toml")
    assert 'moods.toml, line 9: "data.train.0.text": train.csv: row 2: the text is empty' in words(result)
