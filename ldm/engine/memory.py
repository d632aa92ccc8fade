"""Out of memory: how to recognise it, and how to move parts of a model off the device."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import nn

from ldm.errors import LdmError
from ldm.nn.streaming import Streamed

# How torch's allocators say it where they have no error of their own for it.
_SAID = ("not enough memory", "out of memory", "can't allocate memory", "Invalid buffer size")
ADVICE = (
    "use a smaller size, --precision fp16, --attention sliced or --vae-tiling on, "
    "or close what else uses the memory"
)


class OutOfMemory(LdmError):
    """The memory does not suffice for a stage of a run."""

    def __init__(self, stage: str, device: torch.device) -> None:
        whose = "memory" if device.type == "cpu" else f"memory of {device}"
        super().__init__(f"the {whose} does not suffice for the {stage}: {ADVICE}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory does not suffice."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(said in text for said in _SAID)


def free() -> None:
    """Release cached memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Offload:
    """Parts of a model of which only those in use lie on the device, once `active`.

    `mode` says from when on: auto, where memory ends; parts and layers, from the beginning; none,
    never. With layers the network comes to the device piece by piece. `put` moves a module to a
    device. On a CPU there is nowhere else to put them.
    """

    def __init__(
        self,
        device: torch.device,
        put: Callable[[nn.Module, torch.device], object] = lambda part, where: part.to(where),
        mode: str = "auto",
    ) -> None:
        self.device = device
        self.mode = mode
        self.put = put
        self.active = mode in ("parts", "layers") and device.type != "cpu"
        self.streamed: Streamed | None = None

    def start(self) -> bool:
        """Begin to put parts aside; False where that is already done or would not help."""
        if self.active or self.mode == "none" or self.device.type == "cpu":
            return False
        self.active = True
        return True

    def use(self, model: nn.Module, stage: str) -> None:
        """Move to the device what a stage needs, and everything else off it."""
        if not self.active:
            return
        network, decoder = model.get_submodule("model"), model.get_submodule("first_stage_model")
        parts = list(model.children())
        needed = {"network": [network], "decoder": [decoder]}.get(
            stage, [part for part in parts if part is not network]
        )
        for part in parts:
            if all(part is not each for each in needed):
                self.put(part, torch.device("cpu"))
        free()
        if self.mode == "layers" and self.streamed is None:
            self.streamed = Streamed(network.get_submodule("diffusion_model"), self.device)
        for part in needed:
            if self.mode != "layers" or part is not network:
                self.put(part, self.device)
