"""The options of inpainting that need no model: what they default to, and which are refused."""

from __future__ import annotations

from ldm.errors import JobError
from ldm.jobs.fields import Fields
from ldm.jobs.options import check_range

PADDING = 32  # pixels around the mask; the default of the web UI's form
LARGEST_BLUR = 256


def check_inpainting(job: Fields) -> None:
    """Raise JobError for options about the mask that are out of range or exclude each other."""
    check_range("--feather", job.feather, 0, None)
    check_range("--mask-blur", job.mask_blur, 0, LARGEST_BLUR)
    check_range("--inpaint-padding", job.inpaint_padding, 0, None)
    if job.mask is not None and job.outpaint is not None:
        raise JobError("--mask and --outpaint exclude each other; give one of them")
    if job.inpaint_area != "masked" and job.inpaint_padding is not None:
        raise JobError("--inpaint-padding does nothing without --inpaint-area masked")
    if job.inpaint_area == "masked" and job.fit is not None:
        raise JobError(
            "--fit does nothing with --inpaint-area masked: the image keeps its size, and "
            "--width and --height are the size at which the masked area is generated; omit --fit"
        )
