"""API keys: what their file may hold, which are found, and that the command's entries are taken."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

import pytest

from service.api.access.keys import MAX_KEYS, ApiKey, KeyRing, describe_entry, new_key, read_keys
from service.api.access.rates import parse_rate
from service.errors import StartError

HASH = "ab" * 32


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def written(folder: Path, text: str) -> Path:
    (folder / "keys.toml").write_text(text)
    return folder / "keys.toml"


def entry(name: str = "a", sha256: str = HASH, more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nsha256 = "{sha256}"\n{more}\n'


def test_an_entry_needs_a_name_and_a_hash_and_then_opens_predictions_with_every_model(tmp_path: Path) -> None:
    assert read_keys(written(tmp_path, entry())) == [ApiKey("a", bytes.fromhex(HASH), frozenset({"predict"}))]


def test_an_entry_may_narrow_what_a_key_opens(tmp_path: Path) -> None:
    more = 'scopes = ["predict", "admin"]\nmodels = ["m"]\nexpires = 2030-01-01T00:00:00Z\nrate_limit = "10/s"'
    expires_at = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC).timestamp()
    assert read_keys(written(tmp_path, entry(more=more))) == [
        ApiKey(
            "a",
            bytes.fromhex(HASH),
            frozenset({"predict", "admin"}),
            models=frozenset({"m"}),
            expires_at=expires_at,
            rate=parse_rate("10/s"),
        )
    ]


def test_a_key_may_have_no_limit(tmp_path: Path) -> None:
    (key,) = read_keys(written(tmp_path, entry(more='rate_limit = "none"')))
    assert (key.rate, key.is_unlimited) == (None, True)


def test_one_holder_may_have_two_keys_while_one_replaces_the_other(tmp_path: Path) -> None:
    keys = read_keys(written(tmp_path, entry(sha256="aa" * 32) + entry(sha256="bb" * 32)))
    assert [key.name for key in keys] == ["a", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys: Field required"),
        ("keys = []", "keys: List should have at least 1 item"),
        ("keys = 1", "keys: Input should be a valid list"),
        ("[[keys]", "it is not TOML: "),
        ("x = " + "[" * 5000, "it is not TOML: "),
        ("other = 1\n" + entry(), "other: Extra inputs are not permitted"),
        (entry(more='key = "sluice_x"'), "keys.0.key: Extra inputs are not permitted"),
        (entry(sha256="AB" * 32), "keys.0.sha256: String should match pattern"),
        (entry(sha256="ab" * 31), "keys.0.sha256: String should match pattern"),
        (entry(name=""), "keys.0.name: String should match pattern"),
        (entry(name="a b"), "keys.0.name: String should match pattern"),
        (entry(name="a" * 65), "keys.0.name: String should match pattern"),
        (entry(name="a\\nb"), "keys.0.name: String should match pattern"),
        (entry(more="scopes = []"), "keys.0.scopes: List should have at least 1 item"),
        (entry(more='scopes = ["root"]'), "keys.0.scopes.0: Input should be 'predict' or 'admin'"),
        (entry(more="models = []"), "keys.0.models: List should have at least 1 item"),
        (entry(more="expires = 2030-01-01T00:00:00"), "keys.0.expires: Input should have timezone info"),
        (entry(more='expires = "2030-01-01T00:00:00Z"'), "keys.0.expires: Input should be a valid datetime"),
        (entry(more='rate_limit = "10"'), '"10" is not a rate such as 100/s'),
        (entry() + entry("b"), 'the key of "b" stands there twice'),
        (entry(more='rate_limit = "1/s"') + entry(sha256="bb" * 32), 'the keys of "a" have different rate limits'),
        ("".join(entry(f"n{i}", f"{i:064x}") for i in range(MAX_KEYS + 1)), "keys: List should have at most 1000 items"),
    ],
)
def test_a_file_that_says_something_else_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(StartError) as caught:
        read_keys(file)
    assert caught.value.message.startswith(f"{file}: {message}")


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_bytes(b"\xff")
    with pytest.raises(StartError, match="it is not UTF-8"):
        read_keys(file)
    file.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(StartError, match="has more than 1048576 bytes"):
        read_keys(file)


def test_a_refusal_does_not_repeat_what_stands_in_the_file(tmp_path: Path) -> None:
    """Somebody may have put the key itself where its hash belongs."""
    with pytest.raises(StartError) as caught:
        read_keys(written(tmp_path, entry(sha256="sluice_secret")))
    assert "sluice_secret" not in caught.value.message


def test_a_key_is_found_by_what_is_presented_and_by_nothing_else() -> None:
    key = ApiKey("a", digest_of("sluice_x"), frozenset({"predict"}))
    ring = KeyRing([key])
    for _ in range(2):
        assert ring.find(b"sluice_x") is key
        for wrong in (b"", b"sluice_", b"sluice_y", b"sluice_x ", b"Sluice_x", digest_of("sluice_x"), b"\xff" * 300):
            assert ring.find(wrong) is None


def test_what_is_found_again_without_hashing_is_bounded_by_the_keys_there_are() -> None:
    ring = KeyRing([ApiKey("a", digest_of("sluice_x"), frozenset({"predict"}))])
    for number in range(1000):
        ring.find(b"wrong %d" % number)
    ring.find(b"sluice_x")
    assert list(ring._known.presented) == [b"sluice_x"]


def test_a_key_that_was_removed_is_found_no_more_also_if_it_was_found_before() -> None:
    old, new = (ApiKey("a", digest_of(key), frozenset({"predict"})) for key in ("old", "new"))
    ring = KeyRing([old])
    assert ring.find(b"old") is old
    ring.replace([new])
    assert (ring.find(b"old"), ring.find(b"new"), len(ring)) == (None, new, 1)


def test_new_keys_are_long_random_and_known_by_their_prefix() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sluice_") and len(key) == 50 for key in keys)


def test_the_entry_of_a_new_key_is_one_that_the_file_may_hold(tmp_path: Path) -> None:
    key = new_key()
    text = describe_entry(
        key,
        "partner",
        scopes=["predict", "admin"],
        models=['q"uo\\te', "日本 😀"],
        expires=datetime.date(2030, 1, 1),
        rate_limit="10/min",
    )
    (found,) = read_keys(written(tmp_path, "# before\n" + text))
    assert KeyRing([found]).find(key.encode()) is found
    assert found.models == frozenset({'q"uo\\te', "日本 😀"})
    assert found.rate == parse_rate("10/min")
    assert key not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "two words"}, "name: String should match pattern"),
        ({"scopes": ["root"]}, "scopes.0: Input should be"),
        ({"rate_limit": "fast"}, '"fast" is not a rate'),
        ({"models": ["\x7f"]}, "it is not TOML"),
    ],
)
def test_no_entry_is_made_that_the_file_could_not_hold(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"name": "a", "scopes": ["predict"], **options}
    with pytest.raises(StartError, match="the keys file would be refused") as caught:
        describe_entry(new_key(), **arguments)  # type: ignore[arg-type]
    assert message in caught.value.message
