"""Texts to token ids, with the model folder's own tokenizer.json: the only file that imports tokenizers.

Does not know labels, models or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from service.errors import FolderError, InvalidInput

UNKNOWN_TOKENS = ("[UNK]", "<unk>", "<UNK>", "UNK")
"""The names of the unknown token where the tokenizer names none that it has, in the order in which they are tried: training's."""
# From here on, a text is split without the GIL: `encode` of tokenizers 0.23 keeps it, and 100,000 characters take 27 ms in
# which no other thread of the process moves.
LONG_TEXT = 2000
# Characters that are split together: the library holds some 60 bytes per character of a batch until all of it is split. A
# body of 8,000 texts of 1,000 characters took 325 MB in one batch, and as much time as in portions.
PORTION_SIZE = 200_000


class Encoding(NamedTuple):
    """The token ids of one text, and whether its middle was cut out."""

    ids: list[int]
    truncated: bool


class TextTokenizer:
    """A tokenizer as training wrote it. Thread-safe; `encode` releases the GIL while it splits long texts or many."""

    def __init__(self, tokenizer: Tokenizer, unknown_id: int) -> None:
        self._tokenizer = tokenizer
        self.unknown_id = unknown_id

    @property
    def largest_id(self) -> int:
        """The largest token id that a text can get, added tokens included; ids may have holes."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def adds_tokens(self) -> bool:
        """Whether each text gets tokens beside its own, such as one for its begin."""
        return bool(self._tokenizer.num_special_tokens_to_add(is_pair=False))

    def encode(self, texts: Sequence[str], max_length: int, head: int, tail: int) -> list[Encoding]:
        """The ids of each text; of more than `max_length` the first `head` and the last `tail` are kept.

        A text of which the tokenizer leaves nothing (U+0000, say) becomes one unknown token. Raises InvalidInput with the
        index of a text that is empty, all whitespace, or no valid Unicode (a lone surrogate).
        """
        for index, text in enumerate(texts):
            if not text or text.isspace():
                raise InvalidInput(
                    f"instance {index}: the text is empty", reason="length", instance=index, expected="at least one character"
                )
            if not _is_unicode(text):
                raise InvalidInput(
                    f"instance {index}: the text has a lone surrogate, which is no character", reason="dtype", instance=index
                )
        # One short text is split on this thread: handing it to the library's thread pool costs more than it saves.
        is_short = len(texts) == 1 and len(texts[0]) < LONG_TEXT
        if is_short:
            return [self._truncate(self._tokenizer.encode(texts[0]).ids, max_length, head, tail)]
        return [
            self._truncate(encoding.ids, max_length, head, tail)
            for portion in portions(texts)
            for encoding in self._tokenizer.encode_batch_fast(portion)
        ]

    def _truncate(self, ids: list[int], max_length: int, head: int, tail: int) -> Encoding:
        if not ids:
            return Encoding([self.unknown_id], False)
        if len(ids) <= max_length:
            return Encoding(ids, False)
        return Encoding(ids[:head] + ids[len(ids) - tail :], True)


def load_tokenizer(path: Path) -> TextTokenizer:
    """Read a tokenizer.json. Raises FolderError when it cannot be read, and as `parse_tokenizer` does."""
    try:
        return parse_tokenizer(path.read_bytes(), path.name)
    except OSError as exc:
        raise FolderError(f"{path.name} cannot be read: {exc.strerror}") from exc


def parse_tokenizer(content: bytes, name: str) -> TextTokenizer:
    """The tokenizer that a file holds. Raises FolderError, which names the file, for one that the library does not
    understand, that truncates or pads by itself, or that has no unknown token.
    """
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as exc:  # the library raises plain Exception for a file it does not understand
        raise FolderError(f"{name} is no tokenizer: {exc}") from exc
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise FolderError(f"{name}: truncation and padding must be off, the manifest says how texts are cut")
    unknown = getattr(tokenizer.model, "unk_token", None)
    for token in (unknown, *UNKNOWN_TOKENS):
        if token is not None and (unknown_id := tokenizer.token_to_id(token)) is not None:
            if token != unknown is not None:
                # The library's own default, which is not in the vocabulary: it would raise at the first unknown word.
                tokenizer.model.unk_token = token
            return TextTokenizer(tokenizer, unknown_id)
    raise FolderError(f"{name}: there is no unknown token; tried {[unknown, *UNKNOWN_TOKENS]}")


def portions(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut into lists of at most PORTION_SIZE characters, in order; a longer text is alone."""
    portion: list[str] = []
    size = 0
    for text in texts:
        if portion and size + len(text) > PORTION_SIZE:
            yield portion
            portion, size = [], 0
        portion.append(text)
        size += len(text)
    if portion:
        yield portion


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
