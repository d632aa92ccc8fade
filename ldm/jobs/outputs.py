"""Where the pictures of a run go, and what is told about them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldm.errors import JobError
from ldm.jobs.fields import FILE_FORMATS
from ldm.jobs.options import check_choices, check_range, option, options_of
from ldm.jobs.tuning import Tuning

PROGRESS = ("auto", "jsonl", "none")

ENGINES = ("ray",)

OFFLOADS = ("auto", "none", "parts", "layers")


@dataclass(frozen=True)
class OutputPlan:
    """Where the pictures go and what is told about them.

    No field changes a sample, but for what `batch_size` and `compile` round otherwise.
    """

    outdir: str = option(
        "outputs",
        "--outdir",
        help="Folder for samples/00000.png and grid-0000.png [outputs/TASK-samples].",
        metavar="FOLDER",
    )
    output: str | None = option(
        None,
        "--output",
        "-o",
        help="Write the one image to this PNG file instead; - is standard output.",
        metavar="NAME.png",
    )
    overwrite: bool = option(False, "--overwrite", help="Let --output replace a file.")
    skip_grid: bool = option(False, "--skip_grid", help="No grid of all images.")
    skip_save: bool = option(False, "--skip_save", help="No single images.")
    n_rows: int = option(0, "--n_rows", help="Images in a row of the grid [n_samples].")
    from_file: str | None = option(
        None,
        "--from-file",
        help="Prompts, n_samples of them in a batch, or jobs; - is standard input.",
        metavar="FILE",
    )
    format: str | None = option(
        None,
        "--format",
        help="What --from-file is [told by its ending].",
        choices=FILE_FORMATS,
    )
    repeat: int = option(1, "--repeat", help="Use each line of --from-file so many times [1].")
    matrix: tuple[str, ...] = option(
        (),
        "--matrix",
        help="A job for every combination of some values.",
        metavar="NAME=X,Y,...",
    )
    grid_xy: bool = option(
        False, "--grid-xy", help="The grid is a table: --matrix of one or two, across and down."
    )
    expand: bool = option(
        False, "--expand", help="Draw {a|b} and __name__ in prompts; see docs/batch.md."
    )
    skip_existing: bool = option(
        False, "--resume", "--skip-existing", help="Leave out the images that are there already."
    )
    keep_going: bool = option(
        False, "--keep-going", help="Go on after a job of --from-file that fails."
    )
    dry_run: bool = option(
        False, "--dry-run", help="Print the images that would be made, and stop."
    )
    batch_size: int | None = option(
        None,
        "--batch-size",
        help="Images of several jobs to draw at once [as many as change no image]; 1: none.",
    )
    workers: int | None = option(
        None,
        "--workers",
        help="Processes that share the batches, each with its GPU if there are any [1].",
    )
    engine: str | None = option(
        None, "--engine", help="ray: the workers are on a Ray cluster.", choices=ENGINES
    )
    address: str | None = option(
        None,
        "--address",
        help="The cluster of --engine ray [one on this machine, for the run].",
        metavar="HOST:PORT",
    )
    save_depth: str | None = option(
        None,
        "--save-depth",
        help="Write the depth that was used to this PNG file, 16 bits.",
        metavar="NAME.png",
        tasks=("depth2img",),
    )
    json: bool = option(False, "--json", help="Tell each image as one JSON object a line.")
    print_config: bool = option(
        False, "--print-config", help="Print what would apply and why, and stop."
    )
    progress: str = option(
        "auto",
        "--progress",
        help="auto: a bar on a terminal; jsonl: events on standard error; none [auto].",
        choices=PROGRESS,
    )
    offload: str = option(
        "auto",
        "--offload",
        help="Put aside what a GPU is not using: parts, or layers too; auto: if memory ends.",
        choices=OFFLOADS,
    )
    lowvram: bool = option(False, "--lowvram", help="The same as --offload parts.")
    compile: bool = option(
        False,
        "--compile",
        help="Compile the network, for GPUs: a minute or more once, seconds at every start.",
    )
    timings: bool = option(False, "--timings", help="Tell where the time went, on standard error.")
    quiet: bool = option(False, "--quiet", "-q", help="No progress and no notes.")
    debug: bool = option(False, "--debug", help="Show the traceback of an error.")

    @property
    def tuning(self) -> Tuning:
        """What is asked of the engine; `lowvram` is a word for an `offload`."""
        offload = "parts" if self.lowvram and self.offload == "auto" else self.offload
        return Tuning(offload, self.compile)

    @property
    def spread(self) -> bool:
        """Whether there are workers to draw."""
        return ((self.workers or 1) > 1 or self.engine is not None) and not self.dry_run

    def validate(self) -> None:
        """Raise JobError for what contradicts itself."""
        check_choices(self)
        check_range("--repeat", self.repeat, 1, None)
        check_range("--batch-size", self.batch_size, 1, None)
        check_range("--workers", self.workers, 1, None)
        check_range("--n_rows", self.n_rows, 0, None)
        if self.compile and self.tuning.offload in ("parts", "layers"):
            raise JobError(
                "--compile wants the network to stay where it is; leave it, or --lowvram and "
                "--offload, out"
            )
        if self.address is not None and self.engine != "ray":
            raise JobError("--address is that of a Ray cluster; add --engine ray")
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise JobError(
                "--engine ray: the package is not installed; pip install 'ldm-cli[ray]', "
                "or use --workers alone"
            )
        if self.grid_xy and not (1 <= len(self.matrix) <= 2 and self.from_file is None):
            raise JobError("--grid-xy wants --matrix with one or two axes, and no --from-file")
        if self.grid_xy and (self.output is not None or self.skip_grid):
            raise JobError("--grid-xy is written to --outdir; leave --output and --skip_grid out")
        if self.output == "-" and self.json:
            raise JobError("--json and --output - both want standard output; choose one")


def split(fields: Mapping[str, Any]) -> tuple[OutputPlan, dict[str, Any]]:
    """The fields of OutputPlan as one, and the others; raises JobError."""
    names = options_of(OutputPlan)
    outputs = OutputPlan(**{name: value for name, value in fields.items() if name in names})
    outputs.validate()
    return outputs, {name: value for name, value in fields.items() if name not in names}


def default_outdir(task: str) -> str:
    """The folder for a task's pictures where none is named: the originals' own names."""
    return f"outputs/{task}-samples"
