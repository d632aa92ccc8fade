"""Small images with texts as other programs write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WEBUI = """a (red:1.2) cat, 8k
on a mat
Negative prompt: blurry, dog
Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4294967290, \
Size: 24x16, Model hash: 6ce0161689, Model: v1-5, Clip skip: 2, ENSD: 31337, \
RNG: CPU, Tiling: True, Lora hashes: "x: 0123, y: 4567", Version: v1.10.1"""

HIRES = """a cat
Steps: 4, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 16x16, Variation seed: 9, \
Variation seed strength: 0.25, Denoising strength: 0.5, Hires upscale: 2, Hires steps: 3, \
Hires upscaler: R-ESRGAN 4x+, Version: v1.6.0"""

COMFY: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": ["20", 0], "steps": 4, "cfg": 5.0, "sampler_name": "dpmpp_2m",
            "scheduler": "karras", "denoise": 1.0, "model": ["11", 0], "positive": ["6", 0],
            "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd\\v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 24, "height": 16, "batch_size": 2}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["21", 0], "clip": ["10", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["10", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    "10": {
        "class_type": "CLIPSetLastLayer",
        "inputs": {"stop_at_clip_layer": -2, "clip": ["4", 1]},
    },
    "11": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "fur.safetensors", "strength_model": 0.8, "model": ["4", 0]},
    },
    "20": {"class_type": "PrimitiveNode", "inputs": {"value": 77}},
    "21": {"class_type": "Text Multiline", "inputs": {"text": "a cat"}},
}  # fmt: skip

COMFY_CUSTOM: dict[str, Any] = {
    "1": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0],
            "latent_image": ["6", 0],
        },
    },
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
    "3": {
        "class_type": "CFGGuider",
        "inputs": {"cfg": 3.5, "model": ["8", 0], "positive": ["9", 0], "negative": ["10", 0]},
    },
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "5": {
        "class_type": "BasicScheduler",
        "inputs": {"scheduler": "simple", "steps": 10, "denoise": 0.5, "model": ["8", 0]},
    },
    "6": {"class_type": "VAEEncode", "inputs": {"pixels": ["7", 0], "vae": ["8", 2]}},
    "7": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
    "8": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.ckpt"}},
    "9": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["8", 1]}},
    "10": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["8", 1]}},
}  # fmt: skip

INVOKE: dict[str, Any] = {
    "generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "blurry",
    "width": 24, "height": 16, "seed": 8, "rand_device": "cpu", "cfg_scale": 7.5, "steps": 4,
    "scheduler": "dpmpp_2m_k", "clip_skip": 1, "loras": [{"lora": "x", "weight": 0.5}],
    "model": {"model_name": "v1-5", "hash": "blake3:01"}, "app_version": "4.2.0",
}  # fmt: skip

NOVELAI: dict[str, str] = {
    "Title": "AI generated image",
    "Description": "a cat",
    "Software": "NovelAI",
    "Source": "Stable Diffusion 81274D13",
    "Comment": json.dumps({
        "prompt": "a {cat}", "steps": 28, "sampler": "k_euler_ancestral", "seed": 9, "scale": 11.0,
        "strength": 0.7, "noise": 0.2, "uc": "blurry", "width": 24, "height": 16,
        "cfg_rescale": 0.3,
    }),
}  # fmt: skip

FOOOCUS: dict[str, Any] = {
    "prompt": "a cat", "negative_prompt": "blurry", "styles": "['Fooocus V2']", "steps": 30,
    "performance": "Speed", "resolution": "(24, 16)", "guidance_scale": 4.0, "sharpness": 2.0,
    "base_model": "juggernaut", "base_model_hash": "AEB7E9E689", "refiner_model": "None",
    "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "10", "version": "Fooocus v2.5.0",
}  # fmt: skip

SWARM: dict[str, Any] = {
    "sui_image_params": {
        "prompt": "a cat", "negativeprompt": "blurry", "model": "v1-5.safetensors", "seed": 11,
        "steps": 4, "cfgscale": 6.0, "width": 24, "height": 16, "sampler": "euler_ancestral",
        "scheduler": "karras", "variationseed": 3, "variationseedstrength": 0.5,
        "clipstopatlayer": -2, "loras": ["x"], "swarm_version": "0.9.6",
    },
    "sui_extra_data": {"date": "2025-01-25"},
    "sui_models": [{"name": "v1-5.safetensors", "param": "model", "hash": "0x6ce0161689b3"}],
}  # fmt: skip

DRAW_THINGS: dict[str, Any] = {
    "c": "a cat", "uc": "blurry", "model": "sd_v1.5_f16.ckpt", "sampler": "DPM++ 2M Karras",
    "scale": 7.5, "seed": 12, "size": "24x16", "steps": 4, "strength": 1,
    "v2": {"loras": [{"file": "x.ckpt"}]},
}  # fmt: skip

EASY: dict[str, str] = {
    "prompt": "a cat", "negative_prompt": "blurry", "seed": "13", "num_inference_steps": "4",
    "guidance_scale": "7.5", "width": "24", "height": "16", "sampler_name": "euler_a",
    "use_stable_diffusion_model": "v1-5", "clip_skip": "True", "use_vae_model": "vae-840000",
}  # fmt: skip

DREAM = '"a cat [blurry]" -s 4 -S 14 -W 24 -H 16 -C 7.5 -A k_lms'
SD_METADATA: dict[str, Any] = {
    "model_weights": "v1-5", "model_hash": "cc6cb27103417325ff94f52b7a5d2dde",
    "image": {
        "prompt": [{"prompt": "a cat [blurry]", "weight": 1.0}], "steps": 4, "cfg_scale": 7.5,
        "seed": 14, "width": 24, "height": 16, "sampler": "k_lms", "type": "txt2img",
        "perlin": 0.1, "threshold": 0,
    },
}  # fmt: skip


def xmp(comment: str) -> str:
    """An XMP packet with a user comment."""
    words = comment.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description><xmp:CreatorTool>Draw Things'
        "</xmp:CreatorTool><exif:UserComment><rdf:Alt><rdf:li xml:lang='x-default'>"
        f"{words}</rdf:li></rdf:Alt></exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>"
    )


# The texts of a PNG of each program.
TEXTS: dict[str, dict[str, str]] = {
    "AUTOMATIC1111": {"parameters": WEBUI},
    "ComfyUI": {"prompt": json.dumps(COMFY), "workflow": json.dumps({"nodes": [], "links": []})},
    "InvokeAI": {"invokeai_metadata": json.dumps(INVOKE)},
    "InvokeAI 2": {"sd-metadata": json.dumps(SD_METADATA), "Dream": DREAM},
    "InvokeAI 1": {"Dream": DREAM},
    "NovelAI": NOVELAI,
    "Fooocus": {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"},
    "SwarmUI": {"parameters": json.dumps(SWARM, indent=2)},
    "Draw Things": {"XML:com.adobe.xmp": xmp(json.dumps(DRAW_THINGS))},
    "Easy Diffusion": EASY,
    "stable-diffusion.cpp": {
        "parameters": "a cät\nNegative prompt: blurry\nSteps: 4, CFG scale: 7, Guidance: 3.5, "
        "Seed: 42, Size: 24x16, Model: sd.safetensors, RNG: cuda, Sampler: euler_a karras, "
        "Version: stable-diffusion.cpp"
    },
}


def write_png(path: Path, texts: dict[str, str]) -> Path:
    """A PNG with text chunks."""
    chunks = PngInfo()
    for key, text in texts.items():
        if key.startswith("XML:"):
            chunks.add_itxt(key, text)
        else:
            chunks.add_text(key, text)
    Image.new("RGB", (24, 16)).save(path, pnginfo=chunks)
    return path


def write_exif(path: Path, comment: bytes = b"", **tags: str) -> Path:
    """A JPEG, WebP or PNG with a user comment, and texts under Make and so on in its EXIF."""
    exif = Image.Exif()
    if comment:
        exif.get_ifd(0x8769)[0x9286] = comment
    for name, text in tags.items():
        exif[{"Make": 0x010F, "Model": 0x0110, "ImageDescription": 0x010E}[name]] = text
    Image.new("RGB", (24, 16)).save(path, exif=exif.tobytes())
    return path


def write_hidden(path: Path, content: dict[str, str] | str, where: str = "alpha") -> Path:
    """A PNG with a text in the lowest bits of alpha or the colours, and no other text."""
    text = content if isinstance(content, str) else json.dumps(content)
    packed = gzip.compress(text.encode())
    mark = b"stealth_pngcomp" if where == "alpha" else b"stealth_rgbcomp"
    whole = mark + (len(packed) * 8).to_bytes(4, "big") + packed
    bits = np.unpackbits(np.frombuffer(whole, np.uint8))
    depth = 1 if where == "alpha" else 3
    height = 40
    width = -(-len(bits) // (height * depth)) + 1
    layer = np.zeros(width * height * depth, np.uint8)
    layer[: len(bits)] = bits
    layer = layer.reshape(width, height, depth).swapaxes(0, 1)
    pixels = np.full((height, width, 4), 254, np.uint8)
    if where == "alpha":
        pixels[..., 3:] |= layer
    else:
        pixels[..., :3] |= layer
        pixels = pixels[..., :3]
    Image.fromarray(pixels).save(path)
    return path
