"""ldm beside its peers, in one run on one machine.

    python -m benchmarks [--rows unet first-step ...] [--repeats 3] [--peers NAME ...]
                         [--workdir outputs/bench] [--sdcpp PATH]

The peers of a row take turns (A B A B ...), so that whatever else the machine does is shared. They
get the same random weights of full size, made in --workdir at the first call (11 GB), and the same
inputs. Results go to benchmarks/results/ as a table, as JSON and as an image; rows that lie there
under the same --name and are not measured again stay.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import sdcpp
from benchmarks.limits import FLOPS, limits
from benchmarks.measure import Worker, machine, run_once
from benchmarks.processes import PROCESSES, Program
from benchmarks.table import OURS, Entry, entry, markdown, read, write

RESULTS = Path(__file__).parent / "results"
PARTS: dict[str, tuple[str, ...]] = {
    "unet": (OURS, "diffusers", "diffusers channels_last", "openvino", sdcpp.NAME),
    "text": (OURS, "diffusers", sdcpp.NAME),
    "decode-512": (OURS, "diffusers", "diffusers channels_last", "openvino", sdcpp.NAME),
    "decode-1024": (OURS, "diffusers"),
    "decode-2048": (OURS,),
    "unet-precision": (OURS, "diffusers", "ldm, bf16", "ldm, int8"),
    "unet-compiled": (OURS, "ldm, compiled", "diffusers compile"),
    # ldm beside itself without one of its optimisations.
    "unet-without": (OURS, "ldm, no packing", "ldm, memory given back"),
    "decode-512-without": (
        OURS,
        "ldm, no packing",
        "ldm, memory given back",
        "ldm, bf16",
        "ldm, bf16, no channels_last",
    ),
}
# Not in every run: minutes of arithmetic, or a disk that others use, too.
SLOW = (
    "decode-2048", "first-step-cold", "unet-precision", "unet-compiled", "unet-without",
    "decode-512-without",
)  # fmt: skip
PACKAGES = ("diffusers", "transformers", "openvino", "torch", "numpy")


def processes(name: str, folder: Path, wanted: argparse.Namespace) -> list[Entry]:
    """Measure a row of whole processes."""
    programs = PROCESSES[name](folder, wanted.sdcpp)
    programs = {peer: each for peer, each in programs.items() if _asked(peer, wanted)}
    runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in programs}
    for program in programs.values():
        _warm(program, run=name in ("help", "import", "bundled"))
    for _ in range(wanted.repeats):
        for peer, program in programs.items():
            runs[peer].append(_run(program))
    return [entry(name, peer, each) for peer, each in runs.items()]


def _run(program: Program) -> dict[str, float]:
    if program.cold is not None:
        with program.cold.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if program.command:
        cost, _ = sdcpp.run_command(program.command)
    else:
        cost = run_once(program.text, program.arguments)
    return {"wall": cost.wall, "cpu": cost.cpu, "peak": cost.peak}


def _warm(program: Program, *, run: bool) -> None:
    """Bring the files of a program into memory, so that it is not the disk that is measured."""
    if run:
        _run(program)
    for path in (Path(word) for word in program.arguments if word.startswith("/")):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def parts(name: str, folder: Path, wanted: argparse.Namespace, limit: float) -> list[Entry]:
    """Measure a row of one part, each peer in a process that stays."""
    workers: dict[str, Worker | sdcpp.Timed] = {}
    for peer in (peer for peer in PARTS[name] if _asked(peer, wanted)):
        if peer == sdcpp.NAME:
            workers[peer] = sdcpp.Timed(wanted.sdcpp, name, folder)
        else:
            workers[peer] = Worker(peer, _part(name), str(folder))
    runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in workers}
    for worker in workers.values() if len(workers) > 1 else ():
        worker.ask("run")  # pages are read, kernels are chosen
    for _ in range(wanted.repeats):
        for peer, worker in workers.items():
            runs[peer].append(worker.ask("run"))
    outputs = {peer: _output(worker, folder) for peer, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    entries = []
    for peer, each in runs.items():
        difference = _difference(outputs.get(OURS), outputs[peer]) if peer != OURS else None
        best = min(run["wall"] for run in each)
        flops = FLOPS.get(_part(name))
        share = None if flops is None else flops / best / limit
        entries.append(entry(name, peer, each, difference=difference, share=share))
    return entries


def _part(row: str) -> str:
    """What the peers of a row compute."""
    for kind in ("-without", "-precision", "-compiled"):
        row = row.removesuffix(kind)
    return row


def _asked(peer: str, wanted: argparse.Namespace) -> bool:
    from ldm.engine.device import computes_in

    if peer == "ldm, int8" and not computes_in("int8"):
        return False
    if peer == sdcpp.NAME and wanted.sdcpp is None:
        return False
    if peer == "openvino" and importlib.util.find_spec("openvino") is None:
        return False
    return not wanted.peers or peer in wanted.peers


def _output(worker: Worker | sdcpp.Timed, folder: Path) -> Any:
    import torch

    if isinstance(worker, sdcpp.Timed):  # its own sampler and weights: there is nothing to compare
        return None
    path = folder / "output.pt"
    worker.ask(f"save {path}")
    return torch.load(path, weights_only=True)


def _difference(ours: Any, other: Any) -> float | None:
    return None if ours is None or other is None else float((ours - other).abs().max() / ours.std())


def about(measured: dict[str, float], repeats: int) -> dict[str, str]:
    """What a reader must know of the run."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in measured.items())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{machine()}; {_processor()}",
        "versions": ", ".join(versions),
        "limit in float32": rates,
        "repeats": str(repeats),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "processor unknown"
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def _joined(name: str, entries: Sequence[Entry]) -> list[Entry]:
    """These, and the rows of an earlier run under the same name that were not measured again."""
    measured = {each.row for each in entries}
    every = [one for one in read(RESULTS, name) if one.row not in measured] + [*entries]
    return sorted(every, key=lambda one: [*PROCESSES, *PARTS].index(one.row))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    every = [*PROCESSES, *PARTS]
    usual = [row for row in every if row not in SLOW]
    parser.add_argument("--rows", nargs="+", choices=every, default=usual, metavar="ROW",
                        help=f"of {', '.join(every)} [all but {', '.join(SLOW)}]")  # fmt: skip
    parser.add_argument("--peers", nargs="+", default=[], help="only these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--sdcpp", help="the program of stable-diffusion.cpp")
    parser.add_argument("--name", help="of the files in benchmarks/results/ [date and machine]")
    wanted = parser.parse_args(argv)
    notes = [f"{name}: not installed" for name in ("openvino", "diffusers")
             if importlib.util.find_spec(name) is None]  # fmt: skip
    notes += [] if wanted.sdcpp else ["stable-diffusion.cpp: name the program with --sdcpp"]

    measured = limits()
    told = about(measured, wanted.repeats)
    folder = wanted.workdir.absolute()
    name = wanted.name or f"{told['date'].split()[0]}-cpu"
    entries: list[Entry] = []
    for row in wanted.rows:
        start = time.perf_counter()
        if row in PROCESSES:
            entries += processes(row, folder, wanted)
        else:
            entries += parts(row, folder, wanted, max(measured.values()))
        print(f"{row}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        path = write(RESULTS, name, _joined(name, entries), told, notes)
    print(markdown(_joined(name, entries), told, notes))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
