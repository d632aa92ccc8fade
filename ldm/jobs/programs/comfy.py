"""ComfyUI: the graph of nodes in the text `prompt` (PNG), or in EXIF Make and Model (WebP).

The sampler node nearest to a saved image is read, and what leads to it. Noise is that of torch's
CPU generator, one tensor for the batch. Sources: ComfyUI's nodes.py, comfy/sample.py and
comfy_extras/nodes_custom_sampler.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.jobs.fields import ETA_SAMPLERS
from ldm.jobs.programs.comfy_graph import Graph
from ldm.jobs.programs.settings import Draft, Settings, is_json, read_json, real, whole
from ldm.jobs.sampler_names import sampler_fields

PROGRAM = "ComfyUI"
_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_SAVERS = ("SaveImage", "PreviewImage", "SaveImageWebsocket", "SaveAnimatedWEBP", "Image Save")
# The grids of nodes that have no field for it.
_SIGMAS = {
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "polyexponential",
    "AlignYourStepsScheduler": "ays",
    "BetaSamplingScheduler": "beta",
}
_LOADERS = ("ckpt_name", "unet_name", "model_name", "model_path")
_UPSCALERS = {
    "nearest-exact": "latent-nearest",
    "bicubic": "latent-bicubic",
    "bilinear": "latent",
}
_PLAIN = ("Reroute", "VAEDecode", "ConditioningZeroOut")  # they change nothing that is not read
# Inputs of conditioning nodes that lead to other things, or to a text that is read already.
_NOT_CONDITIONING = ("clip", "model", "vae", "text", "text_g", "text_l")
_DENOISED = ("VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint", "LoadLatent")


def read(texts: Mapping[str, str]) -> Settings | None:
    """The settings of a `prompt` or `workflow` text; None for anything else."""
    content = texts.get("prompt", "")
    if not is_json(content):
        if not is_json(texts.get("workflow", "")):
            return None
        draft = Draft(PROGRAM)
        draft.leave("workflow", "the editor's graph", "the graph that was run is not in the file")
        return draft.finish()
    graph = Graph(read_json(content, "`prompt` graph"))
    if not graph.nodes:
        return None
    draft = Draft(PROGRAM, {"prompt_syntax": "comfy"})
    sampler = _final_sampler(graph)
    if sampler is None:
        kinds = sorted({graph.kind(name) for name in graph.nodes})
        draft.leave("nodes", ", ".join(kinds), "none is a sampler that ldm knows")
        return draft.finish()
    _Reader(graph, draft).read(sampler)
    return draft.finish()


def _final_sampler(graph: Graph) -> str | None:
    """The sampler nearest to an image that is saved, or else any."""
    savers = [name for name in graph.nodes if graph.kind(name) in _SAVERS]
    names = [*graph.upstream(savers), *graph.nodes]
    return next((name for name in names if _is_sampler(graph, name)), None)


def _is_sampler(graph: Graph, name: str) -> bool:
    return graph.kind(name) in _SAMPLERS or (
        {"steps", "sampler_name", "positive"} <= graph.inputs(name).keys()
    )


class _Reader:
    """Reads a sampler node and what leads to it into a draft."""

    def __init__(self, graph: Graph, draft: Draft) -> None:
        self.graph, self.draft = graph, draft

    def read(self, sampler: str) -> None:
        """Read all settings of the image that a sampler made."""
        first = self._first_pass(sampler)
        values = self._values(first)
        draft = self.draft
        for name in ("seed", "steps", "scale"):
            draft.set(name, values.get(name), name)
        self._sampler(values)
        guider = self.graph.link(first, "guider") or first
        conditioned = guider if self.graph.link(guider, "positive") else None
        if conditioned is None and self.graph.link(guider, "conditioning"):
            self._prompt(guider, "conditioning", "prompt")
            draft.fields["scale"] = 1.0  # BasicGuider
        self._prompt(guider, "positive", "prompt")
        self._prompt(guider, "negative", "negative")
        self._model(guider)
        self._latent(first, values)
        if sampler != first:
            self._second_pass(sampler, values)
        self._decoder(sampler)
        self._noise(values)

    def _first_pass(self, sampler: str) -> str:
        """The sampler that began the latent which `sampler` goes on with."""
        current, seen = sampler, {sampler}
        while True:
            start = self.graph.link(current, "latent_image")
            earlier = next(
                (
                    name
                    for name in self.graph.upstream(start, ("samples", "latent", "pixels", "image"))
                    if _is_sampler(self.graph, name)
                ),
                None,
            )
            if earlier is None or earlier in seen:
                return current
            if len(seen) > 1:
                self.draft.leave("sampler node", current, "a pass between the first and the last")
            seen.add(earlier)
            current = earlier

    def _values(self, sampler: str) -> dict[str, Any]:
        """Seed, steps, scale, sampler, grid and denoising of a node, or of its parts."""
        graph = self.graph
        found: dict[str, Any] = {}
        nodes = [sampler]
        for key in ("noise", "guider", "sampler", "sigmas"):
            nodes += [name for name in [graph.link(sampler, key)] if name is not None]
        keys = {
            "seed": ("seed", "noise_seed"), "steps": ("steps",), "scale": ("cfg",),
            "sampler": ("sampler_name",), "grid": ("scheduler",), "denoise": ("denoise",),
            "first": ("start_at_step",), "last": ("end_at_step",), "add": ("add_noise",),
        }  # fmt: skip
        for name in nodes:
            for field, words in keys.items():
                for word in words:
                    if field not in found and word in graph.inputs(name):
                        found[field] = graph.value(name, word)
            if graph.kind(name) in _SIGMAS:
                found.setdefault("grid", _SIGMAS[graph.kind(name)])
        sigmas = graph.link(sampler, "sigmas")
        if sigmas is not None and "steps" not in found:
            self.draft.leave(graph.kind(sigmas), "its steps", "give --steps and --grid")
        return found

    def _sampler(self, values: Mapping[str, Any]) -> None:
        draft = self.draft
        draft.set("sampler", values.get("sampler"), "sampler_name")
        draft.set("grid", values.get("grid"), "scheduler")
        try:
            steps = whole(values.get("steps") or 0)
            first, last = whole(values.get("first") or 0), whole(values.get("last") or steps)
        except (ValueError, TypeError, OverflowError):
            return
        if first > 0 or last < steps:
            draft.leave("start_at_step, end_at_step", f"{first} to {last}", "all steps are run")

    def _prompt(self, name: str, key: str, field: str) -> None:
        """The text behind a conditioning input."""
        graph, draft = self.graph, self.draft
        for node in graph.upstream(graph.link(name, key), without=_NOT_CONDITIONING):
            inputs = graph.inputs(node)
            if "text" in inputs or "text_g" in inputs:
                written = graph.value(node, "text" if "text" in inputs else "text_g")
                if field in draft.fields:
                    draft.leave(f"{field}, node {node}", written, "the first text is used")
                elif isinstance(written, str):
                    draft.fields[field] = written
                    self._clip(node)
                else:
                    draft.leave(f"{field}, node {node}", graph.kind(node), "no text in it")
                other = graph.value(node, "text_l")
                if other not in (None, written):
                    draft.leave("text_l", other)
            elif graph.kind(node) not in _PLAIN and node != name:
                draft.leave(graph.kind(node), _plain_values(inputs))

    def _clip(self, node: str) -> None:
        graph = self.graph
        for name in graph.upstream(graph.link(node, "clip"), ("clip",)):
            layer = graph.value(name, "stop_at_clip_layer")
            if layer is not None:
                try:
                    self.draft.fields["clip_skip"] = abs(whole(layer))
                except (ValueError, TypeError):
                    self.draft.leave("stop_at_clip_layer", layer)
                return

    def _model(self, name: str) -> None:
        """The checkpoint behind a model input; nodes between that change it are listed."""
        graph, draft = self.graph, self.draft
        for node in graph.upstream(graph.link(name, "model"), ("model", "model1")):
            inputs = graph.inputs(node)
            named = next((key for key in _LOADERS if isinstance(inputs.get(key), str)), None)
            if named is not None:
                draft.model = draft.model or str(inputs[named])
            elif graph.kind(node) == "ModelSamplingDiscrete":
                self._model_sampling(node)
            elif graph.kind(node) != "Reroute":
                draft.leave(graph.kind(node), _plain_values(inputs))

    def _model_sampling(self, node: str) -> None:
        kind = self.graph.value(node, "sampling")
        if kind in ("eps", "v_prediction"):
            self.draft.fields["prediction"] = "v" if kind == "v_prediction" else "eps"
        else:
            self.draft.leave("ModelSamplingDiscrete", kind)
        if self.graph.value(node, "zsnr"):
            self.draft.leave("ModelSamplingDiscrete", "zsnr")

    def _latent(self, sampler: str, values: Mapping[str, Any]) -> None:
        """Where the latent begins: a size, or an image."""
        graph, draft = self.graph, self.draft
        start = graph.link(sampler, "latent_image")
        follow = ("samples", "latent", "pixels", "image")
        denoise = values.get("denoise")
        for node in graph.upstream(start, follow):
            kind, inputs = graph.kind(node), graph.inputs(node)
            if {"width", "height"} <= inputs.keys() and not graph.link(node, "samples"):
                for key, field in (("width",) * 2, ("height",) * 2, ("batch_size", "n_samples")):
                    draft.set(field, graph.value(node, key), key)
            elif kind in _DENOISED:
                draft.task = "inpaint" if "Inpaint" in kind else draft.task
                draft.task = "img2img" if draft.task == "txt2img" else draft.task
            elif kind == "SetLatentNoiseMask":
                draft.task = "inpaint"
            elif kind not in (*_PLAIN, "LoadImage", "LoadImageMask"):
                draft.leave(kind, _plain_values(inputs))
        if draft.task != "txt2img":
            draft.set("strength", 1.0 if denoise is None else denoise, "denoise")
        elif denoise not in (None, 1, 1.0):
            draft.leave("denoise", denoise, "all steps are run")

    def _second_pass(self, sampler: str, first: Mapping[str, Any]) -> None:
        """A last pass over an enlarged latent or image: hires fix."""
        graph, draft = self.graph, self.draft
        values = self._values(sampler)
        width, height = draft.fields.get("width"), draft.fields.get("height")
        size = None
        for node in graph.upstream(graph.link(sampler, "latent_image"), ("samples", "pixels")):
            if _is_sampler(graph, node):
                break
            method = graph.value(node, "upscale_method")
            size = size or self._enlarged(node, width, height)
            if method is not None:
                pixels = "image" in graph.inputs(node)
                name = "lanczos" if pixels else _UPSCALERS.get(str(method), "latent")
                draft.fields["hires_upscaler"] = name
                if method not in _UPSCALERS and method != "lanczos":
                    draft.leave("upscale_method", method, f"{name} is used")
        if size is None:
            draft.fields.pop("hires_upscaler", None)
            draft.leave("second sampler", graph.kind(sampler), "only the first pass is made")
            return
        draft.fields["hires"] = size
        draft.set("hires_steps", values.get("steps"), "steps of the second pass")
        draft.set("hires_strength", values.get("denoise", 1.0), "denoise of the second pass")
        for name in ("seed", "scale", "sampler", "grid"):
            if values.get(name) != first.get(name):
                draft.leave(f"{name} of the second pass", values.get(name))

    def _enlarged(self, node: str, width: Any, height: Any) -> str | None:
        """What a node enlarges to, as --hires takes it."""
        inputs = self.graph.inputs(node)
        try:
            if "scale_by" in inputs:
                return f"{real(self.graph.value(node, 'scale_by')):g}"
            if {"width", "height", "upscale_method"} <= inputs.keys():
                sides = [whole(self.graph.value(node, key)) for key in ("width", "height")]
                return None if sides == [width, height] else f"{sides[0]}x{sides[1]}"
        except (ValueError, TypeError, OverflowError):
            self.draft.leave(self.graph.kind(node), _plain_values(inputs))
        return None

    def _decoder(self, sampler: str) -> None:
        """An autoencoder of its own."""
        graph = self.graph
        for name in graph.nodes:
            if graph.kind(name).startswith("VAEDecode") and graph.link(name, "vae"):
                loader = graph.link(name, "vae") or ""
                if "vae_name" in graph.inputs(loader):
                    self.draft.leave("VAE", graph.value(loader, "vae_name"), "give it with --vae")
                return

    def _noise(self, values: Mapping[str, Any]) -> None:
        """torch's CPU generator; one tensor for a batch of several images."""
        draft = self.draft
        several = (draft.fields.get("n_samples") or 1) > 1
        draft.fields |= {"rng": "cpu", "noise": "stream" if several else "image"}
        if values.get("add") in ("disable", False):
            draft.leave("add_noise", "disable")
        sampler = sampler_fields(str(draft.fields.get("sampler", "")))["sampler"]
        if sampler in ETA_SAMPLERS and sampler != "ddim":
            draft.leave(
                "noise of the steps", "a generator of ComfyUI's device", "ours is the CPU's"
            )
        if several and "hires" in draft.fields:
            draft.leave("batch_size", draft.fields["n_samples"], "hires fix makes the first image")
            draft.fields |= {"n_samples": 1, "noise": "image"}


def _plain_values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a node that are no links."""
    return {key: value for key, value in inputs.items() if not isinstance(value, list)}
