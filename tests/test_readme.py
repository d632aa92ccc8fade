"""README and docs are true: their commands parse, their tables and links are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ldm.checkpoints.config import read_config
from ldm.checkpoints.families import FAMILIES
from ldm.checkpoints.families.choice import _prediction, _task
from ldm.checkpoints.locate import FITTING
from ldm.cli.app import EXAMPLES, SCRIPT_COMMANDS, app
from ldm.cli.flags import make_table, normalise, spread
from ldm.jobs.fields import GRID_NAMES, SAMPLER_ALIASES
from ldm.jobs.legacy import ORIGINAL_FLAGS

TOP = Path(__file__).parents[1]
README = TOP / "README.md"
PAGES = [
    README,
    TOP / "CONTRIBUTING.md",
    TOP / "CHANGELOG.md",
    *sorted((TOP / "docs").glob("*.md")),
    *sorted((TOP / "models").glob("*.md")),
]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
COMMANDS_PAGE, MIGRATING, MODELS = (
    TEXTS[TOP / "docs" / name] for name in ("commands.md", "migrating.md", "models.md")
)
COMMANDS: dict[str, Any] = vars(get_command(app))["commands"]

# Every argument of the scripts in CompVis/stable-diffusion and Stability-AI/stablediffusion.
OLD_FLAGS = {
    "txt2img": """
--prompt --outdir --skip_grid --skip_save --ddim_steps --steps --plms --dpm_solver --dpm --laion400m
--fixed_code --ddim_eta --n_iter --H --W --C --f --n_samples --n_rows --scale --from-file --config
--ckpt --seed --precision --repeat --device --torchscript --ipex --bf16
""",
    "img2img": """
--prompt --init-img --outdir --skip_grid --skip_save --ddim_steps --plms --fixed_code --ddim_eta
--n_iter --C --f --n_samples --n_rows --scale --strength --from-file --config --ckpt --seed
--precision
""",
    "inpaint": "--indir --outdir --steps",
    "sample_diffusion": """
-r --resume -n --n_samples -e --eta -v --vanilla_sample -l --logdir -c --custom_steps --batch_size
""",
}
PAIRS = [(command, flag) for command, flags in OLD_FLAGS.items() for flag in flags.split()]
HEADINGS = {
    "txt2img": "## Every flag of the two txt2img.py",
    "img2img": "## Every flag of img2img.py, inpaint.py and sample_diffusion.py",
}


def lines_of(text: str) -> list[str]:
    """The lines of the code blocks of a page: fenced, or indented by four spaces."""
    fenced = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    indented = re.findall(r"^    (ldm .*(?:\\\n.*)?)$", text, flags=re.MULTILINE)
    return "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()


LINES = [line for text in TEXTS.values() for line in lines_of(text)]


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    start = text.partition(f"{heading}\n")[2]
    level = len(heading.split()[0])
    return re.split(rf"^#{{1,{level}}} ", start, flags=re.MULTILINE)[0]


def flags_of(command: str) -> list[str]:
    return [flag for param in COMMANDS[command].params for flag in param.opts]


def parsed(command: str, words: list[str]) -> None:
    """Read the words of a command line as the command does; raises for what it does not take."""
    params = [p for p in COMMANDS[command].params if p.param_type_name == "option"]
    table = make_table(
        [*((list(p.opts), not p.is_flag) for p in params), (["--help", "-h"], False)]
    )
    words = normalise(spread(words, "--matrix"), table, ORIGINAL_FLAGS)
    COMMANDS[command].make_context(command, words)


@pytest.mark.parametrize(("command", "flag"), PAIRS)
def test_every_old_flag_is_listed_and_still_taken(command: str, flag: str) -> None:
    text = section(MIGRATING, HEADINGS["txt2img" if command == "txt2img" else "img2img"])
    listed = re.findall(r"^\| (.*?) \|", text, flags=re.MULTILINE)
    assert any(f"`{flag}" in cell for cell in listed)
    assert flag in flags_of(command)


def examples() -> list[tuple[str, str, list[str]]]:
    """The lines in the README, docs and help that call a command: "ldm" or "script", it, words."""
    found = []
    for line in [*LINES, *EXAMPLES.values()]:
        words = shlex.split(line, comments=True)
        if words[:1] == ["ldm"] and words[1][0] != "-":
            found.append(("ldm", words[1], words[2:]))
        elif words[:1] == ["python"] and words[1].startswith("scripts/"):
            found.append(("script", Path(words[1]).stem, words[2:]))
    return found


@pytest.mark.parametrize(("command", "words"), [line[1:] for line in examples()])
def test_every_example_is_taken(command: str, words: list[str]) -> None:
    """Those that take hours, too; tests/e2e/test_documented_commands.py runs the others."""
    parsed(command, words)


def test_an_example_with_a_wrong_flag_would_be_found() -> None:
    with pytest.raises(Exception, match="no such option: --promt"):
        parsed("txt2img", ["--promt", "x"])


def test_every_command_has_an_example() -> None:
    shown = {line.split()[1] for line in LINES if line.startswith("ldm ")}
    assert set(COMMANDS) - set(SCRIPT_COMMANDS) <= shown


def test_options_of_ldm_itself_exist() -> None:
    """The lines such as `ldm --install-completion`, which call no command."""
    options = {flag for param in get_command(app).params for flag in param.opts} | {"--help"}
    shown = {line.split()[1] for line in LINES if line.startswith("ldm -")}
    assert "--install-completion" in shown
    assert shown <= options


def test_every_script_is_named() -> None:
    for path in (TOP / "scripts").glob("*.py"):
        assert any(f"scripts/{path.name}" in text for text in TEXTS.values())


def test_samplers_and_grids_are_all_named() -> None:
    words = set(re.findall(r"[a-z0-9_]+", section(COMMANDS_PAGE, "## Samplers and grids")))
    assert set(SAMPLER_ALIASES) <= words
    assert set(GRID_NAMES) <= words


# --- the table of YAMLs ---------------------------------------------------------------------------

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in section(MODELS, "## Families").splitlines()
    if line.startswith("| ") and ".yaml" in line
]
YAMLS = sorted(
    path
    for folder in ("stable-diffusion", "latent-diffusion")
    for path in (TOP / "configs" / folder).glob("*.yaml")
)


def row_of(path: Path) -> list[str]:
    """The cells of a packaged YAML's row."""
    names = {cell[0]: cell for cell in ROWS}
    first = f"{path.parent.name}/{path.name}"
    fits = [cells for name, cells in names.items() if first in name or f", {path.name}" in name]
    assert len(fits) == 1, path.name
    return fits[0]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_the_table_tells_what_runs(path: Path) -> None:
    _, _, predicts, _, command = row_of(path)
    config = read_config(path)
    assert predicts == _prediction(config)
    task = _task(config)
    runs = [name for name in COMMANDS if task in FITTING.get(name, (name,))]
    if runs:
        assert command.split(", ") == [name for name in runs if name != "sample_diffusion"]
    else:
        assert command == "none yet; it loads"


