"""LoRAs merged into a loaded model, and taken back to the bit, without a second copy of it.

A changed weight is computed from the checkpoint's own numbers, which stay mapped; taking it back
reads them again. So nothing drifts, whatever precision or packing the layers have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.checkpoints.lora import Group, LoraFile
from ldm.checkpoints.weights.keys import NETWORK
from ldm.jobs.loras import Lora
from ldm.models.adapters.kinds import is_dependent
from ldm.models.adapters.lora import Reader
from ldm.nn.packing import PackedConv2d, PackedLinear, PackedUpsample
from ldm.nn.quantized import Int8Conv2d, Int8Linear

Chosen = tuple[tuple[Lora, LoraFile], ...]
_WITH_WEIGHTS = (PackedConv2d, PackedLinear, PackedUpsample, Int8Conv2d, Int8Linear)


@dataclass
class Side:
    """One side of a model, its network or its text encoders, and what is merged into it."""

    is_network: bool
    merged: tuple[Lora, ...] = ()
    changed: tuple[str, ...] = ()


class Merging:
    """Merges LoRAs into a model; `original` gives a key's numbers as in the checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        original: Callable[[str], Tensor],
        shapes: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
    ) -> None:
        self.model, self.original, self.dtype = model, original, dtype
        self.shapes = shapes
        self.network, self.text = Side(is_network=True), Side(is_network=False)
        self.readers: dict[str, Reader] = {}

    @torch.inference_mode()
    def use(self, side: Side, chosen: Chosen) -> None:
        """Have exactly these LoRAs merged into one side; nothing is done where they are already."""
        names = tuple(lora for lora, _ in chosen)
        if names == side.merged:
            return
        wanted = self._wanted(side, chosen)
        self.readers = {k: r for k, r in self.readers.items() if k in {n.name for n in names}}
        for key in dict.fromkeys((*side.changed, *wanted)):
            weight = self.original(key)
            parts = wanted.get(key, [])
            self._write(key, self._changed(key, weight, parts) if parts else weight)
        side.merged, side.changed = names, tuple(wanted)

    def _wanted(self, side: Side, chosen: Chosen) -> dict[str, list[tuple[Reader, Group, float]]]:
        """Each key to change: the groups that change it, those that depend on others last."""
        wanted: dict[str, list[tuple[Reader, Group, float]]] = {}
        for lora, file in chosen:
            reader = self.readers.setdefault(lora.name, Reader(file))
            for group in reader:
                target = group.target
                if target.weight.startswith(NETWORK) != side.is_network:
                    continue
                scale = lora.weight_of(block_of(target.weight))
                for key, is_here in (
                    (target.weight, set(group.roles) != {"diff_b"}),
                    (target.bias, "diff_b" in group.roles),
                ):
                    if is_here and scale:
                        wanted.setdefault(key, []).append((reader, group, scale))
        for parts in wanted.values():
            parts.sort(key=lambda part: is_dependent(part[1].roles))
        return wanted

    def _changed(
        self, key: str, weight: Tensor, parts: Sequence[tuple[Reader, Group, float]]
    ) -> Tensor:
        changed = weight.float()
        for reader, group, scale in parts:
            is_bias = key == group.target.bias
            of = reader.bias_difference if is_bias else reader.weight_difference
            added = of(group, changed, scale)
            if added is not None:
                changed = changed + added
        return changed

    def _write(self, key: str, weight: Tensor) -> None:
        """Give a layer the numbers of a weight, however it holds them."""
        place, _, name = key.rpartition(".")
        layer = _layer(self.model, place)
        if name == "weight" and isinstance(layer, _WITH_WEIGHTS):
            layer.set_weight(weight.to(self.dtype))
            return
        own: Tensor = getattr(layer, name)
        same = weight.dtype == own.dtype and weight.device == own.device
        if same and weight.stride() == own.stride():
            own.data = weight
        else:
            own.data = torch.empty_like(own.data).copy_(weight)


def _layer(model: nn.Module, place: str) -> nn.Module:
    """The module of a name; a packed upsampling has its convolution's weight itself."""
    parent, _, last = place.rpartition(".")
    if last == "conv" and isinstance(model.get_submodule(parent), PackedUpsample):
        return model.get_submodule(parent)
    return model.get_submodule(place)


def block_of(key: str) -> str:
    """The block of a model's key, as block weights name it: IN04, M00, OUT11, BASE."""
    if not key.startswith(NETWORK):
        return "BASE"
    names: Mapping[str, str] = {"input_blocks": "IN", "output_blocks": "OUT", "middle_block": "M"}
    kind, _, rest = key.removeprefix(NETWORK).partition(".")
    number = rest.partition(".")[0] if kind != "middle_block" else "0"
    return f"{names[kind]}{int(number):02}" if kind in names else kind
