"""Values that a JSON Schema accepts, and small damage to them: strategies for hypothesis.

Ours, because hypothesis-jsonschema (0.23, its last release) uses names of hypothesis that no longer exist. Knows the keywords
that the schemas of this project use and raises KeyError for any other, so that a new one is not overlooked; `jsonschema` has the
last word on what a schema accepts.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jsonschema
from hypothesis import strategies as st

ANNOTATIONS = {"title", "description", "examples", "default", "deprecated"}
KEYWORDS: Mapping[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "integer": {"minimum", "maximum"},
    "boolean": set(),
    "null": set(),
}
# Longer ones take time and find nothing: the bounds themselves are tested one by one.
MAX_ITEMS = 4
MAX_LENGTH = 30

# Without lone surrogates, which JSON as UTF-8 cannot hold.
CHARACTERS = st.characters(codec="utf-8")
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(CHARACTERS),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=5), inner, max_size=3),
    max_leaves=5,
)


def validator(schema: Mapping[str, Any], components: Mapping[str, Any]) -> jsonschema.protocols.Validator:
    """What decides whether a value is accepted; `components` holds what `$ref`s of the schema point at."""
    return jsonschema.Draft202012Validator({**schema, "components": components})


def values(schema: Mapping[str, Any], components: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema accepts."""
    inner = functools.partial(values, components=components)
    if "$ref" in schema:
        return inner(components["schemas"][schema["$ref"].removeprefix("#/components/schemas/")])
    if "anyOf" in schema:
        return st.one_of([inner(choice) for choice in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "type" not in schema:
        assert not schema.keys() - ANNOTATIONS, schema
        return ANYTHING
    kind = schema["type"]
    unknown = schema.keys() - ANNOTATIONS - {"type"} - KEYWORDS[kind]
    if unknown:
        raise KeyError(f"{kind} with {unknown}")
    if kind == "object":
        return _objects(schema, components)
    if kind == "array":
        smallest, largest = schema.get("minItems", 0), schema.get("maxItems", MAX_ITEMS)
        return st.lists(inner(schema["items"]), min_size=smallest, max_size=max(smallest, min(largest, MAX_ITEMS)))
    if kind == "string":
        return _strings(schema)
    if kind == "number":
        lowest, highest = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        return st.floats(
            schema.get("minimum", lowest),
            schema.get("maximum", highest),
            exclude_min=lowest is not None,
            exclude_max=highest is not None,
            allow_nan=False,
            allow_infinity=False,
        )
    if kind == "integer":
        return st.integers(int(schema.get("minimum", -(10**6))), int(schema.get("maximum", 10**6)))
    return st.booleans() if kind == "boolean" else st.none()


def _objects(schema: Mapping[str, Any], components: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: values(field, components) for name, field in schema.get("properties", {}).items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    named = st.fixed_dictionaries(required, optional=fields)
    further = schema.get("additionalProperties")
    if further is False:
        return named
    assert further is not None, schema
    kinds = ANYTHING if further is True else values(further, components)
    others = st.dictionaries(st.text(CHARACTERS, max_size=5), kinds, max_size=2)
    return st.builds(lambda other, known: {**other, **known}, others, named)


def _strings(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    smallest, largest = schema.get("minLength", 0), min(schema.get("maxLength", MAX_LENGTH), MAX_LENGTH)
    if "pattern" not in schema:
        return st.text(CHARACTERS, min_size=smallest, max_size=largest)
    found = st.from_regex(schema["pattern"], alphabet=CHARACTERS)
    return found.filter(lambda text: smallest <= len(text) <= largest)


@st.composite
def damaged(draw: st.DrawFn, sound: st.SearchStrategy[Any]) -> Any:
    """A sound value with one change: a part is replaced by another value, dropped, added or doubled. Perhaps still sound."""
    root = copy.deepcopy([draw(sound)])
    container, key = draw(st.sampled_from(list(_places(root))))
    kinds = ["replace", "replace", "wrap"]
    if container is not root:
        kinds.append("drop")
    if isinstance(container[key], dict | list):
        kinds += ["add", "empty"]
    kind = draw(st.sampled_from(kinds))
    part = container[key]
    if kind == "replace":
        container[key] = draw(SCALARS | st.sampled_from(([], {}, 0, 1, -1, 2**63, 1e300, "")))
    elif kind == "wrap":
        container[key] = [part]
    elif kind == "drop":
        del container[key]
    elif kind == "empty":
        part.clear()
    elif isinstance(part, dict):
        part[draw(st.text(CHARACTERS, max_size=5))] = draw(SCALARS)
    else:
        part.append(draw(SCALARS))
    return root[0]


def _places(container: Any) -> Any:
    """Every place of a nested value as its container and the key in it, the place of the value itself first."""
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])
