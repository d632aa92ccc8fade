"""What the README lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldm.job import GRID_NAMES, SAMPLER_ALIASES, Job, OutputPlan, options_of
from ldm.legacy import Legacy

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")

# Every argument of scripts/txt2img.py in CompVis/stable-diffusion and Stability-AI/stablediffusion.
OLD_FLAGS = re.findall(
    r"\S+",
    """
--prompt --outdir --skip_grid --skip_save --ddim_steps --steps --plms --dpm_solver --dpm --laion400m
--fixed_code --ddim_eta --n_iter --H --W --C --f --n_samples --n_rows --scale --from-file --config
--ckpt --seed --precision --repeat --device --torchscript --ipex --bf16
""",
)
TABLE = README.partition("### Every flag of the two txt2img.py")[2].partition("###")[0]
BLOCKS = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("flag", OLD_FLAGS)
def test_every_old_flag_is_listed_and_still_taken(flag: str) -> None:
    listed = re.findall(r"^\| (.*?) \|", TABLE, flags=re.MULTILINE)
    assert any(f"`{flag}" in cell for cell in listed)
    taken = [
        spelling
        for kind in (Job, OutputPlan, Legacy)
        for option in options_of(kind).values()
        for spelling in option.flags
    ]
    assert flag in taken


def test_every_flag_in_an_example_is_known() -> None:
    known = {
        spelling
        for kind in (Job, OutputPlan, Legacy)
        for option in options_of(kind).values()
        for spelling in option.flags
    }
    examples = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
    used = {
        word
        for line in examples
        if "txt2img" in line
        for word in re.findall(r"(?<=\s)--?[A-Za-z][\w-]*", re.sub(r'"[^"]*"', "", line))
    }
    assert used
    assert used <= known


def test_samplers_and_grids_are_all_named() -> None:
    section = README.partition("## Samplers and grids")[2].partition("\n## ")[0]
    words = set(re.findall(r"[a-z0-9_]+", section))
    assert set(SAMPLER_ALIASES) <= words
    assert set(GRID_NAMES) <= words


def test_every_packaged_family_is_in_the_table() -> None:
    table = README.partition("## Families")[2].partition("\n## ")[0]
    for path in (TOP / "configs" / "stable-diffusion").glob("*.yaml"):
        name = path.name.replace("unclip-h-inference", "unclip-l-inference")  # one row for both
        assert name in table


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (TOP / link).exists()


def test_paths_in_the_text_exist() -> None:
    for path in re.findall(r"`((?:configs|tests|scripts)/[\w./-]+)`", README):
        assert (TOP / path).exists(), path
