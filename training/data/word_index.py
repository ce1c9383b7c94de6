"""Keras's `Tokenizer` as a tokenizer.json: words by frequency, the rarest dropped or replaced by one token.

Learns from texts and writes the `tokenizers` library's form of it, so that training and server split alike. Cuts and pads
nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from training.recipe import TokenizerSettings

# Id 0 is padding in Keras. The server sends it for a text of which nothing is left, and finds it by this name.
NOTHING = "[UNK]"
# Marks of the private use area, which no filter knows and no text holds.
ENDS, CONTINUES = "\ue000", "\ue001"


def learn_word_index(texts: Sequence[str], settings: TokenizerSettings) -> Tokenizer:
    """The tokenizer that keras.preprocessing.text.Tokenizer would be after `fit_on_texts(texts)`.

    Ids from 1 by falling frequency, ties by first appearance; an `oov_token` is number 1. Only ids below `num_words` are
    given: other words become the `oov_token`, or nothing at all where there is none. Three things are otherwise than in
    Keras: a text of which no word is left is one `oov_token` (Keras: none), a capital sigma at the end of a Greek word
    becomes σ (Keras: ς), and "[UNK]" is never a word.
    """
    steps: list[normalizers.Normalizer] = [normalizers.Replace(old, new) for old, new in settings.replacements.items()]
    if settings.lower:
        steps.append(normalizers.Lowercase())
    if settings.filters:
        steps.append(normalizers.Replace(Regex(f"[{re.escape(settings.filters)}]"), " "))
    normalizer = normalizers.Sequence(steps)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word in normalizer.normalize_str(text).split(" ") if word not in ("", NOTHING))
    first = [] if settings.oov_token is None else [settings.oov_token]
    words = [*first, *sorted((word for word in counts if word not in first), key=counts.__getitem__, reverse=True)]
    if settings.num_words is not None:
        words = words[: settings.num_words - 1]
    # A WordLevel model cannot drop a word, a BPE model without unknown token does: letters that it does not know are
    # left out in silence. Without merges it knows whole words only (`ignore_merges`), and the marks keep it from finding
    # the word "a" at the start, or within, or at the end of another one.
    names = [f"{word}{ENDS}" if len(word) == 1 else word for word in words]
    vocabulary = {NOTHING: 0} | {name: index for index, name in enumerate(names, start=1)}
    model = models.BPE(
        vocab=vocabulary,
        merges=[],
        ignore_merges=True,
        unk_token=None if settings.oov_token is None else names[0],
        fuse_unk=True,
        end_of_word_suffix=ENDS,
        continuing_subword_prefix=CONTINUES,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    no_word = Regex(rf"\A{re.escape(NOTHING)}\z")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(no_word, "removed")]
    )
    return tokenizer
