"""Where the images of a run go: files, standard output, a sheet of all of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.engine.events import OnEvent, SheetWritten
from ldm.engine.timing import phase
from ldm.errors import JobError
from ldm.images.texts import read_texts
from ldm.images.writing import encode_image, encode_png
from ldm.jobs.image_formats import QUALITY, ending_of, format_of
from ldm.jobs.outputs import OutputPlan
from ldm.runs.files import Numbered, Unrepeated, check_folder, check_output, write_file

if TYPE_CHECKING:
    from ldm.engine.results import Result
    from ldm.images.tensors import ImageArray
    from ldm.jobs.job import Job


class Writer:
    """Writes images to numbered files, to one file, or to standard output, and their sheet.

    There are `count` images; the sheet has `columns`, or is labelled with `axes`. `names` are the
    files of images made of other images, by the names of these. Where `is_named`, the caller names
    images one by one, in the folder `named_in`. Making a writer checks that all can be written;
    raises JobError.
    """

    def __init__(
        self,
        outputs: OutputPlan,
        count: int,
        columns: int = 1,
        *,
        names: Mapping[str, str] | None = None,
        axes: Sequence[Sequence[Mapping[str, Any]]] = (),
        named_in: str = "",
        is_named: bool = False,
    ) -> None:
        self.outputs, self.count, self.columns = outputs, count, columns
        self.names, self.axes = names or {}, axes
        self.is_named = is_named
        folder = Path(outputs.outdir)
        ending = ending_of(outputs.format_out)
        self.samples = Numbered(folder / "samples", "", 5, ending)
        numbered = Unrepeated if outputs.skip_existing else Numbered
        self.grids = numbered(folder, "xy-" if outputs.grid_xy else "grid-", 4, ending)
        self.folder = named_in if is_named else ""
        self.written = 0
        self._paths: list[Path] = []
        self._for_sheet: list[ImageArray] = []
        self._sheet_text = ""
        self._check()

    def write(self, result: Result, path: Path | None = None) -> Path | None:
        """Write one image at once, to `path` or where it belongs; returns its file, if any."""
        record = result.record
        texts = {"parameters": record.infotext(), "ldm": record.to_json()}
        with phase("save"):
            path = path or self._path_of(record.job.init_img)
            path = self._place(self._encoded(result.image, texts, path), path)
        self.written += 1
        if self._has_sheet():
            self._for_sheet.append(result.image)
            self._sheet_text = self._sheet_text or texts["parameters"]
        if self.outputs.save_depth is not None and result.depth is not None:
            self._save_depth(self.outputs.save_depth, result)
        if path is not None:
            self._paths.append(path)
        return path

    def take(self, path: Path) -> None:
        """Take an image that exists already into the sheet."""
        if not self._has_sheet():
            return
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._for_sheet.append(np.asarray(image.convert("RGB")))
        self._sheet_text = self._sheet_text or read_texts(path).get("parameters", "")

    def gone(self) -> int:
        """How many of the written images exist no more."""
        return sum(not path.is_file() for path in self._paths)

    def close(self, report: OnEvent) -> None:
        """Write the sheet of all images, and report it."""
        sheet = self._table() if self.outputs.grid_xy else self._grid()
        if sheet is not None:
            texts = {"parameters": self._sheet_text}
            path = self.grids.write(self._encoded(sheet, texts, None))
            report(SheetWritten(path))

    def finished(self) -> str:
        """How many images are finished and where they are, for an interrupted run."""
        if self.written == 0 or (self.outputs.skip_save and not self.folder):
            return "no image was finished"
        where = self.outputs.outdir if self.names else str(self.samples.folder)
        where = self.folder or self.outputs.output or where
        return f"{self.written} of {self.count} images are in {where}"

    def _check(self) -> None:
        """Raise JobError where an image could not be written."""
        outputs = self.outputs
        if outputs.save_depth is not None:
            if format_of(outputs.save_depth) != "png":
                raise JobError(f"--save-depth {outputs.save_depth}: the name must end in .png")
            check_output(outputs.save_depth, 1, overwrite=outputs.overwrite, flag="--save-depth")
        if self.is_named:
            return  # the names are checked by whoever makes them
        if outputs.output is not None:
            check_output(
                outputs.output, self.count, overwrite=outputs.overwrite, kind=outputs.format_out
            )
        elif self.names:
            for name in self.names.values():
                each = self.count // len(self.names)
                check_output(name, each, overwrite=outputs.overwrite, flag="--indir:")
        elif not (outputs.skip_save and outputs.skip_grid):
            check_folder(Path(outputs.outdir) / "samples", "--outdir")

    def _has_sheet(self) -> bool:
        """Whether there will be a sheet of all images."""
        return not (self.outputs.skip_grid or self.outputs.output or self.names or self.is_named)

    def _grid(self) -> ImageArray | None:
        """All images side by side; None where they differ in size."""
        sizes = {image.shape for image in self._for_sheet}
        if not self._has_sheet() or len(sizes) != 1:
            return None
        from ldm.images.tensors import grid

        return grid(self._for_sheet, self.outputs.n_rows or self.columns)

    def _table(self) -> ImageArray | None:
        """The sheet labelled with the values of --matrix; None where an image is missing."""
        from ldm.runs.sheet import label, sheet

        across, down = ([label(value) for value in axis] for axis in (*self.axes, [{}])[:2])
        if len(self._for_sheet) != len(across) * len(down):
            return None
        return sheet(self._for_sheet, across, down)

    def _save_depth(self, name: str, result: Result) -> None:
        """Write the depth of the first image."""
        from ldm.models.depth import depth_image

        assert result.depth is not None
        if self.written == 1:
            plane = depth_image(result.depth, 16, source=result.record.job.depth or "the image")
            write_file(Path(name), encode_png(plane, {}), overwrite=self.outputs.overwrite)

    def _encoded(self, image: ImageArray, texts: dict[str, str], path: Path | None) -> bytes:
        """An image as the bytes of its file, in the format of its name or that of the run."""
        kind = (path and format_of(path)) or self.outputs.format_out or "png"
        quality = self.outputs.quality or QUALITY
        return encode_image(image, {} if self.outputs.no_metadata else texts, kind, quality)

    def _path_of(self, init_image: str | None) -> Path | None:
        """The file of an image that the command names; None for a number or standard output."""
        if self.is_named:
            return None
        name = self.names.get(init_image or "", self.outputs.output)
        return None if name is None or name == "-" else Path(name)

    def _place(self, content: bytes, path: Path | None) -> Path | None:
        if path is None and self.outputs.output == "-":
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return None
        if path is not None:
            write_file(path, content, overwrite=self.outputs.overwrite)
            return path
        return None if self.outputs.skip_save else self.samples.write(content)


def written_fields(result: Result, path: Path | None) -> dict[str, Any]:
    """The fields that `--json` prints of a finished image."""
    record = result.record
    fields = planned_fields(record.job, record.row, path, record.model, record.hash)
    return fields | {"seconds": round(result.seconds, 3)}


def planned_fields(
    job: Job, row: int, path: Path | None, model: str, digest: str
) -> dict[str, Any]:
    """The fields of row `row` of a batch that are known ahead; `digest` is the model's hash."""
    return {
        "path": None if path is None else str(path),
        **job.image_values(row),
        "grid": job.grid,
        "model": model,
        "hash": digest,
    }
