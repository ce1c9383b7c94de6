"""A model that begins with TextVectorization or StringLookup: the layer becomes a tokenizer, the model reads its token ids.

Reads the model's configuration and the vocabulary beside it; what a tokenizer is made of is `tokenizer_file.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from training.importers.adapters.classify import TOKENIZER_FILE, ClassifyOptions
from training.importers.keras.chain import groups_of, read_input, require_layers
from training.importers.keras.entry import Entry, KerasFileError, name_of, place_of
from training.importers.model import ModelImportError
from training.importers.options import ImportOptions
from training.importers.tokenizer_file import Split, make_tokenizer

ReadVocabulary = Callable[[str], str | None]
"""The file `vocabulary.txt` of a layer's group in a .keras archive, None where there is none."""
_CLASSES = ("TextVectorization", "StringLookup")
_STANDARDIZATIONS = (None, "lower_and_strip_punctuation", "lower", "strip_punctuation")
_SPLITS: tuple[Split, ...] = ("whitespace", "character", None)
_UNKNOWN = "[UNK]"


@dataclass(frozen=True)
class TextLayer:
    """What was taken from the beginning of a model. `pads_behind`: its rows are padded and cut at their end."""

    place: str
    tokenizer: str
    pads_behind: bool


def split_texts(model: Any, read_vocabulary: ReadVocabulary) -> tuple[Any, TextLayer | None]:
    """The model without its text layer, reading ids, and that layer; the model itself where it has none.

    Raises KerasFileError for a layer that does not read the model's only input, or an option that no tokenizer has.
    """
    kind, config = require_layers(model)
    entries: list[Entry] = config["layers"] if isinstance(config, Mapping) else config
    found = [entry for entry in entries if entry["class_name"] in _CLASSES]
    if not found:
        return model, None
    entry = found[0]
    sources = [other for other in entries if other["class_name"] == "InputLayer"]
    others = [other for other in entries if other["class_name"] != "InputLayer"]
    if len(found) > 1 or len(sources) > 1 or others[0] is not entry or len(entry.get("inbound_nodes") or [0]) != 1:
        raise KerasFileError(f"{place_of(entry)} must be the first layer, called once, of a model with one input")
    given = config.get("build_input_shape") if isinstance(config, Mapping) else None
    source_shape = read_input(sources, entry, given).shape
    content = read_vocabulary(groups_of(entries)[name_of(entry)])
    if entry["class_name"] == "TextVectorization":
        length, layer = entry["config"].get("output_sequence_length"), _read_vectorization(entry, content)
    else:
        if len(source_shape) != 1:
            raise KerasFileError(f"{place_of(entry)}: expected an input of tokens, (batch, time), got {('batch', *source_shape)}")
        length, layer = source_shape[0], _read_lookup(entry, content, "whitespace" if source_shape[0] != 1 else None)
    ids = {
        "class_name": "InputLayer",
        "name": name_of(entry),
        "config": {"name": name_of(entry), "batch_shape": [None, length], "dtype": "int64"},
        "inbound_nodes": [],
    }
    layers = [ids, *others[1:]]
    if kind == "Sequential":
        return {**model, "config": {"name": "sequential", "layers": layers}}, layer
    return {**model, "config": {**config, "layers": layers, "input_layers": [[name_of(entry), 0, 0]]}}, layer


def _read_vectorization(entry: Entry, content: str | None) -> TextLayer:
    standardize = _choice(entry, "standardize", "lower_and_strip_punctuation", _STANDARDIZATIONS)
    split = _choice(entry, "split", "whitespace", _SPLITS)
    _choice(entry, "ngrams", None, (None,))
    _choice(entry, "output_mode", "int", ("int",))
    _choice(entry, "encoding", "utf-8", ("utf-8",))
    words = _words_of(entry, content, ["", _UNKNOWN])
    tokenizer = make_tokenizer(
        {_UNKNOWN: 1, **{word: number for number, word in enumerate(words, 2)}},
        _UNKNOWN,
        split,
        lowercases="lower" in (standardize or ""),
        strips_punctuation="strip" in (standardize or ""),
    )
    return TextLayer(place_of(entry), tokenizer, pads_behind=True)


def _read_lookup(entry: Entry, content: str | None, split: Literal["whitespace"] | None) -> TextLayer:
    _choice(entry, "num_oov_indices", 1, (1,))
    _choice(entry, "output_mode", "int", ("int",))
    _choice(entry, "invert", False, (False,))
    _choice(entry, "encoding", "utf-8", ("utf-8",))
    mask, unknown = entry["config"].get("mask_token"), str(entry["config"].get("oov_token", _UNKNOWN))
    masks = [] if mask is None else [str(mask)]
    words = [*masks, unknown, *_words_of(entry, content, [*masks, unknown])]
    # The empty text is no token of ours: a mask of that name is padding alone.
    ids = {word: number for number, word in enumerate(words) if word}
    return TextLayer(place_of(entry), make_tokenizer(ids, unknown, split), pads_behind=False)


def _choice(entry: Entry, option: str, default: Any, allowed: tuple[Any, ...]) -> Any:
    value = entry["config"].get(option, default)
    if isinstance(value, Mapping | list) or value not in allowed:
        listed = ", ".join(map(repr, allowed))
        shown = "a function" if isinstance(value, Mapping) else repr(value)
        raise KerasFileError(f'{place_of(entry)}: option "{option}" must be one of {listed}, got {shown}')
    return value


def _words_of(entry: Entry, content: str | None, special: list[str]) -> list[str]:
    """The vocabulary without its special tokens, with which it may begin. Read as Keras reads it."""
    given = entry["config"].get("vocabulary")
    if isinstance(given, Mapping):
        given = given.get("config", {}).get("value")
    if given is None and content is not None:
        given = content.splitlines()
        while given and given[-1] == "":
            given.pop()
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise KerasFileError(
            f"{place_of(entry)}: the file holds no vocabulary: save the model as .keras, or give the layer its vocabulary"
        )
    words = given[len(special) :] if given[: len(special)] == special else given
    if not words or len(set(words)) < len(words) or any(word in words for word in special):
        raise KerasFileError(f"{place_of(entry)}: the vocabulary is empty, names a token twice, or one of {special}")
    return words


@contextmanager
def options_with_tokenizer(options: ImportOptions, layer: TextLayer | None) -> Iterator[ImportOptions]:
    """The options with the model's own tokenizer, where it has one. Raises ModelImportError where they do not fit it."""
    if layer is None:
        yield options
        return
    if not isinstance(options, ClassifyOptions):
        raise ModelImportError(f"{layer.place} reads texts: give --task classify and --labels")
    given = {"--tokenizer": options.tokenizer is not None}
    if layer.pads_behind:
        given |= {f"--{name}": getattr(options, name) != "post" for name in {"padding", "truncating"} & options.model_fields_set}
    for flag, is_given in given.items():
        if is_given:
            raise ModelImportError(f"{flag}: {layer.place} is the model's tokenizer, which pads and cuts off at the end")
    with TemporaryDirectory() as folder:
        path = Path(folder) / TOKENIZER_FILE
        path.write_text(layer.tokenizer, encoding="utf-8")
        ends = {"padding": "post", "truncating": "post"} if layer.pads_behind else {}
        yield options.model_copy(update={"tokenizer": path, **ends})
