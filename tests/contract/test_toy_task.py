"""A task that Sluice does not have, in one file: registered, loaded, served and documented; no other file knows of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import httpx
import numpy as np
import pytest
from onnx import helper
from pydantic import BaseModel, Field

from service.app import create_app
from service.errors import InvalidInput
from service.manifest import Manifest, Spec
from service.models.folder import ModelOptions
from service.models.loading import check_folder
from service.runtime.tensors import LENGTHS, Item, Signature, TensorSpec
from service.settings import Settings
from service.tasks.base import Criterion, Endpoint, GroupRows, ReadFile, Steps, Task, TaskDefinition, expect_finite
from service.tasks.registry import TaskRegistry, built_in_tasks
from tests.fakes import graph
from tests.serving import PATIENCE_S, lifespan

# ----------------------------------------------------------------------- as the file service/tasks/sum.py


class SumSpec(Spec):
    """What a model of the toy task says of itself."""

    unit: str
    longest: Annotated[int, Field(ge=1)] = 64


class SumDescription(BaseModel):
    """What `GET /models/{name}` says of it."""

    unit: str = Field(description="The unit of the sums.", examples=["m"])


class Sum(BaseModel):
    """The sum of one list of numbers."""

    sum: float = Field(description="The sum.", examples=[6.0])
    unit: str = Field(description="Its unit.", examples=["m"])


class SumTask(Task):
    """Lists of numbers in, their sums out."""

    def __init__(self, spec: SumSpec, signature: Signature) -> None:
        super().__init__(signature)
        self.spec = spec

    def run_steps(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object],
        group: GroupRows,
        *,
        is_plain: bool = False,
        steps_seen: Sequence[int] | None = None,
    ) -> Steps:
        for index, instance in enumerate(instances):
            if not isinstance(instance, list) or not all(isinstance(value, int | float) for value in instance) or not instance:
                raise InvalidInput(f"instance {index}: expected numbers", instance=index)
        rows = [np.array(instance, np.float32) for instance in instances]
        groups = group([len(row) for row in rows])
        sums: dict[int, float] = {}
        outputs = yield [self._collate([rows[row] for row in numbers]) for numbers in groups]
        for numbers, output in zip(groups, outputs, strict=True):
            expect_finite(output, numbers)
            sums |= dict(zip(numbers, output["sum"][:, 0, 0], strict=True))
        return [{"sum": sums[row], "unit": self.spec.unit} for row in range(len(rows))]

    def describe(self) -> dict[str, Any]:
        return {"unit": self.spec.unit}

    def check_graph(self, run: Any) -> list[str]:
        found = run({"x": np.ones((1, 3, 1), np.float32)})["sum"][0, 0, 0]
        return [] if found == 3 else [f"the graph does not add: three ones make {found}"]

    def _collate(self, rows: Sequence[Any]) -> Item:
        lengths = [len(row) for row in rows]
        padded = np.zeros((len(rows), max(lengths), 1), np.float32)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row), 0] = row
        return Item({"x": padded, LENGTHS: np.array(lengths)}, len(rows), max(lengths), lengths)


class SumDefinition(TaskDefinition):
    """The toy task."""

    name: ClassVar = "sum"
    spec: ClassVar = SumSpec
    description: ClassVar = SumDescription
    endpoints: ClassVar = (
        Endpoint(
            "/predict/sum",
            "sum",
            "Add numbers",
            "Sums of lists. Without `model`, the one for the request's `unit`.",
            instance=list[float],
            prediction=Sum,
            examples=({"instances": [[1, 2, 3]]},),
        ),
    )

    def mismatches(self, manifest: Manifest) -> list[str]:
        return manifest.mismatch("inputs", "x", "FP32", ["batch", "time", 1])

    def build(self, manifest: Manifest, signature: Signature, read_file: ReadFile) -> SumTask:
        return SumTask(manifest.spec_of(SumSpec), signature)

    def longest_row(self, manifest: Manifest) -> int:
        return manifest.spec_of(SumSpec).longest

    def example_instance(self, manifest: Manifest) -> object:
        return [1, 2, 3]

    def criterion(self, instances: Sequence[object], parameters: Mapping[str, object]) -> Criterion | None:
        unit = parameters.get("unit")
        return Criterion("unit", (unit,)) if isinstance(unit, str) else None

    def fits(self, manifest: Manifest, criterion: Criterion) -> bool:
        return criterion.values == (manifest.spec_of(SumSpec).unit,)


# --------------------------------------------------------------------------------------------- a folder, and its service


SIGNATURE = Signature(
    (TensorSpec("x", "FP32", ("batch", "time", 1)), TensorSpec(LENGTHS, "INT64", ("batch",))),
    (TensorSpec("sum", "FP32", ("batch", 1, 1)),),
)


def sum_graph() -> bytes:
    """The sum of each row's first `lengths` steps."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["time"], axis=0),
        helper.make_node("Range", ["zero", "time", "one"], ["steps"]),
        helper.make_node("Unsqueeze", ["lengths", "axis"], ["ends"]),
        helper.make_node("Less", ["steps", "ends"], ["is_step"]),
        helper.make_node("Cast", ["is_step"], ["mask"], to=1),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["x", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=1),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "axis": np.array([1]), "last": np.array([2])}
    return graph(nodes, SIGNATURE, constants)


