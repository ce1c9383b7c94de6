"""States as texts that clients carry from one request to the next, signed where the server has a key.

Keeps nothing: any replica with the same keys and models goes on from a token of another.
"""

from __future__ import annotations

import binascii
import hmac
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from service.errors import StartError, StateError
from service.files import FileWatch, read_bounded
from service.sequences.state import MAX_HEAD_BYTES, GraphIdentity, SequenceState, expect_identity, read_identity

log = logging.getLogger(__name__)

SIGNATURE_BYTES = 32
"""HMAC-SHA256 of the block."""
MIN_KEY_LENGTH = 32
"""Characters of a key: as many as hold 128 bits where they are hexadecimal digits."""
MAX_KEYS = 16
MAX_FILE_BYTES = 64 * 1024
_PREFIX_LENGTH = 4 * -(-MAX_HEAD_BYTES // 3)
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_PLAIN = bytes.maketrans(b"-_", b"+/")


class StateTokens:
    """States ↔ tokens: base64url, without padding, of the state's block and its signature.

    The first key signs, each of them verifies. Without keys nothing is signed: who carries a token may then change what is in it.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self.keys = tuple(keys)
        """May be set while tokens are read and written."""

    def write(self, state: SequenceState) -> str:
        """The token of a state."""
        block = state.to_bytes()
        if keys := self.keys:
            block += _sign(keys[0], block)
        return binascii.b2a_base64(block, newline=False).translate(_URL_SAFE).rstrip(b"=").decode()

    def read(self, token: object, identity: GraphIdentity, num_bytes: int) -> SequenceState:
        """The state that a token holds, which is one of this graph, whose states have so many bytes.

        Raises StateError for anything else, which says what it is. Of a token only what can be one of this graph is decoded.
        """
        if type(token) is not str:
            raise StateError("expected the state of an answer, or null to begin a sequence", problem="damaged")
        expect_identity(read_identity(_decode(token[:_PREFIX_LENGTH])), identity)
        lengths = [_encoded_length(num_bytes), _encoded_length(num_bytes + SIGNATURE_BYTES)]
        if len(token) not in lengths:
            raise StateError(
                f"the state is damaged: it has {len(token)} characters, expected {lengths[1] if self.keys else lengths[0]}",
                problem="damaged",
                found=len(token),
                expected=lengths[1] if self.keys else lengths[0],
            )
        content = _decode(token)
        block, signature = content[:num_bytes], content[num_bytes:]
        if keys := self.keys:
            if not signature:
                raise StateError("the state is not signed, and this server takes none without a signature", problem="forged")
            if not any(hmac.compare_digest(signature, _sign(key, block)) for key in keys):
                raise StateError(
                    "the state is not signed with a key of this server: it was changed, or the key is no longer used",
                    problem="forged",
                )
        return SequenceState.from_bytes(block)


class WatchedTokens(NamedTuple):
    """Tokens, and what watches the file of their keys."""

    tokens: StateTokens
    watches: Sequence[FileWatch] = ()


def open_state_tokens(path: Path | None) -> WatchedTokens:
    """Tokens with the keys of a file, which is read again when it changes; None: without keys. Raises StartError."""
    if path is None:
        return WatchedTokens(StateTokens())
    tokens = StateTokens(read_keys(path))

    def reload() -> None:
        tokens.keys = tuple(read_keys(path))
        log.info("the keys of carried states were read again", extra={"keys": len(tokens.keys)})

    return WatchedTokens(tokens, (FileWatch((path,), reload),))


def read_keys(path: Path) -> list[bytes]:
    """The keys of a file: one per line, the one that signs first. Empty lines and lines that begin with `#` are skipped.

    Raises StartError that says what is wrong with the file.
    """
    lines = [line.strip() for line in read_bounded(path, MAX_FILE_BYTES).splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys or len(keys) > MAX_KEYS:
        raise StartError(f"SLUICE_STATE_KEY_FILE: {path} holds {len(keys)} keys, expected 1 to {MAX_KEYS}, one per line")
    short = next((number for number, key in enumerate(keys) if len(key) < MIN_KEY_LENGTH), None)
    if short is not None:
        raise StartError(
            f"SLUICE_STATE_KEY_FILE: key {short} of {path} has {len(keys[short])} characters, expected at least "
            f"{MIN_KEY_LENGTH}: openssl rand -hex 32 makes one"
        )
    return keys


def _sign(key: bytes, block: bytes) -> bytes:
    return hmac.digest(key, block, "sha256")


def _encoded_length(num_bytes: int) -> int:
    return -(-4 * num_bytes // 3)


def _decode(token: str) -> bytes:
    """The bytes of base64url without padding; of a token, or of its first part, which has a multiple of four characters."""
    try:
        data = token.encode("ascii").translate(_PLAIN)
        return binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise StateError("the state is damaged: it is no base64url", problem="damaged") from exc
