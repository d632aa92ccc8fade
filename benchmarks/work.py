"""One part of one peer in a process of its own, run again at every line on standard input.

    python -m benchmarks.work PEER ROW FOLDER

PEER is ldm or one of its `VARIANTS`, diffusers or openvino; ROW is one of `ROWS`. It answers each
line "run" with seconds on the clock, seconds of CPU and the peak resident bytes, and "save PATH"
after writing the last result there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.own import cpu_seconds, peak_bytes
from benchmarks.weights import PROMPT, checkpoint, diffusers_folder
from ldm.engine.device import Policy, choose
from ldm.jobs.tuning import Tuning

ROWS = ("unet", "text", "decode-512", "decode-1024", "decode-2048")

Run = Callable[[], Tensor]


def latent(side: int, batch: int = 1) -> Tensor:
    """The latent that everybody is given, [batch,4,side,side]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, 4, side, side), generator=generator)


def _unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    context = torch.randn((2, 77, 768), generator=torch.Generator().manual_seed(2))
    return latent(64, 2), torch.tensor([500.0, 500.0]), context


# --- ldm ------------------------------------------------------------------------------------------

# ldm without one of its optimisations, and with what is not the default.
VARIANTS: dict[str, Callable[[Policy], Policy]] = {
    "ldm": lambda policy: policy,
    "ldm, no packing": lambda policy: replace(policy, packed=False),
    "ldm, memory given back": lambda policy: replace(policy, keeps_freed=False),
    "ldm, bf16": lambda policy: choose("cpu", "bf16", "auto"),
    "ldm, bf16, no channels_last": lambda policy: replace(
        choose("cpu", "bf16", "auto"), channels_last=False
    ),
    "ldm, int8": lambda policy: choose("cpu", "int8", "auto"),
    "ldm, compiled": lambda policy: choose("cpu", "auto", "auto", tuning=Tuning(compile=True)),
}


def _ldm(row: str, folder: Path, variant: str) -> Run:
    from ldm.models.conditioning import Conditioning
    from ldm.nn.attention import attention_backend
    from ldm.workers.pool import load_as

    policy = VARIANTS[variant](choose("cpu", "auto", "auto"))
    model = load_as(policy, checkpoint(folder, "fp32.safetensors")).model
    if row == "unet":
        x, t, context = _unet_inputs()
        cond = Conditioning(crossattn=context)

        def predict() -> Tensor:
            with attention_backend(policy.attention, rounded=policy.rounded):
                return model.predict(x, t, cond)

        return predict
    if row == "text":
        return lambda: _crossattn(model.condition([PROMPT, ""])[0])
    z = latent(int(row.split("-")[1]) // 8) * model.scale_factor
    return lambda: model.decode(z)


def _crossattn(cond: Any) -> Tensor:
    hidden: Tensor = cond.crossattn
    return hidden


# --- peers ----------------------------------------------------------------------------------------


def _diffusers(row: str, folder: Path, variant: str) -> Run:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    path = checkpoint(folder, "fp32.safetensors")
    where: dict[str, Any] = {"config": str(diffusers_folder(folder)), "local_files_only": True}
    layout = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    if row == "text":
        pipeline = StableDiffusionPipeline.from_single_file(str(path), **where)
        texts = [PROMPT, ""]
        options = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}

        def embed() -> Tensor:
            ids = pipeline.tokenizer(texts, **options).input_ids
            hidden: Tensor = pipeline.text_encoder(ids)[0]
            return hidden

        return embed
    if row == "unet":
        net = UNet2DConditionModel.from_single_file(str(path), subfolder="unet", **where)
        net = net.eval().to(memory_format=layout)
        if "compile" in variant:
            net = torch.compile(net)
        x, t, context = _unet_inputs()
        x = x.to(memory_format=layout)
        return lambda: net(x, t, context, return_dict=False)[0]
    vae = AutoencoderKL.from_single_file(str(path), subfolder="vae", **where)
    vae = vae.eval().to(memory_format=layout)
    z = latent(int(row.split("-")[1]) // 8)
    return lambda: vae.decode(z, return_dict=False)[0]


def _openvino(row: str, folder: Path, variant: str) -> Run:
    import openvino

    module, inputs = _graph(row, folder)
    path = folder / f"openvino-{row}.xml"
    if not path.exists():
        converted = openvino.convert_model(module(), example_input=inputs)
        openvino.save_model(converted, path, compress_to_fp16=False)
        del converted
    core = openvino.Core()
    graph = core.read_model(path)
    names = zip(graph.inputs, inputs, strict=True)
    graph.reshape({port: list(value.shape) for port, value in names})
    run = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = [value.numpy() for value in inputs]
    return lambda: torch.from_numpy(run(given)[0])


def _graph(row: str, folder: Path) -> tuple[Callable[[], torch.nn.Module], tuple[Tensor, ...]]:
    """ldm's own network or decoder, to be converted, and its inputs."""
    from ldm.models.load import load_model

    def model() -> Any:
        return load_model(checkpoint(folder, "fp32.safetensors")).model

    if row == "unet":
        return (lambda: model().network), _unet_inputs()
    if row == "text":
        raise SystemExit("openvino has no part in this row")

    def decoder() -> torch.nn.Module:
        autoencoder = model().first_stage_model
        return torch.nn.Sequential(autoencoder.post_quant_conv, autoencoder.decoder)

    return decoder, (latent(int(row.split("-")[1]) // 8),)


PEERS: dict[str, Callable[[str, Path, str], Run]] = {
    **dict.fromkeys(VARIANTS, _ldm),
    "diffusers": _diffusers,
    "diffusers channels_last": _diffusers,
    "diffusers compile": _diffusers,
    "openvino": _openvino,
}


def main() -> None:
    peer, row, folder = sys.argv[1:]
    with torch.inference_mode():
        run = PEERS[peer](row, Path(folder), peer)
        ready = peak_bytes()
        print(json.dumps({"ready": ready}), flush=True)
        result: Tensor | None = None
        for line in sys.stdin:
            word, _, path = line.strip().partition(" ")
            if word == "save" and result is not None:
                torch.save(result.float().contiguous(), path)
                print(json.dumps({"saved": path}), flush=True)
                continue
            start, cpu = time.perf_counter(), cpu_seconds()
            result = run()
            wall = time.perf_counter() - start
            told = {"wall": wall, "cpu": cpu_seconds() - cpu, "peak": peak_bytes(), "ready": ready}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
