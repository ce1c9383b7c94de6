"""A tokenizer.json that comes with a model, read as the server reads it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from training.importers.model import ModelImportError

# The service looks for the same names in the same order (service/tasks/tokenization.py): what is accepted here is served.
UNKNOWN_TOKENS = ("[UNK]", "<unk>", "<UNK>", "UNK")


def read_tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """A file of the tokenizers library, with truncation and padding off; and the id of its unknown token.

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
    for token in (getattr(tokenizer.model, "unk_token", None), *UNKNOWN_TOKENS):
        if token is not None and (unknown_id := tokenizer.token_to_id(token)) is not None:
            return tokenizer, int(unknown_id)
    raise ModelImportError(f"--tokenizer: {path} has no unknown token; there must be one of {', '.join(UNKNOWN_TOKENS)}")
