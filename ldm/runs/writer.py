"""Where the pictures of a run go: files, standard output, a sheet of all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm.engine.timing import phase
from ldm.images.texts import encode_png
from ldm.jobs.outputs import OutputPlan
from ldm.runs.files import Numbered, check_folder, check_output, write_file

if TYPE_CHECKING:
    from ldm.engine.results import Result
    from ldm.images.tensors import Picture
    from ldm.jobs.job import Job


@dataclass
class Sink:
    """Where the pictures of a run go: numbered files, one file, or standard output.

    `names` are files for the pictures made of other pictures, by their names. Making a sink checks
    that they all can be written.
    """

    outputs: OutputPlan
    count: int
    columns: int
    names: Mapping[str, str] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    written: int = 0
    parameters: str = ""
    paths: list[Path] = field(default_factory=list)
    axes: Sequence[Sequence[Mapping[str, Any]]] = ()  # of a labelled sheet
    last: Path | None = None  # where the last picture went
    where: str = ""  # the folder of pictures that are named one by one

    def __post_init__(self) -> None:
        outputs = self.outputs
        folder = Path(outputs.outdir)
        self.samples = Numbered(folder / "samples", "", 5)
        self.grids = Numbered(folder, "xy-" if outputs.grid_xy else "grid-", 4)
        if outputs.save_depth is not None:
            check_output(outputs.save_depth, 1, overwrite=outputs.overwrite, flag="--save-depth")
        if outputs.output is not None:
            check_output(outputs.output, self.count, overwrite=outputs.overwrite)
        elif self.names:
            for name in self.names.values():
                each = self.count // len(self.names)
                check_output(name, each, overwrite=outputs.overwrite, flag="--indir:")
        elif not (outputs.skip_save and outputs.skip_grid):
            check_folder(folder / "samples", "--outdir")

    def write(self, result: Result) -> None:
        """Put one picture where it belongs, at once."""
        record = result.record
        texts = {"parameters": record.infotext(), "ldm": record.to_json()}
        with phase("save"):
            self.last = self._place(encode_png(result.picture, texts), record.job.init_img)
        self.written += 1
        if self.has_grid():
            self.pictures.append(result.picture)
            self.parameters = self.parameters or texts["parameters"]
        if self.outputs.save_depth is not None and result.depth is not None:
            self._save_depth(self.outputs.save_depth, result)
        if self.last is not None:
            self.paths.append(self.last)

    def tell(self, result: Result) -> None:
        """Tell of the picture that was written last on standard output."""
        if self.outputs.json:
            typer.echo(json.dumps(told(result, self.last)))
        elif self.last is not None:
            typer.echo(self.last)

    def gone(self) -> int:
        """How many of the pictures that were written are not there any more."""
        return sum(not path.is_file() for path in self.paths)

    def close(self) -> None:
        """Write the grid, once all pictures are there."""
        if self.outputs.grid_xy:
            self._write_table()
            return
        sizes = {picture.shape for picture in self.pictures}
        if not self.has_grid() or len(sizes) != 1:  # pictures of several sizes make no grid
            return
        from ldm.images.tensors import grid

        sheet = grid(self.pictures, self.outputs.n_rows or self.columns)
        path = self.grids.write(encode_png(sheet, {"parameters": self.parameters}))
        if not self.outputs.json:
            typer.echo(path)

    def _write_table(self) -> None:
        """Write the labelled sheet, where none of its pictures is missing."""
        from ldm.runs.sheet import label, sheet

        across, down = ([label(value) for value in axis] for axis in (*self.axes, [{}])[:2])
        if len(self.pictures) != len(across) * len(down):
            return
        table = sheet(self.pictures, across, down)
        path = self.grids.write(encode_png(table, {"parameters": self.parameters}))
        if not self.outputs.json:
            typer.echo(path)

    def kept(self) -> str:
        """What an interrupted run leaves behind."""
        if self.written == 0 or (self.outputs.skip_save and not self.where):
            return "no image was finished"
        where = self.outputs.outdir if self.names else str(self.samples.folder)
        where = self.where or self.outputs.output or where
        return f"{self.written} of {self.count} images are in {where}"

    def has_grid(self) -> bool:
        """Whether there will be a sheet of all pictures."""
        return not (self.outputs.skip_grid or self.outputs.output or self.names)

    def _save_depth(self, name: str, result: Result) -> None:
        """The depth of the first picture, beside what is drawn from it."""
        from ldm.models.depth import depth_picture

        assert result.depth is not None
        if self.written == 1:
            plane = depth_picture(result.depth, 16, source=result.record.job.depth or "the picture")
            write_file(Path(name), encode_png(plane, {}), overwrite=self.outputs.overwrite)

    def _place(self, content: bytes, made_of: str | None) -> Path | None:
        name = self.names.get(made_of or "", self.outputs.output)
        if name == "-":
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return None
        if name is not None:
            write_file(Path(name), content, overwrite=self.outputs.overwrite)
            return Path(name)
        return None if self.outputs.skip_save else self.samples.write(content)


def told(result: Result, path: Path | None) -> dict[str, Any]:
    """What is told of a finished picture."""
    record = result.record
    planned = told_before(record.job, record.row, path, record.model, record.hash)
    return planned | {"seconds": round(result.seconds, 3)}


def told_before(job: Job, row: int, path: Path | None, model: str, digest: str) -> dict[str, Any]:
    """What can be told of row `row` of a batch before it is made; `digest` is the model's hash."""
    return {
        "path": None if path is None else str(path),
        **job.image_values(row),
        "model": model,
        "hash": digest,
    }
