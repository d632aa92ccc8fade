"""Read the user's images, masks and depth maps into arrays. No torch.

Every format is decoded into the same type, a raster, at the file's own bit depth; an image, a mask
and a depth map are three views of it. Limits are checked in the header, before pixels are decoded.
"""

from __future__ import annotations

import struct
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ldm.errors import ImageError
from ldm.jobs.inputs import FORMATS, check_file, kind

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]
Size = tuple[int, int]

LEAST_SIDE = 8
# Pillow refuses larger images by itself; about 13,000 pixels square.
LARGEST_PIXELS = 178_956_970

# Formats that need an interpreter (EPS) and exotic ones are excluded on purpose.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF")
_ORIENTATION = 0x0112
_COLOURED = 2  # levels of 255: the colour that lossy compression may add to a grey image


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image as given: rgb [H,W,3]; alpha [H,W], 0 transparent, or None without transparency."""

    rgb: Pixels
    alpha: Pixels | None = None

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def flattened(self, background: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
        """The image composited over a colour, white by default: [H,W,3].

        The 2022 scripts dropped the alpha instead; the result is `rgb`, which shows the hidden
        colour of the transparent parts, often black.
        """
        if self.alpha is None:
            return self.rgb
        alpha = self.alpha[..., None].astype(np.uint32)
        under = np.array(background, np.uint32) * (255 - alpha)
        return ((self.rgb * alpha + under + 127) // 255).astype(np.uint8)


def read_image(path: Path | str) -> LoadedImage:
    """Read an image of any usual format as 8-bit RGB, turned upright by its EXIF orientation.

    Grey, palettes and CMYK are converted, 16 bits rounded to 8. Raises ImageError for a file that
    is missing, unreadable, damaged, no image, animated, too large or under 8 pixels per side.
    """
    raster = _read(path)
    if raster.colour.dtype == np.float32:
        raise ImageError(f"{path}: its values do not have 8 or 16 bits; save it as a usual PNG")
    colour = _to_bytes(raster.colour)
    rgb = np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)))
    return LoadedImage(rgb, None if raster.alpha is None else _to_bytes(raster.alpha))


def read_mask(path: Path | str, *, invert: bool = False, size: Size | None = None) -> Plane:
    """Read a mask: [H,W] in [0,1], 1 (white) where the image is inpainted.

    Colours are converted to grey as in the originals. Transparency counts unless it is uniform: in
    a layer of a single colour it is the mask, opaque = inpaint; in a layer of several colours the
    transparent parts count as black. `size` is the required (width, height). Raises ImageError as
    `read_image` and `check_mask` do.
    """
    raster = _read(path)
    _check_size(path, "mask", raster.size, size)
    mask = _unit(_grey(raster.colour))
    if not 0 <= mask.min() <= mask.max() <= 1:
        raise ImageError(f"{path}: a mask's values must be 0 to 1; save it as a usual PNG")
    if raster.alpha is not None and np.ptp(raster.alpha) > 0:
        alpha = _unit(raster.alpha)
        painted = raster.colour[raster.alpha > 0]
        mask = alpha if (painted == painted[0]).all() else mask * alpha
    mask = 1 - mask if invert else mask
    check_mask(mask, path)
    return mask


def mask_of_alpha(image: LoadedImage, name: Path | str = "the image") -> Plane:
    """The mask [H,W] in [0,1] of an image's transparency: transparent = 1 = inpaint.

    Raises ImageError if no pixel is at least half transparent, or all are.
    """
    mask = None if image.alpha is None else 1 - _unit(image.alpha)
    if mask is None or mask.max() < 0.5:
        raise ImageError(f"{name}: has no transparent part to inpaint; give a mask file")
    if mask.min() >= 0.5:
        raise ImageError(f"{name}: is transparent everywhere; make some part of it opaque")
    return mask


def check_mask(mask: Plane, name: Path | str) -> None:
    """Raise ImageError for an empty mask or one that covers everything; 0.5 and more is masked."""
    masked = mask >= 0.5
    if not masked.any():
        raise ImageError(
            f"{name}: the mask is empty: white is inpainted, so paint some part white or invert "
            "the mask"
        )
    if masked.all():
        raise ImageError(
            f"{name}: the mask covers the whole image; leave some part black or invert the "
            "mask, or use img2img, which needs none"
        )


def read_depth(path: Path | str, *, size: Size | None = None) -> Plane:
    """Read a depth map [H,W], white (large) near and black (small) far, as from MiDaS.

    8 and 16 bits become [0,1] with all their levels; floating point is unchanged. `size` is the
    required (width, height). Raises ImageError as `read_image` does, and for a map that is
    coloured, not finite or uniform.
    """
    raster = _read(path)
    _check_size(path, "depth map", raster.size, size)
    depth = _unit(raster.colour)
    if not np.isfinite(depth).all():
        raise ImageError(f"{path}: a depth map must have finite values; fill its holes first")
    if depth.shape[2] == 3 and np.ptp(depth, axis=2).max() > _COLOURED / 255:
        raise ImageError(f"{path}: is coloured; a depth map is grey: white near, black far")
    plane = np.ascontiguousarray(depth[..., 0] if depth.shape[2] == 1 else np.median(depth, axis=2))
    if plane.min() == plane.max():
        raise ImageError(
            f"{path}: the depth map is the same everywhere; give one with varying depth"
        )
    return plane


@dataclass(frozen=True, eq=False)
class _Raster:
    """Decoded pixels: colour [H,W,1 or 3], alpha [H,W]; uint8, uint16 (full range) or float32."""

    colour: NDArray[Any]
    alpha: NDArray[Any] | None = None

    @property
    def size(self) -> Size:
        return self.colour.shape[1], self.colour.shape[0]

    def upright(self, orientation: object) -> _Raster:
        """Rotate and mirror by the EXIF orientation, 1 to 8."""
        alpha = None if self.alpha is None else _upright(self.alpha, orientation)
        return _Raster(_upright(self.colour, orientation), alpha)


def _upright(array: NDArray[Any], orientation: object) -> NDArray[Any]:
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(array[rows, columns])


def _to_bytes(array: NDArray[Any]) -> Pixels:
    """8 bits as they are, 16 rounded to the nearest of 255 levels."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) + 128) // 257
    return array.astype(np.uint8)


