"""The manifests for KServe against the types that KServe publishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.environments import ROOT, run_in

pytestmark = pytest.mark.slow
FOLDER = ROOT / "deploy" / "kserve"

CHECK = """
import re
import sys

import kserve
import kubernetes.client
import yaml


def type_of(name):
    return getattr(kserve, name, None) or getattr(kubernetes.client, name)


def check(value, kind, path):
    listed = re.fullmatch(r"[Ll]ist\\[(.*)\\]", kind)
    mapped = re.fullmatch(r"[Dd]ict[(\\[](.*?), (.*)[)\\]]", kind)
    if listed:
        assert isinstance(value, list), f"{path} is no list"
        for number, each in enumerate(value):
            check(each, listed[1], f"{path}[{number}]")
    elif mapped:
        assert isinstance(value, dict), f"{path} is no object"
        for key, each in value.items():
            check(each, mapped[2], f"{path}.{key}")
    elif kind in ("str", "int", "bool", "float"):
        assert type(value).__name__ == kind, f"{path} is {value!r}, not {kind}"
    elif kind not in ("object", "ResourceQuantity", "IntstrIntOrString"):
        model = type_of(kind)
        attributes = {name: attribute for attribute, name in model.attribute_map.items()}
        assert isinstance(value, dict), f"{path} is no {kind}"
        for key, each in value.items():
            assert key in attributes, f"{path} has no field {key}"
            check(each, model.openapi_types[attributes[key]], f"{path}.{key}")


def check_file(name, kind):
    with open(name) as file:
        (manifest,) = (one for one in yaml.safe_load_all(file) if one)
    check(manifest, kind, name)
    return manifest


runtime = check_file("servingruntime.yaml", "V1alpha1ServingRuntime")
service = check_file("inferenceservice.yaml", "V1beta1InferenceService")
model = service["spec"]["predictor"]["model"]
assert model["runtime"] == runtime["metadata"]["name"]
assert model["modelFormat"]["name"] in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}
assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
for change in (lambda: runtime["spec"].update(container=[]), lambda: service["spec"]["predictor"].update(minReplicas="two")):
    change()
for manifest, kind in ((runtime, "V1alpha1ServingRuntime"), (service, "V1beta1InferenceService")):
    try:
        check(manifest, kind, "broken")
    except AssertionError:
        continue
    sys.exit("a broken manifest was not noticed")
"""


def test_the_manifests_have_the_fields_of_kserves_own_types(tmp_path: Path) -> None:
    for path in FOLDER.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    run_in("kserve", CHECK, tmp_path)
