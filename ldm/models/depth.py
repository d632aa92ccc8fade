"""Depth as a condition: image -> inverse depth -> what a v2-midas network is shown beside x.

Sources: Stability `ldm/data/util.py` (AddMiDaS), `ldm/modules/midas/transforms.py` (Resize),
`scripts/gradio/depth2img.py`, `ldm/models/diffusion/ddpm.py` (LatentDepth2ImageDiffusion).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ldm.checkpoints.weights.depth_keys import depth_sources, left_over, may_be_absent
from ldm.checkpoints.weights.files import open_weights
from ldm.checkpoints.weights.header import Header, read_header
from ldm.checkpoints.weights.keys import Fit, explain
from ldm.errors import CheckpointError, ImageError
from ldm.nn.dpt import DPT_HYBRID, MULTIPLE, DPTSizes, MiDaSInference
from ldm.nn.outline import outline

SIDE = 384  # the depth network was trained on squares of this side
TRAINING_MARGIN = 0.001  # added to the range of depth where the published model was trained
# A range this small beside the values is round-off, and no depth.
_FLAT = 1e-5


def network_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which the depth network sees an image: near 384, multiples of 32.

    One factor for both sides, of the two that bring a side to 384 the one nearer to 1. (The
    originals rounded a thin image's short side down to nothing; here it is at least 32.)
    """
    factor = min(SIDE / width, SIDE / height, key=lambda factor: abs(1 - factor))
    rows, columns = (
        max(MULTIPLE, MULTIPLE * round(factor * side / MULTIPLE)) for side in (height, width)
    )
    return rows, columns


def network_input(images: Tensor) -> Tensor:
    """Images [B,3,H,W] in [-1,1] -> the same at the network's size, float32; cubic overshoots."""
    return _resized(images.float(), network_size(*images.shape[-2:]))


def estimate_depth(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Inverse depth [B,1,H',W'] of images [B,3,H,W] in [-1,1], float32; larger is nearer.

    H' and W' are those of `network_size`. `network` is a model's `depth_model` or one that
    `load_depth_model` gave, on the images' device.
    """
    inputs = network_input(images)
    with torch.no_grad():
        return _resized(network(inputs).float(), inputs.shape[-2:])


def depth_from_map(
    values: NDArray[Any], *, invert: bool = False, source: str = "the depth map"
) -> Tensor:
    """A depth map [H,W], near bright, any number type -> inverse depth [1,1,H,W], float32.

    `invert` is for maps whose near is dark. A map larger than the network would make it is reduced
    to the network's size. Raises ImageError, beginning with `source`, for a map that is flat or not
    finite.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise ImageError(
            f"{source}: is not a depth map: {list(values.shape)} is not [height, width]"
        )
    depth = torch.from_numpy(values.astype(np.float32))[None, None]
    if not depth.isfinite().all():
        raise ImageError(f"{source}: contains NaN or infinity; fill its holes")
    _check_not_flat(depth.amin(), depth.amax(), source)
    size = network_size(*values.shape)
    if size[0] * size[1] < values.size:
        depth = F.interpolate(depth, size=size, mode="bilinear", antialias=True)
    return -depth if invert else depth


def depth_concat(
    depth: Tensor, size: tuple[int, int], *, margin: float = 0.0, source: str = "the depth map"
) -> Tensor:
    """Inverse depth [B,1,H,W] -> concat [B,1,h,w] of `size` (h, w), float32: -1 far, 1 near.

    Each image is spread over the whole range by its own least and greatest value. `margin`, in the
    units of depth, keeps the greatest below 1 (training: TRAINING_MARGIN). Raises ImageError,
    beginning with `source`, where nothing is nearer than the rest.
    """
    latent = _resized(depth.float(), size)
    least, greatest = latent.amin((1, 2, 3), keepdim=True), latent.amax((1, 2, 3), keepdim=True)
    _check_not_flat(least, greatest, source)
    return 2 * (latent - least) / (greatest - least + margin) - 1


def depth_image(
    depth: Tensor, bits: int = 8, *, source: str = "the depth map"
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Inverse depth [1,H,W] as a grey image [H,W] of 8 or 16 bits: black far, white near.

    Values are cut off, not rounded, as the original did. `depth_from_map` reads it back. Raises
    ImageError as `depth_concat` does, and ValueError for other bits.
    """
    if bits not in (8, 16):
        raise ValueError(f"a depth image has 8 or 16 bits, not {bits}")
    plane = depth.float().squeeze(0).cpu()
    least, greatest = plane.amin(), plane.amax()
    _check_not_flat(least, greatest, source)
    unit = ((plane - least) / (greatest - least)).numpy()
    scaled = unit * float(2**bits - 1)
    return scaled.astype(np.uint8) if bits == 8 else scaled.astype(np.uint16)


def load_depth_model(
    path: Path | str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    sizes: DPTSizes = DPT_HYBRID,
) -> MiDaSInference:
    """DPT-hybrid from MiDaS's file, transformers' (or diffusers') file, or a v2-midas checkpoint.

    Strict: every tensor that depth depends on is there, and no other. `dtype` None keeps the file's
    precision. Raises CheckpointError before a tensor is read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such depth model file; check --depth-model")
    header = read_header(path)
    with outline():
        network = MiDaSInference(sizes)
    expected = {key: tuple(own.shape) for key, own in network.model.state_dict().items()}
    sources = depth_sources(expected, header.tensors)
    if not sources:
        raise CheckpointError(
            f"{path}: contains no DPT-hybrid depth model; give dpt_hybrid-midas-501f0c75.pt, "
            "the weights of Intel/dpt-hybrid-midas, or a v2-midas checkpoint"
        )
    fit = _fit(header, expected, sources)
    if not fit.good:
        raise CheckpointError(f"{path}: does not fit the DPT-hybrid depth model ({explain(fit)})")
    weights = open_weights(header)
    state = {}
    for key, names in sources.items():
        parts = [weights[name] for name in names if name in weights]
        if parts:
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            tensor = torch.zeros(expected[key])
        state[key] = tensor.to(device=device, dtype=dtype)
    network.model.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def _fit(
    header: Header,
    expected: dict[str, tuple[int, ...]],
    sources: dict[str, tuple[str, ...]],
) -> Fit:
    missing: list[str] = []
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for key, names in sources.items():
        absent = [name for name in names if name not in header.tensors]
        if absent or not names:
            missing += [] if may_be_absent(key) else absent
            continue
        shapes = [header.tensors[name].shape for name in names]
        found = shapes[0]
        if len(shapes) > 1 and all(shapes):
            found = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if found != expected[key] or len({shape[1:] for shape in shapes}) > 1:
            misshapen.append((names[0], found, expected[key]))
    return Fit(tuple(missing), left_over(header.tensors, sources), tuple(misshapen))


def _resized(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """The originals' resize, of images and of depth: bicubic (a = -0.75), no low-pass."""
    return F.interpolate(x, size=tuple(size), mode="bicubic", align_corners=False)


def _check_not_flat(least: Tensor, greatest: Tensor, source: str) -> None:
    size = torch.maximum(least.abs(), greatest.abs())
    if (greatest - least <= _FLAT * size).any():
        raise ImageError(
            f"{source}: is the same everywhere; give a depth map in which something is nearer"
        )