def write_sum_folder(models: Path, name: str, unit: str) -> Path:
    folder = models / name / "1"
    folder.mkdir(parents=True)
    content = sum_graph()
    (folder / "model.onnx").write_bytes(content)

    def entries(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

    manifest = {
        "schema_version": 1,
        "name": name,
        "version": "1",
        "task": "sum",
        "graphs": [{"file": "model.onnx", "sha256": hashlib.sha256(content).hexdigest(), "opset": 17}],
        "inputs": entries(SIGNATURE.inputs),
        "outputs": entries(SIGNATURE.outputs),
        "sum": {"unit": unit},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    example = {
        "request": {"model": name, "instances": [[1, 2, 3], [4]]},
        "response": {"predictions": [{"sum": 6.0, "unit": unit}, {"sum": 4.0, "unit": unit}]},
        "tolerance": {"absolute": 1e-6, "relative": 0.0},
    }
    (folder / "example.json").write_text(json.dumps(example))
    return folder


@pytest.fixture
def tasks() -> TaskRegistry:
    return built_in_tasks().add(SumDefinition())


@pytest.fixture
async def client(tmp_path: Path, tasks: TaskRegistry) -> AsyncIterator[httpx.AsyncClient]:
    write_sum_folder(tmp_path, "metres", "m")
    write_sum_folder(tmp_path, "feet", "ft")
    ready = asyncio.Event()
    settings = Settings(models=tmp_path, device="cpu", num_threads=1)
    app = create_app(settings, tasks=tasks, on_loaded=lambda _: ready.set())
    async with lifespan(app):
        await asyncio.wait_for(ready.wait(), PATIENCE_S)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sluice") as client:
            yield client


async def test_a_new_task_is_served_at_its_own_endpoint(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/ready")).status_code == 200
    body = {"model": "feet", "instances": [[1, 2, 3], [0.5], [1] * 100]}
    for path in ("/predict/sum", "/predict"):
        answer = await client.post(path, json=body)
        assert answer.json() == {
            "model": "feet",
            "version": "1",
            "predictions": [{"sum": 6.0, "unit": "ft"}, {"sum": 0.5, "unit": "ft"}, {"sum": 100.0, "unit": "ft"}],
        }
    refused = await client.post("/predict/sum", json={"model": "feet", "instances": [[1], ["x"]]})
    assert (refused.status_code, refused.json()["detail"]) == (422, "instance 1: expected numbers")


async def test_its_model_is_chosen_by_what_the_task_goes_by(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict/sum", json={"instances": [[1]], "parameters": {"unit": "m"}})
    assert answer.json()["model"] == "metres"
    ambiguous = await client.post("/predict/sum", json={"instances": [[1]]})
    assert (ambiguous.status_code, ambiguous.json()["code"]) == (409, "ambiguous_model")
    assert ambiguous.json()["candidates"] == ["feet", "metres"]
    unfit = await client.post("/predict/sum", json={"instances": [[1]], "parameters": {"unit": "mile"}})
    assert (unfit.status_code, unfit.json()["where"]) == (422, "unit")


async def test_it_is_described_and_documented(client: httpx.AsyncClient) -> None:
    model = (await client.get("/models/metres")).json()
    assert (model["task"], model["sum"]) == ("sum", {"unit": "m"})
    document = (await client.get("/openapi.json")).json()
    assert document["paths"]["/predict/sum"]["post"]["summary"] == "Add numbers"
    schemas = document["components"]["schemas"]
    assert schemas["SumRequest"]["properties"]["instances"]["items"] == {"items": {"type": "number"}, "type": "array"}
    assert {"$ref": "#/components/schemas/SumDescription"} in schemas["ModelDescription"]["properties"]["sum"]["anyOf"]
    assert "/predict/sum" in (await client.get("/", headers={"accept": "application/json"})).json()["endpoints"]
    metrics = (await client.get("/metrics")).text
    assert 'sluice_model_info{horizon="",model="metres"' in metrics


def test_its_folders_are_checked_as_all_are(tmp_path: Path, tasks: TaskRegistry) -> None:
    folder = write_sum_folder(tmp_path, "metres", "m")
    options = ModelOptions(device="cpu", tasks=tasks)
    assert check_folder(folder, options) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    for changes, finding in (
        ({"sum": {"unit": 5}}, "manifest.json: sum.unit: Input should be a valid string"),
        ({"sum": {"unit": "m", "colour": "red"}}, "manifest.json: sum.colour: Extra inputs are not permitted"),
        (
            {"inputs": [{"name": "z", "datatype": "FP32", "shape": ["batch", 1]}]},
            "manifest.json: inputs: tensor \"x\" FP32 ['batch', 'time', 1] is missing",
        ),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))
        assert check_folder(folder, options) == [finding]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    [finding] = check_folder(folder, ModelOptions(device="cpu"))
    assert finding == "manifest.json: task: expected one of ['classify', 'forecast', 'tensor'], got 'sum'"


def test_the_tasks_of_the_process_stay_as_they_were(tasks: TaskRegistry) -> None:
    assert "sum" in tasks
    assert [task.name for task in built_in_tasks()] == ["classify", "forecast", "tensor"]
