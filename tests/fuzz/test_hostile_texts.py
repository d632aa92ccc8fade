"""Prompts, files of jobs, matrices, names, YAMLs and manifests that strangers wrote."""

# ruff: noqa: E501 (tables of hostile values)
from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.checkpoints.config import parse_config, read_config
from ldm.errors import ConfigError, JobError
from ldm.jobs.expansion import expand
from ldm.jobs.files import parse_rows, read_axes, read_text
from ldm.jobs.job import Job
from ldm.jobs.metadata import format_infotext, parse_infotext
from ldm.jobs.templates import parse as parse_name
from ldm.jobs.templates import values_of
from ldm.runs.manifest import NAME, Manifest
from ldm.text.chunks import chunked
from ldm.text.tokenizer import clip_tokenizer, open_clip_tokenizer
from tests.fuzz.damage import ODD_VALUES, damaged, damaged_json, damaged_text
from tests.fuzz.watch import watched

fuzzed = settings(settings.get_profile("fuzz"))
CONFIGS = Path(__file__).parents[2] / "configs"

PROMPTS = [
    "a red apple on a blue background",
    "a (red:1.3) apple, ((bright)) [dull] (((x))) \\(plain\\) BREAK and more, (a:0.5) [b:1.2",
    "a {red|blue|2::green} ball {e$$a|b} {1-2$$ and $$x|y|z} __colours__ \\{ \\| {|} __deep/er__",
    "word, " * 90,
]
MARKS = [
    "(", ")", "[", "]", ":", ":1.1)", ":-9e9)", ":1" + "0" * 400 + ")", "\\", "BREAK", " BREAK ",
    "{", "}", "|", "{e$$", "{2$$", "{1-3$$", "{1-999999999999$$", "{" + "9" * 5000 + "$$", "$$", "::",
    "9" * 400 + "::", "0::", "__colours__", "__deep/er__", "__../x__", "__/etc/passwd__", "__loop__",
    "__double__", "__", "{a|", "\n", "\0", "\ud800", "🍎", "<|endoftext|>", "&amp;", "İ", "ﬃ",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wildcards, some of which stand in themselves."""
    home = tmp_path_factory.mktemp("home")
    wildcards = home / "wildcards"
    (wildcards / "deep").mkdir(parents=True)
    (wildcards / "colours.txt").write_text("red\n2::blue\n# no\n{dark|light} green\n")
    (wildcards / "deep" / "er.txt").write_text("__colours__ and __colours__\n")
    (wildcards / "loop.txt").write_text("a __loop__\n")
    (wildcards / "double.txt").write_text("__double__ __double__\n")
    return home


@pytest.fixture(scope="module", autouse=True)
def warm(home: Path) -> None:
    """Read something of each kind first, so that nothing is compiled or imported later on."""
    for kind, texts in ROWS.items():
        for text in texts:
            with contextlib.suppress(JobError):
                parse_rows(text, "x", {"task": "txt2img"}, kind)
    for tokenizer in (clip_tokenizer(), open_clip_tokenizer()):
        tokenizer.encode("é &amp; x")
    for yaml in YAMLS:
        with contextlib.suppress(ConfigError):
            parse_config(yaml, "x")


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("LDM_WILDCARDS", raising=False)


@fuzzed
@given(damaged_text(PROMPTS, MARKS), st.sampled_from(["a1111", "comfy", "weights", "plain"]))
def test_weights(home: Path, text: str, syntax: str) -> None:
    tokenizers = [clip_tokenizer(), open_clip_tokenizer()]
    with watched(home):
        for tokenizer in tokenizers:
            chunks = chunked(text, tokenizer, 75, syntax)
            assert all(len(chunk) <= 75 for chunk in chunks.chunks)


@fuzzed
@given(damaged_text(PROMPTS, MARKS), st.integers(0, 2**64 - 1))
def test_choices(home: Path, text: str, seed: int) -> None:
    with watched(home):
        assert expand(text, seed) == expand(text, seed)


ROWS = {
    "txt": [
        "a cat\n# no\n\\# yes\na dog --n blurry --s 20 --w 512 --d 1,2,3 --l 7.5 --t 0.5 --f dog\n",
        '--prompt "a \\"b\\" c" --negative_prompt \'x\' --steps 20 --sampler_name "Euler a"\n',
    ],
    "csv": [
        'prompt,steps,scale,seed,output\na cat,20,7.5,1,cat\n"a, b",,,"1,2",../b\n',
        "task;prompt;width;init_img;strength\nimg2img;x;64;a.png;0,5\n",
    ],
    "tsv": ["prompt\tseed\tno_paste\ttask\na\t1\ttrue\tinpaint\n"],
    "json": [
        json.dumps({"defaults": {"steps": 2}, "jobs": ["a", {"prompt": "b", "seed": 3}]}),
        json.dumps([{"prompt": "x", "scale": 1e3, "overrides": ["a=1"], "fixed_code": True}]),
    ],
    "jsonl": ['{"prompt": "a", "seed": 1, "width": 64}\n{"task": "sample", "classes": ["1"]}\n'],
}
ROW_MARKS = [
    ",", "\t", ";", '"', "'", "\\", "\n", "\r", "\0", "#", "--", "--steps", " --d 1,2 ", "=", "[", "]",
    "{", "}", ":", "null", "NaN", "1e999", "-1", "[" * 2000, '{"a":' * 2000, "9" * 5000, "nan", "true",
    "prompt", "seed", "output", "task", "model", "\ufeff", "\ud800", "/etc/passwd", "../../x",
]  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
@fuzzed
@given(data=st.data())
def test_files_of_jobs(home: Path, kind: str, data: st.DataObject) -> None:
    text = data.draw(damaged_text(ROWS[kind], ROW_MARKS))
    asked = data.draw(st.sampled_from([kind, None]))
    with watched(home):
        for row in parse_rows(text, f"jobs.{asked or 'unknown'}", {"task": "txt2img"}, asked):
            Job(**{k: v for k, v in row.fields.items() if k != "output"}).validate()


@fuzzed
@given(damaged_json([{"prompt": "x", "seed": 1, "scale": 2.5, "n_samples": 2, "weights": ["1"]}]))
def test_jobs_of_odd_values(home: Path, jobs: Any) -> None:
    text = json.dumps(jobs)
    with watched(home):
        parse_rows(text, "jobs.json", {"task": "variations", "images": ("a.png",)}, "json")


@fuzzed
@given(damaged([text.encode() for texts in ROWS.values() for text in texts]))
def test_files_of_jobs_as_bytes(home: Path, content: bytes) -> None:
    path = home / "jobs"
    path.write_bytes(content)
    with watched(home):
        parse_rows(read_text(str(path)), str(path), {"task": "txt2img"})


@fuzzed
@given(
    st.lists(
        damaged_text(
            ["steps=20,30", "seed=1-4", "scale=5,7.5", 'prompt="a, b",c', "sampler=ddim,Euler a"],
            [*ROW_MARKS, "0-99999999", "1-" + "9" * 30, "prompt="],
        ),
        max_size=3,
    )
)
def test_matrices(home: Path, words: list[str]) -> None:
    with watched(home):
        read_axes(words, "txt2img")


NAMES = ["{index:05d}-{seed}-{prompt:.40}.png", "a/%05d.png", "{width}x{height}/{scale:.2f}.png"]
NAME_MARKS = [
    "{", "}", "{{", "/", "\\", "..", "../", "/etc/", ":", "{prompt}", "{model!r}", "{seed:{seed}}",
    "{index:0999999999d}", "{prompt:999999999}", "{scale:.999999999f}", "%0999999999d", "CON", "\0",
    "{index.__class__}", "{index[0]}", "{prompt:>5}", "\ud800", " ", "~", "aux.", "{}", "{0}",
]  # fmt: skip


@fuzzed
@given(
    damaged_text(NAMES, NAME_MARKS),
    st.text(max_size=300) | st.sampled_from(["../../x", "/etc/passwd", "..", "a\0b", "\ud800"]),
)
def test_names(home: Path, template: str, prompt: str) -> None:
    job = Job(prompt=prompt, seed=1, width=64, height=64, steps=2, scale=7.0, sampler="ddim")
    values = values_of(job, 0, index=3, number=1, model=prompt)
    with watched(home):
        parsed = parse_name(template)
        path = parsed.name(values)
        # What a prompt brings leads nowhere else.
        steps = sum(part == ".." for part in path.parts)
        assert steps <= template.count("..")
        assert path.is_absolute() <= template.startswith("/")


@fuzzed
@given(
    damaged_text(
        ["a cat, sitting\nNegative prompt: x\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"],
        [",", ":", '"', "\\", "\n", '"\\u', ": " * 50, 'a: "' + "\\" * 99, "Negative prompt:", "\ud800"],
    )
)  # fmt: skip
def test_infotexts(home: Path, text: str) -> None:
    with watched(home):
        format_infotext(parse_infotext(text))


YAMLS = [path.read_text() for path in sorted(CONFIGS.glob("*/*.yaml"))[:4]] + [
    "a: &x [1]\nb: *x\nc: ${a}\nd: ${oc.env:HOME}\nmodel: {target: a.B, params: {x: 1}}\n",
]
YAML_MARKS = [
    ":", ": ", "- ", "\n", "  ", "\t", "[", "]", "{", "}", "&x ", "*x", "<<: *x", "|", ">", "!!", "%",
    "!!python/object/apply:os.system [touch hacked]", "!!binary ", "!!timestamp 2001-99-99", "? ",
    "${", "}", "${a}", "${a}${a}", "${oc.env:PATH}", "${.x}", "${..}", "1:1:1", "1e999", ".nan", "---",
    "...", "'", '"', "\\", "\0", "\ud800", "#", "[" * 3000, "{a: " * 3000, "9" * 5000, "null", "~", "=",
]  # fmt: skip


@fuzzed
@given(damaged_text(YAMLS, YAML_MARKS))
def test_yamls(home: Path, text: str) -> None:
    with watched(home):
        assert isinstance(parse_config(text, "x.yaml").tree, dict)


@fuzzed
@given(damaged([text.encode() for text in YAMLS]))
def test_yamls_as_bytes(home: Path, content: bytes) -> None:
    path = home / "x.yaml"
    path.write_bytes(content)
    with watched(home):
        read_config(path)


LINES = (
    '{"fingerprint": "f", "path": "a.png", "seed": 7, "sha256": "0"}\n'
    '{"run": "r", "seed": 7}\n{"run": "r", "complete": 1}\n'
)


@fuzzed
@given(
    damaged([LINES.encode()])
    | st.lists(
        st.fixed_dictionaries(
            {
                "fingerprint": st.just("f") | ODD_VALUES,
                "path": st.sampled_from(["a.png", "../secret.png", "/etc/passwd", "", "\0", "x/../a"])
                | ODD_VALUES,
                "seed": ODD_VALUES,
            }
        )
    ).map(lambda rows: "\n".join(map(json.dumps, rows)).encode() + b"\n")
)  # fmt: skip
def test_manifests(home: Path, content: bytes) -> None:
    folder = home / "out"
    folder.mkdir(exist_ok=True)
    (home / "secret.png").write_bytes(b"")
    (folder / "a.png").write_bytes(b"")
    (folder / NAME).write_bytes(content)
    with watched(home):
        manifest = Manifest.open(folder)
        manifest.seed("r"), manifest.complete("r")
        taken = 0
        while (path := manifest.done("f", taken)) is not None:
            assert path.resolve().is_relative_to(folder.resolve())
            taken += 1
