"""The manifests for Kubernetes obey its own schemas, and ask for what Sluice needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
BASE = FOLDER / "base"
VERSIONS = ("1.30", "1.34", "1.37")
# A PodMonitor is the Prometheus operator's, a Kustomization kustomize's: neither is in Kubernetes's schemas.
PATCHES = {FOLDER / "overlays" / "own-models" / "deployment.yaml"}
OTHER_KINDS = {"PodMonitor", "Kustomization"}
Manifest = dict[str, Any]


def read(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[tuple[str, Manifest]]:
    return [
        (str(path.relative_to(FOLDER)), manifest)
        for path in sorted(FOLDER.glob("*/**/*.yaml"))
        for manifest in read(path)
        if manifest["kind"] not in OTHER_KINDS and path not in PATCHES
    ]


def deployment() -> Manifest:
    return read(BASE / "deployment.yaml")[0]


def pod_spec() -> Manifest:
    spec: Manifest = deployment()["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "manifest"), manifests(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_manifest_obeys_the_schema_of_kubernetes(name: str, manifest: Manifest, version: str) -> None:
    assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_a_manifest_that_kubernetes_would_refuse_is_noticed() -> None:
    broken = deployment()
    broken["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_every_file_is_part_of_a_kustomization() -> None:
    for folder in (BASE, FOLDER / "overlays" / "own-models"):
        (kustomization,) = read(folder / "kustomization.yaml")
        named = {*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", ()))}
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in named if not name.startswith("..")} == files


def test_a_pod_has_time_to_drain_and_to_answer() -> None:
    settings = Settings()
    needed_s = settings.drain_seconds + settings.request_timeout_ms / 1000
    assert pod_spec()["terminationGracePeriodSeconds"] >= needed_s + 10
    (container,) = pod_spec()["containers"]
    probe = container["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < settings.drain_seconds, "seen before the port is closed"


def test_a_pod_runs_as_nobody_and_writes_nothing_but_its_temporary_folder() -> None:
    (container,) = pod_spec()["containers"]
    security = container["securityContext"]
    assert pod_spec()["securityContext"]["runAsNonRoot"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


def test_all_manifests_mean_the_same_pods() -> None:
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert deployment()["spec"]["selector"]["matchLabels"] == labels
    assert read(BASE / "service.yaml")[0]["spec"]["selector"] == labels
    for name in ("poddisruptionbudget", "podmonitor"):
        assert read(BASE / f"{name}.yaml")[0]["spec"]["selector"]["matchLabels"] == labels
    (scaler,) = read(BASE / "horizontalpodautoscaler.yaml")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment()["metadata"]["name"]
    assert "replicas" not in deployment()["spec"], "the autoscaler's number would be overwritten by each apply"
    (values,) = read(FOLDER / "prometheus-adapter.yaml")
    metrics = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"] if metric["type"] == "Pods"}
    assert metrics == {rule["name"]["as"] for rule in values["rules"]["custom"]}


def test_the_variables_of_the_environment_are_settings() -> None:
    names = {f"SLUICE_{name.upper()}" for name in Settings.model_fields}
    folders = (*FOLDER.glob("*/**/deployment.yaml"), FOLDER.parent / "kserve" / "servingruntime.yaml")
    found = {
        variable["name"]
        for path in folders
        for manifest in read(path)
        for container in (manifest["spec"].get("template", manifest)["spec"]["containers"])
        for variable in container.get("env", ())
    }
    assert found
    assert found <= names
