"""The examples of docs/protocols.md by their titles, as a test sends them to a server of its own."""

from __future__ import annotations

import re

from tests.peers.environments import ROOT

PAGE = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
ADDRESS, PORT = "127.0.0.1:8000", "port=8000"
BLOCK = re.compile(r'^```\w+ title="(\w+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
"""Name and text of an example."""
EXAMPLES = dict(BLOCK.findall(PAGE))


def at(address: str, script: str) -> str:
    """A script that sends its requests to this address, host and port."""
    return script.replace(ADDRESS, address).replace(PORT, f"port={address.rpartition(':')[2]}")
