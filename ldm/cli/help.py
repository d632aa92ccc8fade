"""The order of commands and options in the help: under headings, the most used first."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

# Heading -> commands, in the order of the help; a test compares them with what exists.
COMMANDS: dict[str, tuple[str, ...]] = {
    "Generate": (
        "txt2img", "img2img", "inpaint", "depth2img", "upscale", "variations", "sample", "rerun",
        "shell",
    ),
    "Inspect": ("info", "models", "tokens", "samplers", "schema"),
    "Manage": ("convert",),
    "Train": ("train",),
}  # fmt: skip

# Heading -> parameters. A parameter in no row comes under the last heading, in its own order.
GROUPS: dict[str, tuple[str, ...]] = {
    "Input": (
        "prompt", "negative", "prompt_2", "negative_2", "init_img", "images", "weights", "classes",
        "strength", "mask", "mask_invert", "inpaint_area", "inpaint_padding", "inpaint_fill",
        "outpaint", "depth", "depth_invert", "depth_model", "noise_level",
        "indir", "from_image", "from_file", "format", "repeat", "matrix", "grid_xy", "expand",
        "keep_going",
    ),
    "Images": (
        "width", "height", "fit", "n_samples", "n_iter", "batch_size", "seed", "seeds",
        "seed_step", "seed_per_image", "variation_seed", "variation_strength", "tile", "hires",
        "hires_upscaler", "hires_strength", "hires_steps",
    ),
    "Sampling": (
        "steps", "custom_steps", "scale", "sampler", "eta", "vanilla_sample", "grid", "shift",
        "guidance_rescale", "s_churn", "s_tmin", "s_tmax", "s_noise", "zero_snr", "skip_layers",
        "skip_layer_scale", "skip_layer_start", "skip_layer_end", "feather",
        "mask_blur", "no_paste", "prompt_syntax", "clip_skip", "t5_length", "unconditional",
        "original_size", "crop", "target_size", "aesthetic_score", "negative_aesthetic_score",
    ),
    "Model": (
        "resume", "model", "models_dir", "config", "vae", "clip_l", "clip_g", "t5", "loras",
        "prediction", "overrides",
    ),
    "Output": (
        "output", "outdir", "logdir", "format_out", "quality", "no_metadata", "overwrite",
        "save_depth", "skip_grid", "skip_save", "n_rows", "skip_existing", "json",
    ),
    "Hardware": (
        "device", "precision", "attention", "vae_tiling", "offload", "lowvram", "compile",
        "workers", "engine", "address",
    ),
    "Reproducing earlier images": ("noise", "rng", "ensd", "schedule_compat", "fixed_code"),
    "Flags of the 2022 scripts": (
        "plms", "dpm_solver", "bf16", "laion400m", "channels", "factor", "torchscript", "ipex",
    ),
    "Other": ("dry_run", "print_config", "progress", "timings", "quiet", "debug", "help"),
}  # fmt: skip


class GroupedCommand(TyperCommand):
    """A command whose help has its options under the headings of `GROUPS`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options heading by heading."""
        place = {name: heading for heading, names in GROUPS.items() for name in names}
        order = [name for names in GROUPS.values() for name in names]
        rows: dict[str, list[tuple[int, tuple[str, str]]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            name = param.name or ""
            heading = place.get(name, list(GROUPS)[-1])
            if param.param_type_name == "argument":
                heading = "Arguments"
            at = order.index(name) if name in order else len(order)
            rows.setdefault(heading, []).append((at, record))
        for heading in ("Arguments", *GROUPS):
            if heading in rows:
                with formatter.section(heading):
                    formatter.write_dl([record for _, record in sorted(rows[heading])])


class GroupedGroup(TyperGroup):
    """The program, whose help has its commands under the headings of `COMMANDS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands heading by heading; hidden ones are in none."""
        for heading, names in COMMANDS.items():
            rows = [(name, self.commands[name].get_short_help_str(100)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(rows)
