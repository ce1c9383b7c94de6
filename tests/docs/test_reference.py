from __future__ import annotations

import re

import pytest

from service.__main__ import main
from service.settings import Settings
from sluice.__main__ import COMMANDS
from tests.docs.reference import PARTS, REFERENCE, SERVICE_OPTIONS, completed


@pytest.mark.parametrize("name", PARTS)
def test_a_generated_part_is_what_the_code_has(name: str) -> None:
    assert (REFERENCE / PARTS[name].page).read_text(encoding="utf-8") == completed(name), "`make reference` writes it anew"


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.package == "service"])
def test_a_command_of_the_service_takes_what_its_line_says(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = {word.strip("[],") for word in capsys.readouterr().out.split() if word.startswith(("--", "[--"))} - {"--help"}
    assert command in SERVICE_OPTIONS
    if command == "serve":
        assert options == {f"--{field.replace('_', '-')}" for field in Settings.model_fields}
    else:
        assert options == set(re.findall(r"`(--[a-z-]+)", SERVICE_OPTIONS[command]))
