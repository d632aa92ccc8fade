"""Where to compute, and in which numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.errors import JobError
from ldm.jobs.tuning import PLAIN, Tuning, check_compiler
from ldm.nn.packing import can_pack
from ldm.nn.quantized import can_quantize

# Where and in which precision attention may be rounded to bf16.
_ROUNDED = (("cpu", "bf16"), ("cpu", "int8"))


@dataclass(frozen=True)
class Policy:
    """A device, the precision of the weights on it, and how to compute attention.

    `autocast`: weights in float32, arithmetic in `torch.autocast` of fp16, as in the originals.
    `upcast`: attention scores in float32 whatever the weights are (ATTN_PRECISION=fp32); `rounded`:
    in bf16 where that is quicker.
    `channels_last` and `packed`: how feature maps and weights lie in memory; `quantized`: the
    network's large layers multiply in 8 bits, the rest is float32 (see `load_model`).
    `compiled`: by torch's compiler, the network alone, which then is not packed.
    `keeps_freed`: memory that tensors leave stays with the process (`ldm.nn.allocator.keep_freed`).
    """

    device: torch.device
    dtype: torch.dtype
    precision: str
    autocast: bool = False
    attention: str = "auto"
    upcast: bool = False
    rounded: bool = False
    channels_last: bool = False
    packed: bool = False
    quantized: bool = False
    compiled: bool = False
    keeps_freed: bool = False
    notes: tuple[str, ...] = ()
    offload: str = "auto"

    @property
    def home(self) -> torch.device:
        """Where a model is loaded: the CPU if its parts are moved to the device in turn."""
        return torch.device("cpu") if self.offload in ("parts", "layers") else self.device

    def arithmetic(self) -> AbstractContextManager[object]:
        """The context to run networks in."""
        if self.autocast:
            return torch.autocast(self.device.type, torch.float16)
        return nullcontext()


def choose(
    device: str,
    precision: str,
    attention: str,
    environment: dict[str, str] | None = None,
    tuning: Tuning = PLAIN,
) -> Policy:
    """What a job's words mean on this machine; raises JobError for what is not here.

    `tuning.offload` is what lies outside of the device: none of a model, its parts that are not in
    use, the layers of the network, too, or auto: parts, where memory ends.
    """
    if tuning.compile and precision == "int8":
        raise JobError("--compile: not with --precision int8, which has kernels of its own")
    where = choose_device(device)
    resolved, notes = choose_precision(precision, where)
    if tuning.compile:
        check_compiler(where.type)
    dtypes = {"full": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    dtype = dtypes.get(resolved, torch.float32)
    return Policy(
        device=where,
        dtype=dtype,
        precision=resolved,
        autocast=resolved == "autocast",
        attention=attention,
        rounded=(where.type, resolved) in _ROUNDED and computes_in("bf16"),
        upcast=(environment or {}).get("ATTN_PRECISION", "").lower() in ("fp32", "full"),
        channels_last=where.type in ("cpu", "cuda"),
        packed=can_pack(dtype, where),
        compiled=tuning.compile,
        quantized=resolved == "int8",
        keeps_freed=where.type == "cpu",
        notes=notes,
        offload=tuning.offload,
    )


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` takes an NVIDIA (or ROCm) GPU, then Apple's, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise JobError("--device cuda: torch sees no GPU here; use --device auto or cpu")
        if device.index is not None and device.index >= count:
            raise JobError(f"--device {name}: this machine has cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise JobError("--device mps: torch finds no Apple GPU here; use --device auto")
    return device


def choose_precision(name: str, device: torch.device) -> tuple[str, tuple[str, ...]]:
    """The dtype of a precision on a device, and a note about it.

    `auto` is half precision on GPUs and full on the CPU, where half is slower than full. Raises
    JobError for int8 where it is not to be had.
    """
    if name == "auto":
        return ("full" if device.type == "cpu" else "fp16"), ()
    if name == "autocast" and device.type != "cuda":
        note = f"--precision autocast needs an NVIDIA GPU; on {device.type} it is full precision"
        return "full", (note,)
    if name == "int8":
        if device.type != "cpu":
            raise JobError(f"--precision int8 is for the CPU, not {device.type}: add --device cpu")
        if not computes_in(name) or not can_quantize():  # sums would not be exact, and slow
            raise JobError(
                "--precision int8 needs a processor with VNNI, which this one lacks; use full"
            )
    if name in ("fp16", "bf16") and device.type == "cpu" and not computes_in(name):
        note = f"--precision {name}: this processor has no {name} arithmetic; full is quicker here"
        return name, (note,)
    return name, ()


def computes_in(precision: str) -> bool:
    """Whether the CPU multiplies in a precision itself; where that is not to be seen, yes."""
    names = {
        "fp16": ("amx_fp16", "avx512_fp16"),
        "bf16": ("amx_bf16", "avx512_bf16"),
        "int8": ("amx_int8", "avx512_vnni", "avx_vnni"),
    }[precision]
    flags = processor_flags()
    return flags is None or any(name in flags for name in names)


def processor_flags() -> frozenset[str] | None:
    """The feature flags of an x86 processor; None if the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith("flags")), None)
    return None if flags is None else frozenset(flags.split())
