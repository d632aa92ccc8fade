"""The help of a command: under headings, what matters first."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command

from ldm.cli.app import SCRIPT_COMMANDS, TASKS, app, run
from ldm.cli.help import GROUPS

COMMANDS: dict[str, Any] = vars(get_command(app))["commands"]
DRAWING = [*TASKS, *SCRIPT_COMMANDS]


def test_each_option_has_one_place() -> None:
    names = [name for row in GROUPS.values() for name in row]
    assert len(names) == len(set(names))
    params = {param.name for name in DRAWING for param in COMMANDS[name].params}
    assert params <= {*names, "settings"}


@pytest.mark.parametrize("command", DRAWING)
def test_what_to_draw_comes_first(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    told = capfd.readouterr().out
    headings = [
        line.rstrip(":") for line in told.splitlines() if line.endswith(":") and line[0] != " "
    ]
    shown = [heading for heading in headings if heading != "Arguments"]
    assert shown == [heading for heading in GROUPS if heading in shown]
    assert told.index("--seed") < told.index("--device") < told.index("--debug")
    first = {"txt2img": "--prompt", "sample": "--class", "variations": "--prompt"}.get(command)
    assert first is None or told.partition("What to draw:")[2].split()[0] == first


def test_scripts_commands_are_not_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "sample_diffusion" not in capfd.readouterr().out
    assert run(["nothing"]) == 2
    assert "sample_diffusion" not in capfd.readouterr().err
