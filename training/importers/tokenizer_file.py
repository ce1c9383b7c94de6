"""A tokenizer.json that comes with a model, read as the server reads it, and one made of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Literal

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace, Sequence
from tokenizers.pre_tokenizers import Split as SplitAt

from training.importers.model import ModelImportError

# The service looks for the same names in the same order (service/tasks/tokenization.py): what is accepted here is served.
Split = Literal["whitespace", "character"] | None
"""What a text is cut at: runs of ASCII whitespace, every character, or nowhere."""
UNKNOWN_TOKENS = ("[UNK]", "<unk>", "<UNK>", "UNK")


def read_tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """A file of the tokenizers library, with truncation and padding off and an unknown token that it has; and the id of that.

    Raises ModelImportError: no such file, not a tokenizer, or without an unknown token.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelImportError(f"--tokenizer: {path}: {exc.strerror}") from exc
    except Exception as exc:  # the library raises plain Exception for a file it does not understand
        raise ModelImportError(f"--tokenizer: {path} is not a file of the tokenizers library: {exc}") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    unknown = getattr(tokenizer.model, "unk_token", None)
    for token in (unknown, *UNKNOWN_TOKENS):
        if token is not None and (unknown_id := tokenizer.token_to_id(token)) is not None:
            if token != unknown is not None:
                # The library's own default, which is not in the vocabulary: it would raise at the first unknown word.
                tokenizer.model.unk_token = token
            return tokenizer, int(unknown_id)
    raise ModelImportError(f"--tokenizer: {path} has no unknown token; there must be one of {', '.join(UNKNOWN_TOKENS)}")


def make_tokenizer(
    ids: Mapping[str, int], unknown: str, split: Split, *, lowercases: bool = False, strips_punctuation: bool = False
) -> str:
    """A tokenizer.json that computes what Keras's TextVectorization does, whose operations of TensorFlow know ASCII alone:
    "É" stays as it is, "«" is no punctuation, and a no-break space splits nothing.
    """
    tokenizer = Tokenizer(WordLevel(vocab=dict(ids), unk_token=unknown))
    letters = [Replace(letter, letter.lower()) for letter in ascii_uppercase] if lowercases else []
    punctuation = [Replace(Regex(r"[!-/:-@\[-`{-~]"), "")] if strips_punctuation else []
    if letters or punctuation:
        tokenizer.normalizer = Sequence([*letters, *punctuation])
    if split == "whitespace":
        tokenizer.pre_tokenizer = SplitAt(Regex(r"[ \t\n\x0b\f\r]+"), "removed")
    elif split == "character":
        tokenizer.pre_tokenizer = SplitAt(Regex(r"[\s\S]"), "isolated")
    return str(tokenizer.to_str())
