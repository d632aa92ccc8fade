"""Where the images of a run go, and how they are reported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldm.errors import JobError
from ldm.jobs.fields import FILE_FORMATS, IMAGE_TASKS
from ldm.jobs.image_formats import FORMATS, QUALITY
from ldm.jobs.options import check_choices, check_range, option, options_of
from ldm.jobs.tuning import Tuning

PROGRESS = ("auto", "jsonl", "none")

ENGINES = ("ray",)

OFFLOADS = ("auto", "none", "parts", "layers")


@dataclass(frozen=True)
class OutputPlan:
    """Where the images go and how they are reported.

    No field changes an image, except for the rounding of `batch_size` and `compile`.
    """

    outdir: str = option(
        "outputs",
        "--outdir",
        help="Output folder [outputs/TASK-samples].",
        metavar="FOLDER",
    )
    output: str | None = option(
        None,
        "--output",
        "-o",
        help="Output file or template, by its ending a PNG, JPEG, WebP, AVIF or TIFF; - is stdout.",
        metavar="NAME.png",
    )
    models_dir: tuple[str, ...] = option(
        (),
        "--models-dir",
        help="Search this folder for models, too (may be repeated).",
        metavar="FOLDER",
    )
    format_out: str | None = option(
        None,
        "--format-out",
        help="Format of the images [that of --output's ending, else png].",
        choices=FORMATS,
    )
    quality: int | None = option(
        None, "--quality", help=f"Quality of JPEG, WebP and AVIF, 1 to 100 [{QUALITY}]."
    )
    no_metadata: bool = option(
        False, "--no-metadata", help="Write no prompt and no record into the images."
    )
    overwrite: bool = option(False, "--overwrite", help="Let --output replace existing files.")
    skip_grid: bool = option(False, "--skip_grid", help="Do not write the grid of all images.")
    skip_save: bool = option(False, "--skip_save", help="Do not write the single images.")
    n_rows: int = option(0, "--n_rows", help="Images per row of the grid [n_samples].")
    from_image: str | None = option(
        None,
        "--from-image",
        help="Take the settings inside this image, whatever program made it; flags override them.",
        metavar="IMAGE",
    )
    from_file: str | None = option(
        None,
        "--from-file",
        help="File of prompts or jobs, one a line; - is standard input.",
        metavar="FILE",
    )
    format: str | None = option(
        None,
        "--format",
        help="Format of --from-file [by its extension].",
        choices=FILE_FORMATS,
    )
    repeat: int = option(1, "--repeat", help="Use each line of --from-file this many times [1].")
    matrix: tuple[str, ...] = option(
        (),
        "--matrix",
        help="Run every combination of these values.",
        metavar="NAME=X,Y,...",
    )
    seed_per_image: bool = option(
        False,
        "--seed-per-image",
        help="Count the seed on from image to image of a folder; without it all have one.",
        tasks=IMAGE_TASKS,
    )
    grid_xy: bool = option(
        False, "--grid-xy", help="Label the grid with the values of --matrix (X/Y plot)."
    )
    expand: bool = option(
        False, "--expand", help="Expand {a|b} and __wildcards__ in prompts (docs/batch.md)."
    )
    skip_existing: bool = option(
        False, "--resume", "--skip-existing", help="Skip images that exist already."
    )
    keep_going: bool = option(
        False, "--keep-going", help="Continue with the next job when one fails."
    )
    dry_run: bool = option(False, "--dry-run", help="List the images without generating them.")
    batch_size: int | None = option(
        None,
        "--batch-size",
        help="Images of different jobs per batch [as many as change no image].",
    )
    workers: int | None = option(
        None,
        "--workers",
        help="Number of worker processes, one GPU each where available [1].",
    )
    engine: str | None = option(
        None, "--engine", help="ray: run the workers on a Ray cluster.", choices=ENGINES
    )
    address: str | None = option(
        None,
        "--address",
        help="Address of the Ray cluster [a temporary one on this machine].",
        metavar="HOST:PORT",
    )
    save_depth: str | None = option(
        None,
        "--save-depth",
        help="Write the depth map that was used to this 16-bit PNG.",
        metavar="NAME.png",
        tasks=("depth2img",),
    )
    json: bool = option(False, "--json", help="Print one JSON object per image.")
    print_config: bool = option(
        False, "--print-config", help="Print all settings with their origin, and exit."
    )
    progress: str = option(
        "auto",
        "--progress",
        help="auto: a bar on a terminal; jsonl: events on standard error [auto].",
        choices=PROGRESS,
    )
    offload: str = option(
        "auto",
        "--offload",
        help="Move unused parts or layers off the GPU [auto: when memory is short].",
        choices=OFFLOADS,
    )
    lowvram: bool = option(False, "--lowvram", help="The same as --offload parts.")
    compile: bool = option(
        False,
        "--compile",
        help="Compile the network with torch: slow first start, faster steps on GPUs.",
    )
    timings: bool = option(False, "--timings", help="Print where the time went to standard error.")
    quiet: bool = option(False, "--quiet", "-q", help="No progress bar and no notes.")
    debug: bool = option(False, "--debug", help="Show the traceback of errors.")

    @property
    def tuning(self) -> Tuning:
        """The engine's tuning; `lowvram` means `offload` "parts"."""
        offload = "parts" if self.lowvram and self.offload == "auto" else self.offload
        return Tuning(offload, self.compile)

    @property
    def spread(self) -> bool:
        """Whether workers generate the images."""
        return ((self.workers or 1) > 1 or self.engine is not None) and not self.dry_run

    def validate(self) -> None:
        """Raise JobError for contradictory fields."""
        check_choices(self)
        check_range("--repeat", self.repeat, 1, None)
        check_range("--batch-size", self.batch_size, 1, None)
        check_range("--workers", self.workers, 1, None)
        check_range("--n_rows", self.n_rows, 0, None)
        check_range("--quality", self.quality, 1, 100)
        if self.compile and self.tuning.offload in ("parts", "layers"):
            raise JobError(
                "--compile needs the network to stay on the device: omit it, or omit --lowvram "
                "and --offload"
            )
        if self.address is not None and self.engine != "ray":
            raise JobError("--address needs a Ray cluster; add --engine ray")
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise JobError(
                "--engine ray: the package is not installed; pip install 'ldm-cli[ray]', "
                "or use --workers alone"
            )
        if self.grid_xy and not (1 <= len(self.matrix) <= 2 and self.from_file is None):
            raise JobError("--grid-xy needs --matrix with one or two axes, and no --from-file")
        if self.grid_xy and (self.output is not None or self.skip_grid):
            raise JobError("--grid-xy is written to --outdir; omit --output and --skip_grid")
        if self.output == "-" and self.json:
            raise JobError("--json and --output - both use standard output; choose one")


def split(fields: Mapping[str, Any]) -> tuple[OutputPlan, dict[str, Any]]:
    """Split fields into an OutputPlan and the remaining fields; raises JobError."""
    names = options_of(OutputPlan)
    outputs = OutputPlan(**{name: value for name, value in fields.items() if name in names})
    outputs.validate()
    return outputs, {name: value for name, value in fields.items() if name not in names}


def default_outdir(task: str) -> str:
    """The default output folder of a task, named as in the originals."""
    return f"outputs/{task}-samples"