def test_the_table_tells_the_size_of_each_family() -> None:
    for family in FAMILIES.values():
        size = row_of(TOP / "configs" / family.yaml)[3]
        if family.task != "upscale":
            assert str(family.defaults.width) in size.split(", "), family.name


def test_every_autoencoder_is_in_the_table() -> None:
    for path in (TOP / "configs" / "autoencoder").glob("*.yaml"):
        assert path.name in section(MODELS, "## Families")


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "link"),
    [(path, link) for path, text in TEXTS.items() for link in re.findall(r"\]\(([^)#:]+)\)", text)],
    ids=str,
)
def test_links_lead_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_paths_in_the_text_exist(page: Path) -> None:
    folders = "configs|tests|scripts|benchmarks|ldm|docs"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", TEXTS[page]):
        assert (TOP / path).exists(), path


def test_paths_in_the_makefile_exist() -> None:
    text = (TOP / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"\b((?:tests|scripts)(?:/[\w.-]+)*/[\w-]+(?:\.py)?)\b", text)
    assert "tests/fuzz" in found
    for path in found:
        assert (TOP / path).exists(), path


def test_paths_in_the_limits_exist() -> None:
    found = re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", TEXTS[TOP / "docs" / "limits.md"])
    assert found
    for path in found:
        assert (TOP / "ldm" / path).exists(), path


def test_paths_in_the_architecture_exist() -> None:
    text = TEXTS[TOP / "docs" / "architecture.md"].partition("Planned:")[0]
    rooms = "|".join(path.name for path in (TOP / "ldm").iterdir() if path.is_dir())
    for path in re.findall(rf"`((?:{rooms})/[\w./-]*)`", text):
        assert (TOP / "ldm" / path).exists() or (TOP / "ldm" / f"{path}.py").exists(), path


def test_every_page_is_in_the_index() -> None:
    index = TEXTS[TOP / "docs" / "README.md"]
    for path in (TOP / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index


def test_the_readme_is_short() -> None:
    assert len(TEXTS[README].splitlines()) <= 150
