"""Reading the images, masks and depth maps that users give: files to arrays. No torch.

Whatever the format, its pixels come here as one kind of value, a raster, in the file's own depth;
an image, a mask and a depth map are three views of it. Limits are looked up in the header, before
pixels are decoded.
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
# Above this Pillow refuses on its own; about 13,000 pixels square.
LARGEST_PIXELS = 178_956_970

# Drawings that need an interpreter (EPS) and formats nobody draws in are left out on purpose.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF")
_ORIENTATION = 0x0112
_COLOURED = 2  # levels of 255: what a lossy format may colour a grey image


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image as it was given: rgb [H,W,3]; alpha [H,W], 0 transparent, or None without any."""

    rgb: Pixels
    alpha: Pixels | None = None

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def flattened(self, background: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
        """The image laid on a colour, white by default: [H,W,3].

        The 2022 scripts dropped the alpha instead: that is `rgb`, which shows whatever colour a
        program left below the transparent parts, often black.
        """
        if self.alpha is None:
            return self.rgb
        alpha = self.alpha[..., None].astype(np.uint32)
        under = np.array(background, np.uint32) * (255 - alpha)
        return ((self.rgb * alpha + under + 127) // 255).astype(np.uint8)


def read_image(path: Path | str) -> LoadedImage:
    """Read an image of any usual format as 8-bit RGB, upright as its EXIF says.

    Greys, palettes and CMYK are converted, 16 bits rounded to 8. Raises ImageError for what is
    missing, unreadable, damaged, no image, animated, too large or under 8 pixels a side.
    """
    raster = _read(path)
    if raster.colour.dtype == np.float32:
        raise ImageError(f"{path}: its values are not of 8 or 16 bits; save it as a usual PNG")
    colour = _to_bytes(raster.colour)
    rgb = np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)))
    return LoadedImage(rgb, None if raster.alpha is None else _to_bytes(raster.alpha))


def read_mask(path: Path | str, *, invert: bool = False, size: Size | None = None) -> Plane:
    """Read a mask: [H,W] in [0,1], 1 (white) where the image is to be repainted.

    Colours are turned into grey as by the originals. Transparency counts where it is not the same
    all over: a layer painted in one colour is a mask of its own, opaque = repaint; in a layer of
    several colours the transparent parts count as black. `size` is the (width, height) that the
    mask must have. Raises ImageError as `read_image` and `check_mask` do.
    """
    raster = _read(path)
    _check_size(path, "mask", raster.size, size)
    mask = _unit(_grey(raster.colour))
    if not 0 <= mask.min() <= mask.max() <= 1:
        raise ImageError(f"{path}: a mask's numbers must be 0 to 1; save it as a usual PNG")
    if raster.alpha is not None and np.ptp(raster.alpha) > 0:
        alpha = _unit(raster.alpha)
        drawn = raster.colour[raster.alpha > 0]
        mask = alpha if (drawn == drawn[0]).all() else mask * alpha
    mask = 1 - mask if invert else mask
    check_mask(mask, path)
    return mask


def mask_of_alpha(image: LoadedImage, name: Path | str = "the image") -> Plane:
    """The mask [H,W] in [0,1] of an image's transparency: transparent = 1 = repaint.

    Raises ImageError where no part is transparent by half or more, or every part is.
    """
    mask = None if image.alpha is None else 1 - _unit(image.alpha)
    if mask is None or mask.max() < 0.5:
        raise ImageError(f"{name}: has no transparent part to be repainted; give a mask file")
    if mask.min() >= 0.5:
        raise ImageError(f"{name}: is transparent all over; leave some part of it to go by")
    return mask


def check_mask(mask: Plane, name: Path | str) -> None:
    """Raise ImageError for a mask that is nowhere or everywhere; 0.5 and more is masked."""
    masked = mask >= 0.5
    if not masked.any():
        raise ImageError(
            f"{name}: the mask is empty: no pixel is to be repainted; white is, so paint some "
            "part white or invert the mask"
        )
    if masked.all():
        raise ImageError(
            f"{name}: the mask covers the whole image; leave some part black or invert the "
            "mask, or use img2img, which needs none"
        )


