"""API keys: the file that names them by their hashes, and which of them a request presents.

What a key opens is decided in `control.py`. The keys themselves are nowhere but with those who send them.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import secrets
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from service.api.access.rates import Rate, parse_rate
from service.errors import StartError
from service.files import read_bounded

Scope = Literal["predict", "admin"]
"""`predict`: predictions and the list of models. `admin`: metrics and health, where they are protected."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
NO_LIMIT = "none"
PREFIX = "sluice_"
"""Scanners for leaked secrets find keys by it."""
KEY_BYTES = 32
MAX_FILE_BYTES = 1024 * 1024
MAX_KEYS = 1000
MAX_KEY_LENGTH = 256
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True)
class ApiKey:
    """One key as the file describes it."""

    name: str
    """Of its holder: in logs and metrics, where the key never is. Several keys may have one: while one replaces another."""
    digest: bytes
    """SHA-256 of the key."""
    scopes: frozenset[Scope]
    models: frozenset[str] | None = None
    """Those it may use and see; None for all."""
    expires_at: float | None = None
    """Unix time."""
    rate: Rate | None = None
    """Instead of the server's; None where it has none of its own."""
    is_unlimited: bool = False
    """It has no rate, also where the server has one."""


class _Entry(BaseModel):
    """One `[[keys]]` of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=f"^{_NAME}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)] = ["predict"]
    models: Annotated[list[str], Field(min_length=1)] | None = None
    expires: AwareDatetime | None = None
    rate_limit: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    # No keys at all is how a file looks that is just being written; nobody means to shut everyone out with it.
    keys: Annotated[list[_Entry], Field(min_length=1, max_length=MAX_KEYS)]


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file. Raises StartError that says what is wrong with it, and where."""
    content = read_bounded(path, MAX_FILE_BYTES)
    try:
        return _parse(content.decode())
    except ValueError as exc:
        raise StartError(f"{path}: {'it is not UTF-8' if isinstance(exc, UnicodeDecodeError) else exc}") from exc


def _parse(text: str) -> list[ApiKey]:
    """Raises ValueError."""
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ValueError(f"it is not TOML: {exc}") from exc
    try:
        keys = [_key(entry) for entry in _File.model_validate(content).keys]
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from exc
    digests: set[bytes] = set()
    limits: dict[str, tuple[Rate | None, bool]] = {}
    for key in keys:
        if key.digest in digests:
            raise ValueError(f'the key of "{key.name}" stands there twice')
        digests.add(key.digest)
        if limits.setdefault(key.name, (key.rate, key.is_unlimited)) != (key.rate, key.is_unlimited):
            raise ValueError(f'the keys of "{key.name}" have different rate limits, and are counted together')
    return keys


def _key(entry: _Entry) -> ApiKey:
    is_unlimited = entry.rate_limit == NO_LIMIT
    return ApiKey(
        entry.name,
        bytes.fromhex(entry.sha256),
        frozenset(entry.scopes),
        models=None if entry.models is None else frozenset(entry.models),
        expires_at=None if entry.expires is None else entry.expires.timestamp(),
        rate=None if entry.rate_limit is None or is_unlimited else parse_rate(entry.rate_limit),
        is_unlimited=is_unlimited,
    )


class _Known(NamedTuple):
    """What one file gave; replaced as a whole."""

    by_digest: dict[bytes, ApiKey]
    presented: dict[bytes, ApiKey]


class KeyRing:
    """The keys that open this server. `replace` may be called from another thread."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._known = _Known({}, {})
        self.replace(keys)

    def replace(self, keys: Iterable[ApiKey]) -> bool:
        """From now on these, and no others; whether that changes anything."""
        by_digest = {key.digest: key for key in keys}
        if by_digest == self._known.by_digest:
            return False
        self._known = _Known(by_digest, {})
        return True

    def find(self, presented: bytes) -> ApiKey | None:
        """The key that was presented, also one that has expired; None for what is no key.

        A key has 256 random bits, so that one SHA-256 hides it as well as bcrypt would, which is for what people think up
        and would cost each request a tenth of a second. What a request presents is looked up by its hash: how long that
        takes depends on the hash, of which nobody can choose a prefix. A key that was found once is found again without
        hashing, in a mapping of genuine keys alone: Python compares it with the entry of an equal 64-bit hash under a secret of
        this process (SipHash), and so with no other key but itself.
        """
        known = self._known
        key = known.presented.get(presented)
        if key is not None:
            return key
        if len(presented) > MAX_KEY_LENGTH:
            return None
        digest = hashlib.sha256(presented).digest()
        key = known.by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        known.presented[presented] = key
        return key

    def __len__(self) -> int:
        return len(self._known.by_digest)


def new_key() -> str:
    """A random key."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def describe_entry(
    key: str,
    name: str,
    *,
    scopes: Sequence[str],
    models: Sequence[str] = (),
    expires: datetime.date | None = None,
    rate_limit: str | None = None,
) -> str:
    """The entry of a key for the file. Raises StartError where the file would be refused for it."""
    lines = ["[[keys]]", f"name = {_quote(name)}", f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
    lines.append(f"scopes = [{', '.join(map(_quote, scopes))}]")
    if models:
        lines.append(f"models = [{', '.join(map(_quote, models))}]")
    if expires is not None:
        lines.append(f"expires = {expires.isoformat()}T00:00:00Z")
    if rate_limit is not None:
        lines.append(f"rate_limit = {_quote(rate_limit)}")
    entry = "\n".join(lines) + "\n"
    try:
        _parse(entry)
    except ValueError as exc:
        raise StartError(f"the keys file would be refused: {exc}") from exc
    return entry


def _quote(text: str) -> str:
    """A TOML string: JSON's escapes are among TOML's."""
    return json.dumps(text, ensure_ascii=False)
