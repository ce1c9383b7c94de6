"""Tokens: what is written is read again by whoever has the key, and anything else is refused with what it is."""

from __future__ import annotations

import base64
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import StartError, StateError
from service.sequences.state import GraphIdentity, SequenceState
from service.sequences.tokens import MAX_KEYS, StateTokens, open_state_tokens, read_keys

OLD, NEW, FOREIGN = b"o" * 32, b"n" * 40, b"f" * 32
OWN = GraphIdentity("toy", 3, hashlib.sha256(b"graph").hexdigest())
STATE = SequenceState(*OWN, 17, {"h": np.array([0.5, -1.25, 3.0], np.float32)})
SIZE = STATE.num_bytes


def problem_of(tokens: StateTokens, token: object, identity: GraphIdentity = OWN, size: int = SIZE) -> str:
    with pytest.raises(StateError) as caught:
        tokens.read(token, identity, size)
    assert len(caught.value.message) < 500
    return caught.value.problem


@pytest.mark.parametrize("keys", [(), (NEW,), (NEW, OLD)])
@given(values=st.lists(st.floats(width=32, allow_nan=False), max_size=9), steps=st.integers(0, 2**63 - 1))
def test_a_token_is_read_as_it_was_written(keys: tuple[bytes, ...], values: list[float], steps: int) -> None:
    tokens = StateTokens(keys)
    state = SequenceState(*OWN, steps, {"h": np.array(values, np.float32)})
    token = tokens.write(state)
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert tokens.read(token, OWN, state.num_bytes) == state


def test_a_token_is_the_base64url_of_the_block() -> None:
    token = StateTokens().write(STATE)
    assert base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)) == STATE.to_bytes()


def test_keys_can_be_changed_while_tokens_are_under_way() -> None:
    before, between, after = StateTokens([OLD]), StateTokens([NEW, OLD]), StateTokens([NEW])
    old, new = before.write(STATE), between.write(STATE)
    assert between.read(old, OWN, SIZE) == STATE
    assert after.read(new, OWN, SIZE) == STATE
    assert problem_of(after, old) == "forged"
    assert problem_of(before, new) == "forged"


def test_with_a_key_only_signed_tokens_are_taken_and_without_one_any() -> None:
    plain, signed = StateTokens().write(STATE), StateTokens([NEW]).write(STATE)
    assert problem_of(StateTokens([NEW]), plain) == "forged"
    assert StateTokens().read(signed, OWN, SIZE) == STATE


def test_a_state_that_another_has_written_anew_is_forged() -> None:
    forged = SequenceState(*OWN, 18, STATE.tensors)
    token = StateTokens([FOREIGN]).write(forged)
    assert problem_of(StateTokens([NEW]), token) == "forged"
    content = base64.urlsafe_b64decode(StateTokens([NEW]).write(STATE) + "==")
    spliced = base64.urlsafe_b64encode(forged.to_bytes() + content[SIZE:]).decode().rstrip("=")
    assert problem_of(StateTokens([NEW]), spliced) == "forged"


@pytest.mark.parametrize(
    ("identity", "problem"),
    [
        (OWN._replace(model="other"), "model"),
        (OWN._replace(version=4), "version"),
        (OWN._replace(digest="00" * 32), "graph"),
    ],
)
def test_a_token_of_another_graph_is_refused_with_what_differs_whatever_its_size(identity: GraphIdentity, problem: str) -> None:
    for keys in ((), (NEW,)):
        for tensor in (np.zeros(3, np.float32), np.zeros(3000, np.float32), np.zeros(0, np.float32)):
            token = StateTokens(keys).write(SequenceState(*identity, 1, {"h": tensor}))
            assert problem_of(StateTokens(keys), token) == problem


@pytest.mark.parametrize("token", [1, 1.5, True, [], {}, ["x"]])
def test_what_is_no_text_is_no_token(token: Any) -> None:
    assert problem_of(StateTokens(), token) == "damaged"


@pytest.mark.parametrize("token", ["", "A", "AAAA", "=" * 40, "ä" * 200, "U0xT", " " * 300, "A" * 1_000_000, "\ud800" * 50])
def test_what_is_no_block_is_damaged(token: str) -> None:
    assert problem_of(StateTokens(), token) == "damaged"


@pytest.mark.parametrize("keys", [(), (NEW,)])
@given(data=st.data())
def test_a_changed_character_is_noticed(keys: tuple[bytes, ...], data: st.DataObject) -> None:
    tokens = StateTokens(keys)
    token = tokens.write(STATE)
    place = data.draw(st.integers(0, len(token) - 2))  # the last one has bits that mean nothing
    other = data.draw(st.sampled_from("AZaz09-_=+/ \n\0").filter(lambda character: character != token[place]))
    if (token[place], other) in (("-", "+"), ("_", "/")):
        return  # the same value in the other alphabet
    found = problem_of(tokens, token[:place] + other + token[place + 1 :])
    assert found in ("damaged", "forged", "model", "version", "graph")


@given(st.integers(0, 400))
def test_a_token_of_another_length_is_damaged(size: int) -> None:
    token = StateTokens([NEW]).write(STATE)
    for changed in (token[: min(size, len(token) - 1)], token + "A" * (size + 1)):
        # Cut right behind the block it is one without a signature.
        assert problem_of(StateTokens([NEW]), changed) in ("damaged", "forged")


# ------------------------------------------------------------------------------------------------------------ the keys


def test_keys_stand_one_per_line_beside_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"# made in May\n\n" + NEW + b"  \n" + OLD)
    assert read_keys(path) == [NEW, OLD]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 keys"),
        (b"# nothing\n", "holds 0 keys"),
        (b"\n".join([NEW] * (MAX_KEYS + 1)), f"holds {MAX_KEYS + 1} keys"),
        (NEW + b"\nsecret\n", "key 1 .* has 6 characters, expected at least 32"),
        (b"x" * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_file_without_proper_keys_stops_the_start(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(StartError, match=message) as caught:
        open_state_tokens(path)
    assert "secret" not in caught.value.message


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be read"):
        open_state_tokens(tmp_path / "none")


def test_keys_are_read_again_when_their_file_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_bytes(OLD)
    tokens, (watch,) = open_state_tokens(path)
    old = tokens.write(STATE)
    path.write_bytes(NEW + b"\n" + OLD)
    watch.look()
    watch.look()
    assert StateTokens([NEW]).read(tokens.write(STATE), OWN, SIZE) == STATE
    assert tokens.read(old, OWN, SIZE) == STATE
    path.write_bytes(b"short")
    with caplog.at_level(logging.ERROR):
        watch.look()
        watch.look()
    assert tokens.keys == (NEW, OLD)
    assert "short" not in str([vars(record) for record in caplog.records if "reason" in vars(record)])


def test_without_a_file_nothing_is_signed_or_watched() -> None:
    tokens, watches = open_state_tokens(None)
    assert (tokens.keys, watches) == ((), ())
