"""The help of a command: under headings, what matters first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from typer.main import get_command

from ldm.cli.app import SCRIPT_COMMANDS, TASKS, app, run
from ldm.cli.help import COMMANDS as HEADINGS
from ldm.cli.help import GROUPS
from tests.tiny_commands import ROOT

COMMANDS: dict[str, Any] = vars(get_command(app))["commands"]
DRAWING = [*TASKS, *SCRIPT_COMMANDS]


def test_each_option_has_one_place() -> None:
    names = [name for row in GROUPS.values() for name in row]
    assert len(names) == len(set(names))
    params = {param.name for name in DRAWING for param in COMMANDS[name].params}
    assert params <= {*names, "settings"}


@pytest.mark.parametrize("command", DRAWING)
def test_the_input_comes_first(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    told = capfd.readouterr().out
    headings = [
        line.rstrip(":") for line in told.splitlines() if line.endswith(":") and line[0] != " "
    ]
    shown = [heading for heading in headings if heading != "Arguments"]
    assert shown == [heading for heading in GROUPS if heading in shown]
    assert told.index("--seed") < told.index("--device") < told.index("--debug")
    first = {"txt2img": "--prompt", "sample": "--class", "variations": "--prompt"}.get(command)
    assert first is None or told.partition("Input:")[2].split()[0] == first


def test_scripts_commands_are_not_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "sample_diffusion" not in capfd.readouterr().out
    assert run(["nothing"]) == 2
    assert "sample_diffusion" not in capfd.readouterr().err


def test_commands_are_listed_under_headings(capfd: pytest.CaptureFixture[str]) -> None:
    listed = [name for names in HEADINGS.values() for name in names]
    assert sorted(listed) == sorted(set(COMMANDS) - set(SCRIPT_COMMANDS))
    assert run(["--help"]) == 0
    shown = capfd.readouterr().out
    places = [shown.index(f"\n{heading}:\n") for heading in HEADINGS]
    assert places == sorted(places)
    assert shown.index("Inspect:") < shown.index("  tokens") < shown.index("Manage:")


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        (
            {"_LDM_COMPLETE": "complete_bash", "COMP_WORDS": "ldm txt2", "COMP_CWORD": "1"},
            "txt2img",
        ),
        (
            {
                "_LDM_COMPLETE": "complete_bash",
                "COMP_WORDS": "ldm txt2img --sam",
                "COMP_CWORD": "2",
            },
            "--sampler",
        ),
        ({"_LDM_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "ldm inp"}, "inpaint"),
        (
            {
                "_LDM_COMPLETE": "complete_fish",
                "_TYPER_COMPLETE_ARGS": "ldm inp",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
            "inpaint",
        ),
    ],
)
def test_shells_complete_commands_and_options(variables: dict[str, str], wanted: str) -> None:
    program = "from ldm.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert wanted in done.stdout
    assert "Traceback" not in done.stderr


def test_the_list_of_samplers(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["samplers"]) == 0
    rows = capfd.readouterr().out.splitlines()
    facts = ["euler_ancestral", "1", "yes", "default", "Euler", "a", "+", "Uniform"]
    assert any(row.split()[:8] == facts for row in rows)
    assert any(row.split()[:3] == ["sgm_uniform", "SGM", "Uniform"] for row in rows)
    assert run(["samplers", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert listed["samplers"]["euler_ancestral"]["webui"] == ["Euler a"]
    assert listed["samplers"]["euler_ancestral"]["noise"]
    assert listed["samplers"]["lcm"]["pairs"]["webui"] == ["LCM", "SGM Uniform"]
    assert listed["samplers"]["heunpp2"]["order"] == 1
    assert "simple" in listed["grids"]
