"""Predictions explained word by word: which texts are classified for it, and how much of it there may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import InferenceFailed, InvalidInput, MalformedRequest
from service.runtime.tensors import Signature, Tensors, TensorSpec
from service.tasks.base import advance
from service.tasks.classify import ClassifySpec, ClassifyTask, Truncation
from service.tasks.explanation import MAX_CHARACTERS, MAX_VALUES, MAX_WORDS, Explanation, Variant, count_words
from service.tasks.tokenization import load_tokenizer
from tests.fakes import run_task
from tests.folders import write_text_folder


@pytest.fixture
def classify(tmp_path: Path) -> ClassifyTask:
    folder = write_text_folder(tmp_path)
    spec = ClassifySpec(
        labels=["negative", "positive"], subject=None, max_length=6, truncation=Truncation(head=2, tail=4), language="en"
    )
    signature = Signature(
        (TensorSpec("tokens", "INT64", ("batch", "time")), TensorSpec("lengths", "INT64", ("batch",))),
        (TensorSpec("probabilities", "FP32", ("batch", 2)),),
    )
    task = ClassifyTask(spec, signature, load_tokenizer(folder / "tokenizer.json"))
    task.reads_one_way = True
    return task


def by_all_tokens(item: Tensors) -> Tensors:
    """Another probability for each text: a function of its tokens, their order and their number."""
    steps = np.arange(item["tokens"].shape[1])
    kept = steps < item["lengths"][:, None]
    total = (kept * (item["tokens"] + 1) * (steps + 3)).sum(axis=1) % 97
    positive = ((total + 1) / 99).astype(np.float32)
    return {"probabilities": np.stack((1 - positive, positive), axis=1)}


def test_a_prefix_ends_after_a_word_and_occlusion_leaves_a_word_out() -> None:
    prefix = Explanation("prefix", [" not a\tbad film! "])
    assert prefix.words == [["not", "a", "bad", "film!"]]
    assert [text for _, text in prefix.variants] == [" not", " not a", " not a\tbad", " not a\tbad film!"]
    occlusion = Explanation("occlusion", ["good", "a film"])
    assert occlusion.variants == [Variant(0, ""), Variant(1, " film"), Variant(1, "a ")]


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert Explanation("prefix", ["房间OK。 ok"]).words == [["房", "间", "OK。", "ok"]]
    assert Explanation("prefix", ["とても𠀋良い"]).words == [list("とても𠀋良い")]


@pytest.mark.parametrize("long_texts", ["cut", "pieces"])
def test_each_value_is_what_the_text_alone_would_get(classify: ClassifyTask, long_texts: str) -> None:
    classify.spec = classify.spec.model_copy(update={"long_texts": long_texts})
    texts: list[Any] = ["not a very good film , i saw it and the plot was bad", {"text": "good"}, "the film was a film"]
    plain = run_task(classify, by_all_tokens, texts)
    for method in ("prefix", "occlusion"):
        explained = run_task(classify, by_all_tokens, texts, explain=method)
        variants = Explanation(method, [each if isinstance(each, str) else each["text"] for each in texts]).variants
        for number, (prediction, expected) in enumerate(zip(explained, plain, strict=True)):
            explanation = prediction.pop("explanation")
            assert prediction == expected
            assert explanation["method"] == method
            own = [text for instance, text in variants if instance == number]
            assert len(explanation["words"]) == len(own)
            # Of a text of one word nothing is left: then it is one token that the model does not know.
            alone = run_task(classify, by_all_tokens, [text or "☃" for text in own])
            for label in ("negative", "positive"):
                assert explanation["probabilities"][label] == [each["probabilities"][label] for each in alone]


def test_null_explains_nothing(classify: ClassifyTask) -> None:
    assert "explanation" not in run_task(classify, by_all_tokens, ["good film"], explain=None)[0]


def test_a_network_that_reads_from_the_end_has_no_running_score(classify: ClassifyTask) -> None:
    assert classify.describe()["explain"] == ["prefix", "occlusion"]
    classify.reads_one_way = False
    assert classify.describe()["explain"] == ["occlusion"]
    with pytest.raises(InvalidInput, match=r"expected one of \['occlusion'\], since the model reads texts from their end too"):
        run_task(classify, by_all_tokens, ["good"], explain="prefix")
    assert run_task(classify, by_all_tokens, ["good"], explain="occlusion")[0]["explanation"]["words"] == ["good"]


@pytest.mark.parametrize("value", ["", "PREFIX", "gradient", "x" * 5000, 1, True, ["prefix"], {"method": "prefix"}, float("inf")])
def test_any_other_method_is_refused_in_few_words(classify: ClassifyTask, value: object) -> None:
    with pytest.raises(InvalidInput, match="parameters: explain: expected one of") as caught:
        run_task(classify, by_all_tokens, ["good"], explain=value)
    assert len(caught.value.message) < 250


def test_another_parameter_beside_it_is_refused(classify: ClassifyTask) -> None:
    with pytest.raises(MalformedRequest, match='parameters: unknown "horizon"'):
        run_task(classify, by_all_tokens, ["good"], explain="prefix", horizon=1)


def test_a_piece_of_a_stream_is_not_explained(classify: ClassifyTask) -> None:
    steps = classify.run_steps(["good"], {"explain": "prefix"}, lambda lengths: [[0]], steps_seen=[3])
    with pytest.raises(InvalidInput, match="a piece of a text cannot be explained"):
        advance(steps, None)


def test_the_rows_of_a_request_are_its_texts_and_their_words(classify: ClassifyTask) -> None:
    texts = ["a good film", {"text": "bad"}]
    assert classify.count_rows(texts, {}) == classify.count_rows(texts, {"explain": None}) == 2
    assert classify.count_rows(texts, {"explain": "occlusion"}) == 6
    assert classify.is_heavy(texts, {"explain": "occlusion"})
    assert not classify.is_heavy(texts, {})


@pytest.mark.parametrize(
    ("texts", "instance"),
    [
        (["a " * (MAX_WORDS + 1)], 0),
        (["a " * MAX_WORDS, "good"], 1),
        (["good", "a" * (MAX_CHARACTERS + 1)], 1),
        (["房" * (MAX_WORDS + 1)], 0),
        (["good"] * 10_000, MAX_WORDS),
        (["good", ("a" * 15 + " ") * 249], 1),
        ([("a" * 9 + " ") * 128, "good", ("a" * 29 + " ") * 127], 2),
    ],
)
def test_more_than_is_explained_is_refused_before_it_is_split(classify: ClassifyTask, texts: list[str], instance: int) -> None:
    for attempt in (
        lambda: classify.count_rows(texts, {"explain": "occlusion"}),
        lambda: run_task(classify, by_all_tokens, texts, explain="occlusion"),
    ):
        with pytest.raises(InvalidInput, match="to explain") as caught:
            attempt()
        assert (caught.value.facts["instance"], caught.value.reason) == (instance, "length")


def test_the_most_that_is_explained_is_answered(classify: ClassifyTask) -> None:
    text = "a " * MAX_WORDS
    assert len(run_task(classify, by_all_tokens, [text], explain="prefix")[0]["explanation"]["words"]) == MAX_WORDS
    words = "a" * 14 + " "
    assert len(run_task(classify, by_all_tokens, [words * 182], explain="occlusion")[0]["explanation"]["words"]) == 182
    longest = "a" * (MAX_CHARACTERS - 5) + " good"
    assert len(run_task(classify, by_all_tokens, [longest], explain="occlusion")[0]["explanation"]["words"]) == 2


def test_with_many_labels_fewer_words_are_explained() -> None:
    assert count_words(["a " * 10], MAX_VALUES // 10) == 10
    with pytest.raises(InvalidInput, match="at most 10 words"):
        count_words(["a " * 11], MAX_VALUES // 10)


@pytest.mark.parametrize("text", ["", " \n", "half \ud800 pair", 5, None, ["good"]])
def test_what_is_no_text_is_refused_as_without_an_explanation(classify: ClassifyTask, text: object) -> None:
    with pytest.raises(InvalidInput) as plain:
        run_task(classify, by_all_tokens, ["good", text])
    with pytest.raises(InvalidInput) as explained:
        run_task(classify, by_all_tokens, ["good", text], explain="occlusion")
    assert explained.value.message == plain.value.message


@pytest.mark.parametrize("long_texts", ["cut", "pieces"])
def test_a_variant_that_is_not_finite_names_its_instance(classify: ClassifyTask, long_texts: str) -> None:
    classify.spec = classify.spec.model_copy(update={"long_texts": long_texts})

    def run(item: Tensors) -> Tensors:
        is_alone = (item["lengths"] == 1)[:, None]
        return {"probabilities": np.where(is_alone, np.nan, 0.5).astype(np.float32).repeat(2, axis=1)}

    with pytest.raises(InferenceFailed, match=r"^instance 1: "):
        run_task(classify, run, ["good film a", "bad film"], explain="occlusion")
