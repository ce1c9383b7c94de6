"""Which HTTP protocol uvicorn runs: ours, with the fast path or without it, where it was tested with this uvicorn.

Ours builds on names that uvicorn keeps private. With any other version, or without httptools, uvicorn's own serves: slower,
with the same answers to what is well-formed (`tests/service/api/test_both_paths.py`), and with uvicorn's bounds.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import Callable
from typing import Literal

log = logging.getLogger(__name__)

# The versions of uvicorn whose private names our protocol was tested with: from the first, up to but without the second.
TESTED_UVICORN = ((0, 53), (0, 55))

HttpProtocol = type[asyncio.Protocol] | Literal["auto"]
"""As uvicorn's option `http`: a class, or "auto" for the one that uvicorn chooses."""


def choose_protocol(
    *, fast_path: bool, uvicorn_version: str | None = None, load: Callable[[], type[asyncio.Protocol]] | None = None
) -> HttpProtocol:
    """What uvicorn is to run. Where our protocol cannot be had, a warning says why.

    `uvicorn_version` is the installed one and `load` imports the protocol, unless they are given.
    """
    version = uvicorn_version or importlib.metadata.version("uvicorn")
    reason = "it was not tested with this version of uvicorn"
    if is_tested(version):
        try:
            return (load or (_load_fast if fast_path else _load_regular))()
        except ImportError as exc:
            reason = f"it cannot be imported: {exc}"
    first, end = (".".join(map(str, version)) for version in TESTED_UVICORN)
    log.warning(
        "the fast path and the bounds on request heads are off",
        extra={"reason": reason, "uvicorn": version, "tested": f">={first},<{end}"},
    )
    return "auto"


def is_tested(version: str) -> bool:
    """Whether the fast path was tested with this version of uvicorn, as `uvicorn.__version__` writes it."""
    major, minor, *_ = (int(part) if part.isdigit() else -1 for part in [*version.split("."), "", ""])
    return TESTED_UVICORN[0] <= (major, minor) < TESTED_UVICORN[1]


def _load_fast() -> type[asyncio.Protocol]:
    from service.api.fast_path import FastPathProtocol

    return FastPathProtocol


def _load_regular() -> type[asyncio.Protocol]:
    from service.api.regular_path import RegularPathProtocol

    return RegularPathProtocol
