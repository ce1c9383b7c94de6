"""Texts are classified in any batch; baselines answer the same instances without any network."""

from __future__ import annotations

import numpy as np
import torch

from training.data.texts import Texts
from training.export.graph import write_graph
from training.network.heads.classify import ClassifySpec
from training.network.network import Network
from training.scoring.classify import classify_baseline, classify_rows, join_pieces
from training.scoring.evaluate import Graph

TRAIN = Texts(("good film", "a good plot", "nice and good", "bad film", "a bad plot") * 10, np.array([1, 1, 1, 0, 0] * 10))
TEST = {"t": Texts(("good", "bad"), np.array([1, 0]))}


def test_the_majority_answers_the_shares_of_the_labels() -> None:
    np.testing.assert_allclose(classify_baseline("majority", TRAIN, TEST, 2, {})["t"], [[0.4, 0.6]] * 2)


def test_tfidf_reads_words_and_knows_labels_that_training_lacks() -> None:
    probabilities = classify_baseline("tfidf_logistic", TRAIN, TEST, 3, {"<br />": " "})["t"]
    assert probabilities.argmax(1).tolist() == [1, 0]
    np.testing.assert_allclose(probabilities[:, 2], 0)
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_tfidf_reads_characters_where_words_are_not_separated() -> None:
    train = Texts(("房间很好", "服务很好", "房间很差", "服务太差") * 5, np.array([1, 1, 0, 0] * 5))
    test = {"t": Texts(("早餐很好", "早餐太差"), np.array([1, 0]))}
    assert classify_baseline("tfidf_logistic", train, test, 2, {})["t"].argmax(1).tolist() == [1, 0]


def test_the_graph_classifies_rows_in_their_order_whatever_their_length() -> None:
    layers = ({"type": "embedding", "output_dim": 4}, {"type": "lstm", "units": 3}, {"type": "dense"})
    spec = ClassifySpec(layers=layers, vocabulary_size=20, labels=("a", "b", "c"))
    torch.manual_seed(0)
    graph = write_graph(Network(spec).eval()).SerializeToString()
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 20, n) for n in (5, 1, 9, 3, 7)]
    together = classify_rows(Graph(graph), rows, 2)
    alone = np.concatenate([classify_rows(Graph(graph), [row], 1) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_pieces_of_a_text_answer_with_the_mean_of_their_logits() -> None:
    logits = np.array([0.0, 2.0, -1.0, 5.0])
    positive = 1 / (1 + np.exp(-logits))
    rows = np.stack([1 - positive, positive], 1).astype(np.float32)
    joined = join_pieces(rows, np.array([0, 1, 1, 2]))
    np.testing.assert_allclose(joined[:, 1], 1 / (1 + np.exp(-np.array([0.0, 0.5, 5.0]))), rtol=1e-6)
    np.testing.assert_array_equal(joined[[0, 2]], rows[[0, 3]])
    np.testing.assert_array_equal(join_pieces(rows, np.arange(4)), rows)


def test_baselines_learn_nothing_from_neutral_texts() -> None:
    train = Texts((*TRAIN.texts, *["good"] * 50), np.concatenate([TRAIN.labels, np.full(50, -1)]))
    np.testing.assert_allclose(classify_baseline("majority", train, TEST, 2, {})["t"], [[0.4, 0.6]] * 2)
    assert classify_baseline("tfidf_logistic", train, TEST, 2, {})["t"].argmax(1).tolist() == [1, 0]


def test_naive_bayes_ratios_read_words_or_characters_and_any_number_of_labels() -> None:
    assert classify_baseline("nb_logistic", TRAIN, TEST, 2, {})["t"].argmax(1).tolist() == [1, 0]
    train = Texts(("房间很好", "服务很好", "房间很差", "服务太差", "今天天气") * 5, np.array([1, 1, 0, 0, 2] * 5))
    test = {"t": Texts(("早餐很好", "早餐太差", "天气"), np.array([1, 0, 2]))}
    probabilities = classify_baseline("nb_logistic", train, test, 3, {})["t"]
    assert probabilities.argmax(1).tolist() == [1, 0, 2]
    np.testing.assert_allclose(probabilities.sum(1), 1)
