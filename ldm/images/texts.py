"""The texts in image files: written into PNG, read from every format."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldm.errors import ImageError
from ldm.images.reading import LARGEST_PIXELS, readable_formats
from ldm.jobs.metadata import Record


def encode_png(picture: NDArray[np.uint8] | NDArray[np.uint16], texts: dict[str, str]) -> bytes:
    """A picture [H,W,3] or [H,W] as the bytes of a PNG file with text chunks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_texts(path: Path) -> dict[str, str]:
    """The text chunks of an image file; raises ImageError where it is no image."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            image = Image.open(file, formats=readable_formats())
            if image.width * image.height > LARGEST_PIXELS:
                raise ValueError(f"more than {LARGEST_PIXELS} pixels")
            image.load()  # texts may stand behind the pixels
            return {str(k): v for k, v in image.info.items() if isinstance(v, str)}
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:
        # Pillow fails in a dozen ways on damaged files.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read as an image ({reason})") from error


def read_record(path: Path) -> Record:
    """Our record in an image; raises ImageError where there is none."""
    texts = read_texts(path)
    if "ldm" not in texts:
        other = "; it has a `parameters` text, see ldm info" if "parameters" in texts else ""
        raise ImageError(f"{path}: no record of ldm in this image{other}")
    try:
        return Record.from_json(texts["ldm"])
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