def _unit(array: NDArray[Any]) -> Plane:
    """Integers as a fraction of their maximum; floating point unchanged."""
    if array.dtype == np.float32:
        return array
    return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)


def _grey(colour: NDArray[Any]) -> NDArray[Any]:
    """[H,W] from [H,W,1 or 3], by the weights and the rounding of Pillow's `convert("L")`."""
    if colour.shape[2] == 1:
        return colour[..., 0]
    total = colour.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((total + 0x8000) >> 16).astype(colour.dtype)


def _check_size(path: Path | str, what: str, size: Size, wanted: Size | None) -> None:
    if wanted is not None and size != wanted:
        raise ImageError(
            f"{path}: the {what} is {size[0]}x{size[1]} and the image {wanted[0]}x{wanted[1]}; "
            "give both the same size"
        )


def _read(path: Path | str) -> _Raster:
    """Decode a file; every failure is an ImageError, and Pillow's warnings are suppressed."""
    path = check_file(path)
    with warnings.catch_warnings():
        # By module, so that other threads lose no unrelated warnings meanwhile.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            # Pass a file: given a path, Pillow memory-maps some TIFFs and orients those wrongly.
            with path.open("rb") as file:
                image = _opened(path, file)
                _check_header(path, image)
                return _decoded(path, image, file)
        except ImageError:
            raise
        except MemoryError:
            raise ImageError(f"{path}: does not fit in memory; scale the image down") from None
        except Exception as error:
            # Decoders fail in a dozen ways on damaged files, a struct.error among them.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(
                f"{path}: the image is damaged or incomplete ({reason}); make or download it again"
            ) from error


def readable_formats() -> list[str]:
    """Pillow's names of the formats that we read and this Pillow supports."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _opened(path: Path, file: BinaryIO) -> ImageFile:
    """Open an image: read its header, decode no pixels."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=readable_formats())
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except UnidentifiedImageError:
        file.seek(0)
        what = kind(file.read(512))
        raise ImageError(
            f"{path}: not an image, but {what}; supported formats: {FORMATS}"
        ) from None


