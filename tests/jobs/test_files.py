"""Files of jobs in every format, and what is said of broken ones."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import JobError
from ldm.jobs.files import parse_rows, read_axes, read_jobs, read_rows
from ldm.jobs.sampler_names import sampler_fields

Fields = dict[str, Any]


def rows(text: str, name: str = "jobs.txt", **defaults: Any) -> list[Fields]:
    return [row.fields for row in parse_rows(text, name, defaults)]


# --- lines ----------------------------------------------------------------------------------------


def test_a_prompt_a_line() -> None:
    text = 'a cat\n\n   \n# not this\n\\# but this\na -- dash, and 3 --- more\nit\'s "quoted"'
    assert [row["prompt"] for row in rows(text)] == [
        "a cat",
        "# but this",
        "a -- dash, and 3 --- more",
        'it\'s "quoted"',
    ]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (
            '--prompt "a cat, sitting" --negative_prompt "blurry -- bad" --steps 20 --cfg_scale 7 '
            '--sampler_name "Euler a" --seed 1 --width 64 --height 128 --batch_size 2 --n_iter 3',
            {
                "prompt": "a cat, sitting",
                "negative": "blurry -- bad",
                "steps": 20,
                "scale": 7.0,
                "sampler": "euler_ancestral",
                "seed": 1,
                "width": 64,
                "height": 128,
                "n_samples": 2,
                "n_iter": 3,
            },
        ),
        (
            "1girl, hat --n lowres, bad's --w 960 --h 640 --s 28 --l 7.5 --d 5 --f name",
            {
                "prompt": "1girl, hat",
                "negative": "lowres, bad's",
                "width": 960,
                "height": 640,
                "steps": 28,
                "scale": 7.5,
                "seed": 5,
                "output": "name",
            },
        ),
        ("--prompt a cat on --steps=3", {"prompt": "a cat on", "steps": 3}),
        ('a cat --negative "say \\"no\\""', {"prompt": "a cat", "negative": 'say "no"'}),
        ("a cat --n 'a' or 'b'", {"prompt": "a cat", "negative": "'a' or 'b'"}),
        ("x --fixed_code --H 8", {"prompt": "x", "fixed_code": True, "height": 8}),
        ("x --fixed-code false", {"prompt": "x", "fixed_code": False}),
        ("x --sampler DPM++ 2M Karras", {"prompt": "x", "sampler": "dpmpp_2m", "grid": "karras"}),
        ("x --set a.b=1 --set c=2", {"prompt": "x", "overrides": ("a.b=1", "c=2")}),
        ("x --d -1", {"prompt": "x", "seed": -1}),
        ("--n ugly", {"negative": "ugly"}),
    ],
)
def test_flags_on_a_line(line: str, fields: Fields) -> None:
    assert rows(line) == [fields]


def test_a_list_of_seeds_is_a_job_each() -> None:
    assert [(row["prompt"], row["seed"]) for row in rows("x --d 1,2,30\ny --d 4")] == [
        ("x", 1),
        ("x", 2),
        ("x", 30),
        ("y", 4),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x --stps 3", "jobs.txt, line 2, column 3: unknown field 'stps'; did you mean steps?"),
        ("x --steps many", "line 2, column 3: steps must be a whole number, not 'many'"),
        ("x --cfg_scale a", "cfg_scale must be a number, not 'a'"),
        ("x --fixed_code perhaps", "must be true or false"),
        ("x --s 3 --steps 4", "column 9: steps and s both set steps; give one"),
        ("x --prompt y", "both set prompt"),
        ("x --mask m.png", "mask does not apply to txt2img"),
        ("x --steps 3000", "line 2: --steps must be 1 to 1000, not 3000"),
        ("x --sampler eulr", "did you mean euler?"),
        ("x --skip_draws 3", "unknown field 'skip_draws'"),
        ("x --d 1,b", "d must be a whole number, not '1,b'"),
        ("x --f", "output must be a file name"),
    ],
)
def test_what_is_wrong_on_a_line(line: str, words: str) -> None:
    with pytest.raises(JobError) as caught:
        rows(f"fine\n{line}\n")
    assert words in str(caught.value)


@settings(max_examples=40)
@given(st.text())
def test_no_line_can_break_the_reader(text: str) -> None:
    with contextlib.suppress(JobError):  # nothing else may come
        assert rows(text)


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1))
def test_lines_without_flags_are_prompts_as_they_are(lines: list[str]) -> None:
    lines = [line for line in lines if line.strip() and "#" not in line and "--" not in line]
    if lines:
        assert [row["prompt"] for row in rows("\r\n".join(lines))] == lines


# --- tables ---------------------------------------------------------------------------------------


def test_a_table() -> None:
    text = (
        "prompt,--steps,cfg_scale,fixed_code,class\r\n"
        '"a cat, ""big""\nand old",20,7,yes,\r\n'
        "\r\n"
        ",,,,\r\n"
        "dog,,,,\r\n"
    )
    first, second = parse_rows(text, "jobs.csv", {"steps": 5, "task": "txt2img"})[0:2]
    assert first.fields == {
        "task": "txt2img",
        "prompt": 'a cat, "big"\nand old',
        "steps": 20,
        "scale": 7.0,
        "fixed_code": True,
    }
    assert first.place == "jobs.csv, line 2"
    assert second.fields == {"task": "txt2img", "prompt": "dog", "steps": 5}
    assert second.place == "jobs.csv, line 6"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "prompt\tsteps\na, b\t3\n"),
        ("a.csv", "prompt;steps\na, b;3\n"),
        ("-", 'prompt,steps\n"a, b",3\n'),
        ("/dev/fd/63", "prompt\tsteps\na, b\t3\n"),
        ("-", '{"prompt": "a, b", "steps": 3}\n'),
        ("-", '[{"prompt": "a, b", "steps": 3}]'),
        ("-", '{"jobs": [{"prompt": "a, b", "steps": 3}]}'),
        ("-", "a, b --s 3"),
        ("x.ndjson", '{"prompt": "a, b", "steps": 3}\n\n'),
    ],
)
def test_the_format_is_told_by_the_name_or_seen(name: str, text: str) -> None:
    assert rows(text, name) == [{"prompt": "a, b", "steps": 3}]


@pytest.mark.parametrize("text", ["{a|b} dog", "[cat:0.5] dog", "prompt, in words", "a, b\nc, d"])
def test_prompts_that_look_like_something_else(text: str) -> None:
    assert [row["prompt"] for row in rows(text, "-")] == text.split("\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,stps\nx,3", "line 1, column 2: unknown field 'stps'; did you mean steps?"),
        ("prompt,steps,prompt\nx,3,y", "line 1, column 3: the field 'prompt' appears twice"),
        ("prompt,steps\nx,3\ny,two", "line 3, column 2: steps must be a whole number"),
        ("prompt,steps\nx,y,3", "line 2, column 3: more cells than the header's 2"),
        ('prompt,steps\n"x"y,3', "line 2, column 1: the quoting"),
        ('prompt,steps\n"x,3', "line 2, column 1: the quoting"),
        ("prompt,steps\n", "contains no prompt"),
        ("", "contains no prompt"),
        ("prompt,scale,cfg_scale\nx,1,2", "line 2, column 3: cfg_scale and scale both set scale"),
        ("prompt,steps\nx,0", "line 2: --steps must be 1 to 1000"),
    ],
)
def test_what_is_wrong_in_a_table(text: str, words: str) -> None:
    with pytest.raises(JobError) as caught:
        rows(text, "jobs.csv")
    assert words in str(caught.value)


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


@settings(max_examples=40)
@given(st.lists(st.tuples(CELLS, st.integers(1, 1000), CELLS), min_size=1), st.sampled_from(",\t"))
def test_what_a_spreadsheet_writes_is_read(table: list[tuple[str, int, str]], mark: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=mark)
    writer.writerow(["prompt", "steps", "negative"])
    writer.writerows(table)
    found = rows(file.getvalue(), {",": "x.csv", "\t": "x.tsv"}[mark])
    assert [(row["prompt"], row["steps"], row["negative"]) for row in found] == table


# --- JSON -----------------------------------------------------------------------------------------


def test_jobs_with_what_they_share() -> None:
    text = """{
      "defaults": {"steps": 7, "cfg_scale": 3, "overrides": ["a=1"]},
      "jobs": [
        "a cat",
        {"prompt": "dog", "scale": 9, "overrides": ["b=2", "c=3"], "seed": null}
      ]
    }"""
    first, second = parse_rows(text, "a.json", {"seed": 4, "steps": 1})
    assert first.fields == {
        "prompt": "a cat",
        "steps": 7,
        "scale": 3.0,
        "overrides": ("a=1",),
        "seed": 4,
    }
    assert second.fields["scale"] == 9.0
    assert second.fields["overrides"] == ("b=2", "c=3")
    assert second.fields["seed"] == 4
    assert (first.place, second.place) == ("a.json, line 4", "a.json, line 5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[\n{"prompt": "x",\n "stps": 3}]', "line 3, column 10: unknown field 'stps'; did you"),
        ('[{"prompt": "x", "steps": "3"}]', 'column 27: steps must be a whole number, not "3"'),
        ('[{"prompt": "x", "steps": true}]', "steps must be a whole number, not true"),
        ('[{"prompt": "x", "steps": 3.5}]', "steps must be a whole number, not 3.5"),
        ('[{"prompt": "x", "seed": [1, "2"]}]', 'seed must be a whole number, not [1, "2"]'),
        ('[{"prompt": "x", "scale": NaN}]', "NaN is not a JSON number"),
        ('[{"prompt": "x", "prompt": "y"}]', "'prompt' appears twice"),
        ('[{"prompt": "x"}\n{"prompt": "y"}]', "line 2, column 1: not JSON: expected a comma or ]"),
        ('[{"prompt": "x"}, 3]', "line 1, column 19: a job is an object or a string, not 3"),
        ('[{"prompt": "x"}] 3', "column 19: not JSON: unexpected text after the end"),
        ('[{"prompt": "x"', "line 1, column 16: not JSON"),
        ('[{"prompt": "x"}', "column 17: not JSON"),
        ('{"jobs": {"prompt": "x"}}', "column 10: expected a list of jobs"),
        ('{"jobs": ["x"], "job": 1}', "column 24: unknown entry 'job'"),
        ('{"jobs": []}', "contains no prompt"),
        ("[" * 100_000, "nested too deeply"),
        ("3", "expected a list of jobs"),
    ],
)
def test_what_is_wrong_in_json(text: str, words: str) -> None:
    with pytest.raises(JobError) as caught:
        rows(text, "jobs.json")
    assert words in str(caught.value)


def test_what_is_wrong_in_a_line_of_json() -> None:
    with pytest.raises(JobError, match=r"jobs.jsonl, line 3, column 12: not JSON"):
        rows('{"prompt": "x"}\n\n{"prompt": }', "jobs.jsonl")


@settings(max_examples=40)
@given(st.lists(st.fixed_dictionaries({"prompt": CELLS, "seed": st.integers(0, 2**64 - 1)})))
def test_json_and_its_lines_say_the_same(jobs: list[Fields]) -> None:
    if jobs:
        lines = "\n".join(json.dumps(job, ensure_ascii=False) for job in jobs)
        assert rows(lines, "a.jsonl") == rows(json.dumps(jobs, indent=1), "a.json") == jobs


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_any_unicode(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("ein Hündchen 🐶\r\nzwei\r\n".encode(encoding))
    assert [job["prompt"] for job in read_jobs(str(path), {})] == ["ein Hündchen 🐶", "zwei"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none.txt: cannot be read \(No such file"):
        read_jobs("none.txt", {})
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(JobError, match="line 2: not UTF-8"):
        read_jobs(str(path), {})
    with pytest.raises(JobError, match="--format yaml is not known"):
        parse_rows("x", "a.txt", {}, "yaml")


def test_a_bad_row_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,steps\na,1\nb,none\nc,5000\nd,4\n")
    told: list[JobError] = []
    found = read_rows(str(path), {}, on_error=told.append)
    assert [row.fields["prompt"] for row in found] == ["a", "d"]
    assert ["line 3" in str(told[0]), "line 4" in str(told[1])] == [True, True]


def test_a_task_of_its_own() -> None:
    found = rows('{"task": "img2img", "prompt": "x", "init_img": "a.png"}', "a.jsonl")
    assert found[0]["init_img"] == "a.png"
    with pytest.raises(JobError, match="did you mean img2img"):
        rows('{"task": "imgtoimg", "prompt": "x"}', "a.jsonl")
    assert rows("--init-img a.png --image b.png", task="variations") == [
        {"task": "variations", "images": ("a.png", "b.png")}
    ]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("euler_a", {"sampler": "euler_a"}),
        ("DPM++ 2M SDE Exponential", {"sampler": "dpmpp_2m_sde", "grid": "exponential"}),
        ("ddim", {"sampler": "ddim"}),
        ("Heun ", {"sampler": "heun"}),
        ("nonsense", {"sampler": "nonsense"}),
    ],
)
def test_samplers_by_the_names_that_people_see(name: str, fields: Fields) -> None:
    assert sampler_fields(name) == fields


def test_axes() -> None:
    words = [
        "steps=20,30",
        "--cfg_scale=5, 7.5",
        'prompt="a, b",c',
        "seed=3-5,9",
        "sampler=Euler a",
    ]
    assert read_axes(words, "txt2img") == [
        [{"steps": 20}, {"steps": 30}],
        [{"scale": 5.0}, {"scale": 7.5}],
        [{"prompt": "a, b"}, {"prompt": "c"}],
        [{"seed": 3}, {"seed": 4}, {"seed": 5}, {"seed": 9}],
        [{"sampler": "euler_ancestral"}],
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stps=1"], "--matrix stps=1: unknown field 'stps'; did you mean steps?"),
        (["steps"], "--matrix steps: values are missing; write it as steps=20,30"),
        (["steps="], "values are missing"),
        (["steps=1", "s=2"], "--matrix s=2: s is given twice"),
        (["steps=a"], "steps must be a whole number"),
        (["mask=a.png"], "mask does not apply to txt2img"),
        (["seed=5-1"], "5-1 is not a range"),
        (["seed=1-99999999"], "not a range of at most"),
        (['prompt="a'], "--matrix prompt="),
    ],
)
def test_what_is_wrong_in_an_axis(words: list[str], message: str) -> None:
    with pytest.raises(JobError) as caught:
        read_axes(words, "txt2img")
    assert message in str(caught.value)
