"""A tokenizer.json that comes with a model, read as the server reads it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from training.importers.model import ModelImportError

# The service looks for the same names in the same order (service/tasks/tokenization.py): what is accepted here is served.
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