def read_depth(path: Path | str, *, size: Size | None = None) -> Plane:
    """Read a depth map [H,W], white (large) near and black (small) far, as MiDaS gives it.

    8 and 16 bits become [0,1] with all their levels; floating point stays as it is. `size` is the
    (width, height) that it must have. Raises ImageError as `read_image` does, and for a map that
    is coloured, not finite or the same everywhere.
    """
    raster = _read(path)
    _check_size(path, "depth map", raster.size, size)
    depth = _unit(raster.colour)
    if not np.isfinite(depth).all():
        raise ImageError(f"{path}: a depth map must be of finite numbers; fill its holes first")
    if depth.shape[2] == 3 and np.ptp(depth, axis=2).max() > _COLOURED / 255:
        raise ImageError(f"{path}: is coloured, and a depth map is grey: white near, black far")
    plane = np.ascontiguousarray(depth[..., 0] if depth.shape[2] == 1 else np.median(depth, axis=2))
    if plane.min() == plane.max():
        raise ImageError(
            f"{path}: the depth map is the same everywhere; give one with near and far"
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
        """Turned and mirrored as the EXIF orientation 1 to 8 says."""
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
    """Whole numbers as a share of their largest; floating point as it is."""
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
            "make them one size"
        )


def _read(path: Path | str) -> _Raster:
    """Decode a file; every failure is an ImageError and Pillow's warnings are not heard."""
    path = check_file(path)
    with warnings.catch_warnings():
        # By module, so that a thread which reads at the same time can lose no other warning.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            # A file, no path: Pillow maps some files it has a path of, and turns those TIFFs wrong.
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
    """Pillow's names of the formats that we read, those that this Pillow knows."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _opened(path: Path, file: BinaryIO) -> ImageFile:
    """The file with its header read and no pixel decoded."""
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
            f"{path}: is {width}x{height}; an image needs {LEAST_SIDE} pixels a side or more"
        )
    # A phone's MPO holds a JPEG and its previews, not a film.
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
    # Pillow turns a TIFF as it loads it, and some versions leave the tag.
    return raster if image.format == "TIFF" else raster.upright(_orientation(image))


def _orientation(image: ImageFile) -> object:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return 1  # broken notes do not make a broken image


def _shallow(image: ImageFile) -> _Raster:
    """8 bits a channel or fewer, of any mode."""
    modes = ("LA", "La", "PA", "RGBA", "RGBa")
    if image.mode in modes or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        return _Raster(rgba[..., :3], rgba[..., 3])
    if image.mode in ("1", "L"):
        return _Raster(np.asarray(image.convert("L"))[..., None])
    return _Raster(np.asarray(image.convert("RGB")))


def _deep_grey(image: ImageFile) -> _Raster | None:
    """Grey of more than 8 bits; None for all else."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        return _Raster(np.asarray(image).astype(np.float32)[..., None])
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    grey = np.asarray(image).astype(np.uint16)[..., None]
    return _Raster(grey, _keyed(image, grey))


def _keyed(image: ImageFile, colour: NDArray[np.uint16]) -> NDArray[np.uint16] | None:
    """Alpha [H,W] where one colour of a PNG stands for "transparent"."""
    key = image.info.get("transparency")
    if key is None:
        return None
    return np.where((colour == np.array(key)).all(axis=2), 0, 65535).astype(np.uint16)


def _deep_colour(path: Path, image: ImageFile, file: BinaryIO) -> _Raster | None:
    """Colour, or grey with alpha, of 16 bits a channel; None for all else.

    Pillow cuts off the lower bytes. It has a decoder for each byte order, and both keep the byte
    that they take for the upper one: with the wrong decoder, the file gives its lower bytes.
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
} | {_GREY_ALPHA: "RGBA"}  # its four bytes as they come: two of the grey, two of the alpha


def _raw_mode(tile: Any) -> str:
    args = tile[3]
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_raw_mode(tile: Any, raw: str) -> Any:
    """A tile of Pillow's, a plain or a named tuple by version, with another raw mode."""
    args = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
    fields = (*tile[:3], args)
    return tile._make(fields) if hasattr(tile, "_make") else fields
