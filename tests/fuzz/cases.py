"""One case of a fuzzer: the bytes that one connection sends, how it ends, and what must come back. A file can hold it.

Sends nothing (`wire.py` does) and decides nothing about answers (`contract.py` does).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Ending = Literal["wait", "half-close", "close", "reset"]
"""What a client does when it has sent everything: reads until the server closes, after it closed its own side or not; or closes
its connection without reading, in order or by a reset."""


@dataclass(frozen=True)
class Case:
    """What is sent over one connection, in `chunks`.

    `is_whole`: it is one whole request, to which one answer must come. `operation` is the documented operation (method, path)
    that it is for, to whose own schemas the answer is held.
    """

    name: str
    chunks: tuple[bytes, ...]
    ending: Ending = "wait"
    is_whole: bool = False
    operation: tuple[str, str] | None = None

    @property
    def sent(self) -> bytes:
        return b"".join(self.chunks)

    def write(self, folder: Path, problems: list[str]) -> Path:
        """Write the case and what was wrong with its answer into a file of `folder`, and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name.replace('/', '-')}.json"
        content = {
            "name": self.name,
            "problems": problems,
            "ending": self.ending,
            "is_whole": self.is_whole,
            "operation": self.operation,
            "chunks": [base64.b64encode(chunk).decode() for chunk in self.chunks],
            "readable": self.sent[:2000].decode("latin-1"),
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path


def read_case(path: Path) -> Case:
    """A case that `Case.write` wrote. Raises ValueError or KeyError for another file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["ending"] not in get_args(Ending):
        raise ValueError(f"{path}: unknown ending {content['ending']!r}")
    operation = content["operation"] and (content["operation"][0], content["operation"][1])
    chunks = tuple(map(base64.b64decode, content["chunks"]))
    return Case(content["name"], chunks, content["ending"], content["is_whole"], operation)
