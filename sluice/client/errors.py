"""What can go wrong between a call of the client and its answer, as one tree.

ClientError
├── Refused                 the server will not answer this, however often it is sent: 4xx and 500
│   ├── InvalidInput            an instance is not what the model takes: says which, and where in it
│   ├── AccessDenied            the key is missing, wrong, or not enough
│   └── ModelNotFound           no such model, or several that would fit
├── Unavailable             there was no answer within the deadline, with the last reason why
└── InvalidAnswer           what answered is no such server
"""

from __future__ import annotations

from typing import Any


class ClientError(Exception):
    """The root."""


class Refused(ClientError):
    """The server refused; `code` is for programs (docs/reference/errors.md), `facts` holds the rest of what it said."""

    def __init__(self, message: str, *, status: int, code: str, request_id: str | None, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.facts = facts


class InvalidInput(Refused):
    """An instance of the call, by its place in what was handed over, is not what the model takes.

    `instance` is None where the fault lies in a parameter; `series` is the name of its series, where it has one.
    """

    def __init__(self, message: str, *, instance: int | None, series: str | None = None, **rest: Any) -> None:
        super().__init__(message, **rest)
        self.instance = instance
        self.series = series
        self.where: str | None = self.facts.get("where")
        self.found = self.facts.get("found")
        self.expected = self.facts.get("expected")


class AccessDenied(Refused):
    """The key is missing, wrong, or not enough for this."""


class ModelNotFound(Refused):
    """There is no such model, or none was named and several would fit: `facts` has their names."""


class Unavailable(ClientError):
    """No answer within the deadline: the server was not reached, busy, or too slow. `status` is that of its last answer."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class InvalidAnswer(ClientError):
    """What answered did not answer as a server of this kind does."""
