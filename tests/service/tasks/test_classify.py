"""Texts in, labels out: what is checked, what the graph is fed, what is answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.errors import InferenceFailed, InvalidInput, MalformedRequest
from service.manifest import Manifest, manifest_type
from service.runtime.tensors import Signature, Tensors, TensorSpec
from service.tasks.classify import TASK, ClassifySpec, ClassifyTask, Truncation
from service.tasks.classify_schema import MAX_CHARACTERS
from service.tasks.tokenization import load_tokenizer
from tests.fakes import run_task
from tests.folders import write_text_folder

LENGTHS = TensorSpec("lengths", "INT64", ("batch",))


@pytest.fixture
def classify(tmp_path: Path) -> ClassifyTask:
    folder = write_text_folder(tmp_path)
    spec = ClassifySpec(
        labels=["negative", "positive"], subject=None, max_length=4, truncation=Truncation(head=1, tail=3), language="en"
    )
    signature = Signature(
        (TensorSpec("tokens", "INT64", ("batch", "time")), LENGTHS),
        (TensorSpec("probabilities", "FP32", ("batch", 2)),),
    )
    return ClassifyTask(spec, signature, load_tokenizer(folder / "tokenizer.json"))


def by_first_token(item: Tensors) -> Tensors:
    """Positive if a text begins with `good`, which is token 1."""
    positive = np.where(item["tokens"][:, 0] == 1, 0.75, 0.25).astype(np.float32)
    return {"probabilities": np.stack((1 - positive, positive), axis=1)}


def test_texts_get_labels_in_their_order(classify: ClassifyTask) -> None:
    texts = ["good film", "the bad plot", {"text": "good"}, "it was not a very good film"]
    predictions = run_task(classify, by_first_token, texts)
    assert predictions == [
        {"label": "positive", "score": 0.75, "probabilities": {"negative": 0.25, "positive": 0.75}},
        {"label": "negative", "score": 0.75, "probabilities": {"negative": 0.75, "positive": 0.25}},
        {"label": "positive", "score": 0.75, "probabilities": {"negative": 0.25, "positive": 0.75}},
        {"label": "negative", "score": 0.75, "probabilities": {"negative": 0.75, "positive": 0.25}, "truncated": True},
    ]


def test_a_long_text_keeps_its_head_and_its_tail(classify: ClassifyTask) -> None:
    seen: list[Tensors] = []
    run_task(classify, by_first_token, ["good bad film a very not the was"], seen)
    assert seen[0]["tokens"].tolist() == [[1, 6, 7, 8]]
    assert seen[0]["lengths"].tolist() == [4]


@pytest.fixture
def whole(classify: ClassifyTask) -> ClassifyTask:
    """Reads long texts in pieces of four tokens, and says how many tokens it knew."""
    spec = classify.spec.model_copy(update={"long_texts": "pieces", "min_known": 0.5})
    return ClassifyTask(spec, classify.signature, classify.tokenizer)


def test_a_long_text_is_read_whole_in_pieces_whose_logits_are_averaged(whole: ClassifyTask) -> None:
    seen: list[Tensors] = []
    texts = ["good bad film a very not the was i", "good", "bad film", "good film good film good film good film"]
    predictions = run_task(whole, by_first_token, texts, seen)
    rows = [ids[:length].tolist() for item in seen for ids, length in zip(item["tokens"], item["lengths"], strict=True)]
    assert sorted(rows) == sorted([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1], [2, 3], [1, 3, 1, 3], [1, 3, 1, 3]])
    # Odds of 3, 1/3 and 1/3 have the geometric mean 3 ** (-1/3).
    assert [answer["label"] for answer in predictions] == ["negative", "positive", "negative", "positive"]
    assert predictions[0]["probabilities"]["positive"] == pytest.approx(3 ** (-1 / 3) / (1 + 3 ** (-1 / 3)), rel=1e-5)
    assert predictions[3]["probabilities"]["positive"] == pytest.approx(0.75)
    assert [answer["known_tokens"] for answer in predictions] == [9, 1, 2, 8]
    assert not any("truncated" in answer or "uncertain" in answer for answer in predictions)


def test_texts_in_pieces_are_answered_as_without_others_beside_them(whole: ClassifyTask) -> None:
    texts = ["good bad film a very not the was i", "good", "not a very good film it was bad"]
    assert run_task(whole, by_first_token, texts) == [run_task(whole, by_first_token, [text])[0] for text in texts]


def test_a_piece_that_is_certain_does_not_decide_a_text_alone(whole: ClassifyTask) -> None:
    def run(item: Tensors) -> Tensors:
        positive = np.where(item["tokens"][:, 0] == 1, 1.0, 0.001).astype(np.float32)
        return {"probabilities": np.stack((1 - positive, positive), axis=1)}

    (prediction,) = run_task(whole, run, ["good film a film " + "bad film a film " * 3])
    assert prediction["label"] == "negative"
    assert prediction["score"] < 1


def test_a_piece_that_is_not_finite_names_its_text(whole: ClassifyTask) -> None:
    def run(item: Tensors) -> Tensors:
        return {"probabilities": np.where(item["tokens"][:, :1] == 4, [[np.nan, 1]], [[0.5, 0.5]]).astype(np.float32)}

    with pytest.raises(InferenceFailed, match=r"^instance 1: "):
        run_task(whole, run, ["good", "good bad film a very not the was i"])


@pytest.mark.parametrize(
    ("text", "known", "is_uncertain"), [("good film", 2, False), ("good ☃", 1, False), ("good ☃ ☃", 1, True), ("\u2603", 0, True)]
)
def test_a_text_of_which_too_little_is_known_is_uncertain(whole: ClassifyTask, text: str, known: int, is_uncertain: bool) -> None:
    (prediction,) = run_task(whole, by_first_token, [text])
    assert prediction["known_tokens"] == known
    assert prediction.get("uncertain", False) == is_uncertain


def test_over_tensors_a_text_longer_than_a_row_keeps_its_head_and_tail(whole: ClassifyTask) -> None:
    texts = np.array(["good bad film a very not the was i", "bad film"], np.object_)
    tensors = whole.encode_tensors({"text": texts})
    assert tensors["tokens"].tolist() == [[1, 7, 8, 9], [2, 3, 0, 0]]
    assert tensors["lengths"].tolist() == [4, 2]


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ("", "instance 1: the text is empty"),
        (" \t\n", "instance 1: the text is empty"),
        ({"text": ""}, "instance 1: the text is empty"),
        ({"text": 5}, "instance 1: text: expected a string, got 5"),
        ({"text": None}, "instance 1: text: expected a string, got null"),
        ({}, "instance 1: text is missing"),
        (5, "instance 1: expected a string, got 5"),
        (["good"], "instance 1: expected a string, got a list of 1"),
        ("half \ud800 pair", "instance 1: the text has a lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(classify: ClassifyTask, instance: object, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        run_task(classify, by_first_token, ["good", instance])
    assert caught.value.message.startswith(message)
    assert caught.value.facts["instance"] == 1


@pytest.mark.parametrize("is_object", [False, True])
def test_a_text_beyond_the_limit_is_refused_before_it_is_split(classify: ClassifyTask, is_object: bool) -> None:
    def instance(text: str) -> object:
        return {"text": text} if is_object else text

    assert run_task(classify, by_first_token, [instance("good ".ljust(MAX_CHARACTERS, "!"))])[0]["label"] == "positive"
    with pytest.raises(InvalidInput, match="instance 1: the text has 100001 characters, expected at most 100000") as caught:
        run_task(classify, by_first_token, ["good", instance("!" * (MAX_CHARACTERS + 1))])
    assert (caught.value.reason, caught.value.facts["instance"]) == ("length", 1)


def test_classification_takes_no_parameters_and_no_other_fields(classify: ClassifyTask) -> None:
    with pytest.raises(MalformedRequest, match=r"parameters: unknown \"horizon\"; this model takes \['explain'\]"):
        run_task(classify, by_first_token, ["good"], horizon=1)
    with pytest.raises(MalformedRequest, match='instance 0: unknown field "txt"'):
        run_task(classify, by_first_token, [{"text": "good", "txt": "bad"}])


def test_an_output_that_is_not_finite_names_its_instance(classify: ClassifyTask) -> None:
    def run(item: Tensors) -> Tensors:
        return {"probabilities": np.where(item["tokens"][:, :1] == 1, [[np.nan, 1]], [[0.5, 0.5]]).astype(np.float32)}

    with pytest.raises(InferenceFailed, match=r"^instance 3: ") as caught:
        run_task(classify, run, ["bad", "not a very", "the plot", "good"])
    assert caught.value.facts["instance"] == 3


def test_only_large_requests_are_heavy(classify: ClassifyTask) -> None:
    small, large = "good film", {"text": "good " * 10_000}
    assert not classify.is_heavy([small], {})
    assert classify.is_heavy([small] * 100, {})
    assert classify.is_heavy([small, large], {})
    assert not classify.is_heavy([None, 5, {}], {})


def test_a_graph_that_does_not_take_the_last_token_is_found(classify: ClassifyTask) -> None:
    def small_embedding(tensors: Tensors) -> Tensors:
        if tensors["tokens"].max() > 3:
            raise InferenceFailed("no such token")
        return {}

    assert classify.check_graph(lambda tensors: {}) == []
    assert classify.check_graph(small_embedding) == [
        f"tokenizer.json has token ids up to {classify.tokenizer.largest_id}, the graph does not take them"
    ]


def manifest_of(spec: ClassifySpec) -> Manifest:
    tensor = {"name": "x", "datatype": "FP32", "shape": ["batch"]}
    return manifest_type("classify", ClassifySpec).model_validate(
        {
            "schema_version": 1,
            "name": "toy",
            "version": "1",
            "task": "classify",
            "graphs": [{"file": "model.onnx", "sha256": "0" * 64, "opset": 17}],
            "inputs": [tensor],
            "outputs": [tensor],
            "classify": spec.model_dump(),
        }
    )


def test_the_tensors_that_clients_name_are_texts_and_labels(classify: ClassifyTask) -> None:
    tensors = TASK.public_tensors(manifest_of(classify.spec), classify.signature)
    assert [str(spec) for spec in tensors.inputs] == ["BYTES [batch]"]
    assert [(spec.name, str(spec)) for spec in tensors.outputs] == [
        ("label", "BYTES [batch]"),
        ("probabilities", "FP32 [batch, 2]"),
    ]


@pytest.mark.parametrize(
    ("labels", "subject", "purpose", "serves"),
    [
        (["negative", "positive"], "sentiment", "sentiment", True),
        (["bad", "good"], "sentiment", "sentiment", True),
        (["negative", "positive"], "toxicity", "sentiment", False),
        # As folders were written before manifests had a subject.
        (["positive", "negative"], None, "sentiment", True),
        (["negative", "neutral", "positive"], None, "sentiment", False),
        (["a", "b"], None, "sentiment", False),
        (["negative", "positive"], None, "topic", False),
        (["a", "b"], "topic", "topic", True),
    ],
)
def test_a_classifier_serves_its_subject(labels: list[str], subject: str | None, purpose: str, serves: bool) -> None:
    spec = ClassifySpec(labels=labels, subject=subject, max_length=4, truncation=Truncation(head=1, tail=3), language="en")
    assert TASK.serves(manifest_of(spec), purpose) is serves
