"""Which of several models answers a request that names none. Decides by what the request says; knows no folders."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import AmbiguousModel, InvalidInput
from service.models.model import Model
from service.tasks.base import Criterion

# Of unknown names that requests hold, so much is shown in the answer; of those that there are, so many.
SHOWN_NAME_LENGTH, SHOWN_NAMES = 128, 50


def choose_model(criterion: Criterion | None, candidates: Sequence[Model], default: str | None, task: str) -> Model:
    """The only one of the candidates that fits, the default where several do.

    Raises InvalidInput where none fits, and AmbiguousModel that lists those which are left.
    """
    fitting = candidates
    if criterion is not None:
        fitting = [model for model in candidates if model.definition.fits(model.manifest, criterion)]
        if not fitting and criterion.is_preference:
            fitting = candidates
    if len(fitting) == 1:
        return fitting[0]
    names = [model.name for model in (fitting or candidates)]
    if not fitting:
        assert criterion is not None
        raise InvalidInput(
            f"{criterion}: no model for {task} takes it; there are {list_names(names)}",
            reason=criterion.reason,
            where=criterion.field,
            found=[value[:SHOWN_NAME_LENGTH] for value in criterion.values[:10]],
            expected=names[:SHOWN_NAMES],
        )
    if default in names:
        return next(model for model in fitting if model.name == default)
    of = "" if criterion is None or criterion.is_preference else f" of {criterion}"
    raise AmbiguousModel(
        f'several models for {task}{of} fit, "model" names one of {list_names(names)}', candidates=names[:SHOWN_NAMES], task=task
    )


def list_names(names: Sequence[str]) -> str:
    """Names in an error: a short request must not get a list of a thousand."""
    others = len(names) - SHOWN_NAMES
    return f"{names[:SHOWN_NAMES]} and {others} more" if others > 0 else str(names)