def _check_header(path: Path, image: ImageFile) -> None:
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise _too_large(path)
    if min(width, height) < LEAST_SIDE:
        raise ImageError(
            f"{path}: is {width}x{height}; an image needs at least {LEAST_SIDE} pixels per side"
        )
    # A phone's MPO holds a JPEG and its previews, not an animation.
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return
    if image.format == "TIFF":
        raise ImageError(f"{path}: has several pages; save the one you want as its own file")
    raise ImageError(f"{path}: is animated; extract the frame you want, as a PNG")


def _too_large(path: Path) -> ImageError:
    millions = LARGEST_PIXELS // 1_000_000
    return ImageError(f"{path}: has more than {millions} million pixels; scale it down first")


def _decoded(path: Path, image: ImageFile, file: BinaryIO) -> _Raster:
    raster = _deep_colour(path, image, file)
    image.load()
    raster = raster or _deep_grey(image) or _shallow(image)
    # Pillow rotates a TIFF while loading it, and some versions leave the tag.
    return raster if image.format == "TIFF" else raster.upright(_orientation(image))


def _orientation(image: ImageFile) -> object:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return 1  # broken metadata does not make a broken image


def _shallow(image: ImageFile) -> _Raster:
    """Up to 8 bits per channel, in any mode."""
    modes = ("LA", "La", "PA", "RGBA", "RGBa")
    if image.mode in modes or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        return _Raster(rgba[..., :3], rgba[..., 3])
    if image.mode in ("1", "L"):
        return _Raster(np.asarray(image.convert("L"))[..., None])
    return _Raster(np.asarray(image.convert("RGB")))


def _deep_grey(image: ImageFile) -> _Raster | None:
    """Grey with more than 8 bits; None for anything else."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        return _Raster(np.asarray(image).astype(np.float32)[..., None])
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    grey = np.asarray(image).astype(np.uint16)[..., None]
    return _Raster(grey, _keyed(image, grey))


def _keyed(image: ImageFile, colour: NDArray[np.uint16]) -> NDArray[np.uint16] | None:
    """Alpha [H,W] of a PNG with one transparent colour."""
    key = image.info.get("transparency")
    if key is None:
        return None
    return np.where((colour == np.array(key)).all(axis=2), 0, 65535).astype(np.uint16)


def _deep_colour(path: Path, image: ImageFile, file: BinaryIO) -> _Raster | None:
    """Colour, or grey with alpha, with 16 bits per channel; None for anything else.

    Pillow drops the low bytes. Its decoders for the two byte orders each return the byte they take
    for the high one, so the decoder for the wrong order returns the low bytes.
    """
    raws = {_raw_mode(tile) for tile in image.tile}
    if not raws or not raws <= _OTHER_ORDER.keys():
        return None
    high = np.asarray(image).astype(np.uint16)
    file.seek(0)
    again = _opened(path, file)
    again.tile = [_with_raw_mode(tile, _OTHER_ORDER[_raw_mode(tile)]) for tile in again.tile]
    low = np.asarray(again).astype(np.uint16)
    if raws == {_GREY_ALPHA}:
        return _Raster(low[..., :1] << 8 | low[..., 1:2], low[..., 2] << 8 | low[..., 3])
    values = (high << 8 | low).astype(np.uint16)
    colour = values[..., :3]
    return _Raster(colour, values[..., 3] if image.mode == "RGBA" else _keyed(image, colour))


_FOREIGN = "B" if sys.byteorder == "little" else "L"
_GREY_ALPHA = "LA;16B"
_OTHER_ORDER = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", "B"), ("B", "L"), ("N", _FOREIGN))
} | {_GREY_ALPHA: "RGBA"}  # its four bytes in order: two of grey, two of alpha


def _raw_mode(tile: Any) -> str:
    args = tile[3]
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_raw_mode(tile: Any, raw: str) -> Any:
    """A Pillow tile (a plain or a named tuple, by version) with another raw mode."""
    args = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
    fields = (*tile[:3], args)
    return tile._make(fields) if hasattr(tile, "_make") else fields
