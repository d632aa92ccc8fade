"""Several workers: the same files as one, whatever dies on the way."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from ldm.engine.cancel import Cancel, Cancelled
from ldm.engine.events import Event, Note, ignore
from ldm.engine.memory import OutOfMemory
from ldm.engine.plan import Plan, make_plan
from ldm.engine.results import Result
from ldm.errors import JobError, LdmError, NonFiniteError
from ldm.runs.writer import Writer
from ldm.workers.crew import TRIES, Crew, Hand
from ldm.workers.pool import Batch, Outcome
from ldm.workers.worker import Reply, Worker
from tests.interrupted_runs import OUT, interrupted, lines_of
from tests.interrupted_runs import interrupts as interrupts
from tests.tiny_runs import QUICK, SAMPLES, contents, draw
from tests.tiny_runs import home as home

# Batches of one, two and three; drawn one by one, so that there is much to deal out.
ROWS = ["a,1,1,image", "b,2,2,image", "a,3,1,image", "b,3,1,image", "d,1,3,image"]
ROWS += [f"{word},1,1,image" for word in "efghijklmnop"]
STREAM = "c,2,2,stream"
JOBS = ["--from-file", "jobs.csv", "--seed", "3", "--batch-size", "1"]
TWO = [*JOBS, "--workers", "2"]


@pytest.fixture
def jobs(home: Path) -> Path:
    (home / "jobs.csv").write_text("prompt,steps,n_samples,noise\n" + "\n".join(ROWS))
    return home


@pytest.fixture
def whole(jobs: Path) -> dict[str, str]:
    """What one process makes of the jobs."""
    assert draw(*JOBS, "--outdir", "whole", "-q") == 0
    return contents(jobs / "whole")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """No worker is left behind."""
    yield
    until(lambda: not active_children())


def until(done: object, seconds: float = 60.0) -> None:
    assert callable(done)
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def told(text: str) -> list[dict[str, object]]:
    """What --json told, but for the time it took and the folder."""
    rows = [json.loads(line) for line in text.splitlines()]
    return [{**row, "seconds": 0, "path": Path(row["path"]).name} for row in rows]


def test_the_same_files_though_a_worker_is_killed(
    jobs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (jobs / "jobs.csv").open("a") as file:
        file.write(f"\n{STREAM}\n{STREAM}\n{ROWS[0]}\n")
    assert draw(*JOBS, "--outdir", "whole", "--json", "-q") == 0
    plain = capfd.readouterr().out
    write = Writer.write

    def killing(writer: Writer, result: Result, path: Path | None = None) -> Path | None:
        path = write(writer, result, path)
        if writer.written == 1:
            pid = active_children()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        return path

    monkeypatch.setattr(Writer, "write", killing)
    assert draw(*TWO, "--json") == 0
    out, err = capfd.readouterr()
    assert "a worker died" in err
    assert err.count("tiny on cpu") == 1
    assert contents(jobs / OUT) == contents(jobs / "whole")
    assert told(out) == told(plain)
    lines = (jobs / OUT / "manifest.jsonl").read_bytes()
    assert lines == (jobs / "whole/manifest.jsonl").read_bytes()


def test_the_driver_is_killed_and_gone_on_with(jobs: Path, whole: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ldm", "txt2img", *QUICK, *TWO, "-q"],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == f"{SAMPLES}/00000.png\n"
    workers = children(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(workers) >= 2
    until(lambda: not any(map(alive, workers)))
    assert 0 < len(lines_of(jobs / OUT)) < 20
    assert draw(*JOBS, "--resume", "-q") == 0
    assert contents(jobs / OUT) == whole


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("the system does not tell who started whom")
    return [int(word) for word in path.read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_job_fails_alone(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (home / "bad.csv").write_text("prompt,seed,scale\na,1,3\nx,9,1e38\nb,2,3\nc,3,3\n")
    words = ["--from-file", "bad.csv", "--keep-going"]
    assert draw(*words, "--outdir", "whole") == 3
    said = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert draw(*words, "--workers", "2") == 3
    assert [line for line in capfd.readouterr().err.splitlines() if "error" in line] == said
    assert "bad.csv, line 3" in said[0]
    assert contents(home / OUT) == contents(home / "whole")


@pytest.mark.usefixtures("interrupts")
def test_stopped_once_what_is_in_work_is_finished(
    jobs: Path,
    whole: dict[str, str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        assert draw(*TWO) == 130
    count = len(lines_of(jobs / OUT))
    assert 2 <= count <= 11  # what was begun before the second image was written
    assert f"stopped; {count} of 20 images are in" in capfd.readouterr().err
    assert draw(*JOBS, "--resume", "-q") == 0
    assert contents(jobs / OUT) == whole


def test_what_goes_with_it(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert draw("--prompt", "x", "--workers", "0") == 2
    assert "--workers must be 1 or more" in capfd.readouterr().err
    assert draw("--prompt", "x", "--workers", "2", "--dry-run") == 0


def test_errors_travel() -> None:
    errors = [
        NonFiniteError("network", "try"),
        OutOfMemory("network", torch.device("cpu")),
        JobError("x"),
    ]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


# --- without processes ----------------------------------------------------------------------------


class Near:
    """A worker in this process; it answers when it is asked to, and dies where `deadly` says so."""

    died = (BrokenExecutor,)

    def __init__(self, site: Desk, index: int) -> None:
        self.site, self.worker = site, Worker(index)

    def submit(self, order: bytes) -> Future[bytes]:
        future: Future[bytes] = Future()
        orders = pickle.loads(order).batches
        self.site.orders.append([job.prompt for _, job in orders])
        if any(job.prompt in self.site.deadly for _, job in orders):
            self.site.deadly = self.site.deadly.replace(orders[0][1].prompt, "", 1)
            future.set_exception(BrokenExecutor("killed"))
        else:
            future.set_result(self.worker.answer(order))
        return future

    def stop(self) -> None:
        self.site.stopped += 1


class Desk:
    """So many workers in this process; a prompt in `deadly` kills one for each time it is there."""

    here = True

    def __init__(self, count: int, deadly: str) -> None:
        self.count, self.deadly = count, deadly
        self.orders: list[list[str | None]] = []
        self.stopped = 0

    def open(self, device: str) -> int:
        return self.count

    def hire(self, index: int) -> Hand:
        return Near(self, index)

    def close(self) -> None:
        pass


@pytest.fixture
def plan(home: Path) -> Plan:
    asked = {"task": "txt2img", "width": 16, "height": 16, "steps": 1, "device": "cpu"}
    return make_plan({**asked, "prompt": "x", "seed": 3, "model": "tiny"})


def crew(deadly: str = "") -> tuple[Crew, Desk]:
    desk = Desk(2, deadly)
    return Crew(ignore, site=desk, cancel=Cancel()), desk


def batches(hands: Crew, plan: Plan, prompts: str) -> list[Batch]:
    hands.prepare(plan)
    job = replace(hands.job(plan), scale=1.0)
    return [(at, replace(job, prompt=prompt)) for at, prompt in enumerate(prompts)]


def seen(outcomes: list[Outcome]) -> str:
    return "".join("!" if isinstance(each, LdmError) else each.prompt for each in outcomes)


@pytest.mark.parametrize("deadly", ["", "a", "aa", "ch", "abcdefgh"])
def test_whoever_dies_all_is_drawn_in_order(plan: Plan, deadly: str) -> None:
    hands, desk = crew(deadly)
    asked = batches(hands, plan, "abcdefgh")
    outcomes = list(hands.generated(plan, asked, ignore, 1))
    assert seen(outcomes) == "abcdefgh"
    assert [each.ready for each in outcomes if isinstance(each, Result)] == [1] * 7 + [0]
    assert len([order for order in desk.orders if order]) == 8 + len(deadly)
    hands.close()
    assert desk.stopped == 2 + len(deadly)


def test_what_kills_every_worker_ends_the_run(plan: Plan) -> None:
    hands, desk = crew("c" * TRIES)
    outcomes = hands.generated(plan, batches(hands, plan, "abcd"), ignore, 1)
    drawn: list[Outcome] = []
    with pytest.raises(LdmError, match=rf"workers died {TRIES} times"):
        drawn.extend(outcomes)
    assert seen(drawn) == "ab"[: len(drawn)]
    assert desk.orders.count(["c"]) == TRIES


def test_as_many_at_a_time_as_are_drawn_together(plan: Plan) -> None:
    hands, desk = crew()
    asked = batches(hands, plan, "abcdefghijklmnopqrst")
    assert seen(list(hands.generated(plan, asked, ignore, None))) == "abcdefghijklmnopqrst"
    assert [len(order) for order in desk.orders if order] == [8, 8, 4]
    desk.orders.clear()
    list(hands.generated(plan, asked[:4], ignore, None))
    assert [len(order) for order in desk.orders] == [2, 2]


def test_nothing_is_begun_after_a_stop(plan: Plan) -> None:
    hands, desk = crew("b")
    outcomes = hands.generated(plan, batches(hands, plan, "abcdefgh"), ignore, 1)
    drawn = [next(outcomes)]
    hands.cancel.after_images()
    with pytest.raises(Cancelled):
        drawn.extend(outcomes)
    begun = {order[0] for order in desk.orders if order}
    assert seen(drawn) == "".join(sorted(map(str, begun)))
    assert 2 <= len(drawn) < 8


def test_more_threads_than_processors_are_told(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, count in ((1, 1), (2 * torch.get_num_threads(), 0)):
        monkeypatch.setattr(os, "cpu_count", lambda processors=processors: processors)
        hands, events = crew()[0], list[Event]()
        hands.report = events.append
        hands.prepare(plan)
        notes = [event.text for event in events if isinstance(event, Note)]
        assert sum("OMP_NUM_THREADS=1 is quicker" in note for note in notes) == count


def test_who_cannot_load_is_left_out(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = Worker.reply
    monkeypatch.setattr(
        Worker,
        "reply",
        lambda own, order: Reply(error=JobError("no GPU")) if own.index else reply(own, order),
    )
    hands, _ = crew()
    asked = batches(hands, plan, "ab")
    assert seen(list(hands.generated(plan, asked, ignore, 1))) == "ab"
    monkeypatch.setattr(Worker, "reply", lambda own, order: Reply(error=JobError("no GPU")))
    with pytest.raises(JobError, match="no GPU"):
        crew()[0].prepare(plan)
