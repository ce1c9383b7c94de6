"""`POST /invocations`, as MLflow's scoring server and the containers of SageMaker take it.

Bodies: `dataframe_split`, `dataframe_records`, `instances` and `inputs` of MLflow (https://mlflow.org/docs/latest/: "Local
inference server"), with `params`. A row of a data frame is an instance: an object of its columns, or the value alone where there
is one column that is called as the format calls it, `0` or `text` among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.api.adapters.base import Described, PredictionRequest, error_shape, expect_list, expect_object, optional
from service.api.adapters.schemas import InvocationsError, InvocationsRequest, InvocationsResponse
from service.api.parsing import expect_no_more_than
from service.api.predict import ServedModel
from service.errors import MalformedRequest

PATH = "/invocations"
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_CODES = {404: "RESOURCE_DOES_NOT_EXIST", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "REQUEST_LIMIT_EXCEEDED"}
_CODES |= {503: "TEMPORARILY_UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}


def _error(status: int, code: str, message: str) -> object:
    fallback = "INTERNAL_ERROR" if status >= 500 else "BAD_REQUEST"
    return {"error_code": _CODES.get(status, fallback), "message": message}


describe_error = error_shape(_error)


class Invocations:
    """One of the four forms → `predictions`."""

    api = "invocations"
    described = Described(
        "invoke",
        "Predict as MLflow does",
        "Rows as MLflow and SageMaker send them; a row of a data frame is an instance.",
        InvocationsRequest,
        InvocationsResponse,
        InvocationsError,
    )
    paths = (PATH,)

    def read(self, content: Any, path: str, max_instances: int) -> PredictionRequest:
        """The rows as instances. `params` are the parameters of the request, and may name the `model`."""
        content = expect_object(content)
        forms = [form for form in _FORMS if form in content]
        if len(forms) != 1:
            raise MalformedRequest(f"expected one of {', '.join(_FORMS)}, got {forms or 'none'}", where="body", found=forms)
        params = dict(optional(content, "params", dict, "an object") or {})
        model = optional(params, "model", str, "a string")
        params.pop("model", None)
        return PredictionRequest(_read_rows(content, forms[0], max_instances), params, model)

    def write(self, parsed: PredictionRequest, model: ServedModel, predictions: Sequence[Any]) -> Any:
        """One prediction per row."""
        return {"predictions": predictions}


def _read_rows(content: dict[str, Any], form: str, max_rows: int) -> list[Any]:
    if form == "dataframe_split":
        frame = expect_object(content[form], f'"{form}"')
        columns, rows = expect_list(frame, "columns"), expect_list(frame, "data")
        expect_no_more_than(max_rows, len(rows))
        if any(type(row) is not list or len(row) != len(columns) for row in rows):
            raise MalformedRequest(f'"data": expected rows of {len(columns)} values, as many as "columns"', where="data")
        names = [str(column) for column in columns]
        return [_instance(dict(zip(names, row, strict=True))) for row in rows]
    if form == "dataframe_records":
        records = expect_list(content, form)
        expect_no_more_than(max_rows, len(records))
        if set(map(type, records)) - {dict}:
            raise MalformedRequest(f'"{form}": expected a list of objects', where=form)
        return [_instance(record) for record in records]
    given = content[form]
    if type(given) is dict:
        return _rows_of_columns(given, form, max_rows)
    return expect_list(content, form)


def _instance(row: dict[str, Any]) -> Any:
    """A row, or its value where the only column is a place, as of a series or an array."""
    if len(row) == 1:
        (name, value), *_ = row.items()
        if name.isdigit():
            return value
    return row


def _rows_of_columns(columns: dict[str, Any], form: str, max_rows: int) -> list[Any]:
    """`{"a": [1, 2], "b": [3, 4]}` → `[{"a": 1, "b": 3}, {"a": 2, "b": 4}]`."""
    if not columns or any(type(values) is not list for values in columns.values()):
        raise MalformedRequest(f'"{form}": expected a list of rows, or an object of lists', where=form)
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise MalformedRequest(f'"{form}": the columns have different lengths', where=form)
    expect_no_more_than(max_rows, *lengths)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
