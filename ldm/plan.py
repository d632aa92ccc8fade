"""From what was asked to what will be run: the files, the family, its defaults; without torch.

Everything that can be wrong with a request is found here, before weights are read.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm.config import Config, resource
from ldm.errors import CheckpointError, ConfigError, JobError, UsageError
from ldm.families import FAMILIES
from ldm.families.choice import Choice, choose, with_prediction
from ldm.imagenet import class_number
from ldm.job import ETA_SAMPLERS, PICTURED, Defaults, Job, nearest
from ldm.legacy import SCRIPT_CHECKPOINTS, SCRIPT_DEFAULTS
from ldm.weights.header import Header, read_header

# The bundled models by what they can do; the first one is the whole list where one will do.
BUNDLED: Mapping[str, tuple[str, ...]] = {
    "txt2img": ("emoji-128",),
    "img2img": ("emoji-128",),
    "inpaint": ("emoji-128-inpaint", "emoji-128"),
    "depth2img": ("emoji-128-depth",),
    "upscale": ("emoji-128-x4",),
}
# Which models a task can be done with, by what their families are for.
FITTING: Mapping[str, tuple[str, ...]] = {
    "img2img": ("txt2img",),
    "inpaint": ("inpaint", "txt2img"),
}
SUFFIXES = ("", ".safetensors", ".ckpt")


@dataclass(frozen=True)
class Plan:
    """A job without gaps, the checkpoint and YAML to run it with, and a reason for each value.

    `choice` has no `prediction_why` where only a measurement of the network can tell eps from v;
    then `asked` must be resolved again with what it found. `given` is what it was made from.
    """

    asked: Job
    job: Job
    why: dict[str, str]
    header: Header
    config: Path | None
    choice: Choice
    notes: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)


def make_plan(given: Mapping[str, Any], *, script: bool = False) -> Plan:
    """The plan for the fields that were given; raises UsageError for what cannot be done.

    `script` takes the defaults of the original scripts where nothing is given.
    """
    asked = Job(**given)
    asked.validate()
    if asked.classes:
        asked = replace(asked, classes=tuple(class_number(name) for name in asked.classes))
    if asked.attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise JobError(
            "--attention xformers: the package is not installed; "
            "pip install 'ldm-cli[xformers]', or use --attention sdpa"
        )
    checkpoint, notes = find_checkpoint(asked.model, asked.task, script=script)
    config, config_notes = find_config(asked.config)
    header = read_header(checkpoint)
    choice = choose(header, config, asked.overrides)
    if asked.prediction is not None:
        choice = with_prediction(choice, asked.prediction, "asked for")
    if script:
        asked = Job(**{**script_defaults(asked.task, choice), **given})
    if asked.prompts:
        asked = replace(asked, prompt=None)
    asked = replace(asked, model=_recorded(asked.model, checkpoint), config=_short(asked.config))
    check_task(asked.task, choice)
    plan = Plan(asked, asked, {}, header, config, choice, (*notes, *config_notes))
    plan = resolve(plan, choice.family.defaults, given, script=script)
    check_model(plan.job, choice)
    if asked.task in PICTURED or asked.images:
        plan = replace(plan, job=_measured(plan.job, choice))
    if plan.job.eta and plan.job.sampler not in ETA_SAMPLERS:
        note = f"--eta is ignored: {plan.job.sampler} draws no noise"
        plan = replace(plan, notes=(*plan.notes, note))
    return replace(plan, given=given)


def resolve(
    plan: Plan,
    defaults: Defaults,
    given: Mapping[str, Any],
    *,
    script: bool = False,
    draw_seed: Callable[[], int] = lambda: secrets.randbelow(2**32),
) -> Plan:
    """The plan with its job filled up from a family's defaults; the seed is drawn only once."""
    asked = plan.asked
    defaults = _for_task(defaults, asked.task, plan.choice)
    _check_subject(asked, plan.choice)
    if script and plan.choice.family.name in FAMILIES:
        defaults = replace(defaults, width=512, height=512, source="the original script")
    if plan.job.seed is not None and plan.job.seed >= 0:
        asked = replace(asked, seed=plan.job.seed)
    resolved = asked.resolve(defaults, draw_seed)
    why = dict.fromkeys(vars(asked), "the original script" if script else "the default")
    why |= {name: plan.why[name] for name in ("seed",) if name in plan.why}
    why |= dict.fromkeys(given, "asked for") | resolved.why
    return replace(plan, asked=asked, job=resolved.job, why=why)


def script_defaults(task: str, choice: Choice) -> Mapping[str, Any]:
    """The defaults of the original script of a task, of the version that a checkpoint is for."""
    return SCRIPT_DEFAULTS[task][1 if _is_v2(choice) else 0]


def _is_v2(choice: Choice) -> bool:
    """Version 2 has the text encoder of OpenCLIP, whatever its size."""
    return "OpenCLIP" in str(_part(choice.config, "cond_stage_config").get("target", ""))


def _for_task(defaults: Defaults, task: str, choice: Choice) -> Defaults:
    """A family's defaults, with what the originals' program of a task had of its own."""
    if task == "img2img":
        return replace(defaults, strength=0.8 if _is_v2(choice) else 0.75)
    own = {"inpaint": (1.0, 0), "depth2img": (0.9, 0), "upscale": (0.75, 20)}
    strength, level = own.get(task, (defaults.strength, 0))
    return replace(defaults, strength=strength, noise_level=level)


def _check_subject(asked: Job, choice: Choice) -> None:
    """Raise JobError where it is not said what to draw, or cannot be said to this model."""
    told = _part(choice.config).get("cond_stage_config")
    target = str(told.get("target") if isinstance(told, dict) else told)
    if asked.task == "sample":
        if target.endswith("ClassEmbedder") and not asked.classes:
            raise JobError("--class is missing: say what to draw, by its number or its name")
        if not target.endswith("ClassEmbedder") and asked.classes:
            raise JobError("--class: this model knows no classes; it draws what it was trained on")
        return
    prompted = asked.prompt is not None or bool(asked.prompts)
    speechless = target.startswith("__") or target.endswith(".Identity")
    if not prompted and asked.task not in ("upscale", "variations") and not speechless:
        raise JobError("--prompt is missing: say what to draw")


# --- files ----------------------------------------------------------------------------------------


def find_checkpoint(
    name: str | None, task: str = "txt2img", *, script: bool = False
) -> tuple[Path, tuple[str, ...]]:
    """The checkpoint of a path or a name, and what to tell; without one, the bundled model.

    Names are looked up in ./models, the folders of $LDM_MODELS and the packaged models, subfolders
    included. Raises CheckpointError listing what is there.
    """
    if name is None:
        usual = Path(SCRIPT_CHECKPOINTS.get(task, SCRIPT_CHECKPOINTS["txt2img"]))
        if script and usual.is_file():
            return usual, ()
        path = _bundled(task)
        note = f"no --model given: using the bundled model {path.stem}, a small stand-in"
        if script:
            note = f"no --ckpt, and no {usual}: using the bundled model {path.stem}"
        return path, (note,)
    path = Path(name).expanduser()
    for suffix in SUFFIXES if path.name else ():
        if (found := path.with_name(path.name + suffix)).is_file():
            return found, ()
    if path.is_dir():
        raise CheckpointError(f"--model {name} is a folder; name the checkpoint file in it")
    if not path.is_absolute():
        for folder in model_folders():
            matches = _matches(folder, name)
            if len(matches) > 1:
                listed = ", ".join(str(match) for match in matches[:4])
                raise CheckpointError(f"--model {name} fits several files: {listed}")
            if matches:
                return matches[0], ()
    raise CheckpointError(_no_model(name))


def model_folders() -> list[Path]:
    """Where names of models are looked up, in order."""
    named = [Path(part) for part in os.environ.get("LDM_MODELS", "").split(os.pathsep) if part]
    return [Path("models"), *named, resource("models")]


def find_config(name: str | None) -> tuple[Path | None, tuple[str, ...]]:
    """The YAML of a path; one that is not there is looked up among the packaged ones.

    The Intel variants of the v2 YAMLs differ in precision alone, which is a flag here.
    """
    if name is None or Path(name).expanduser().is_file():
        return (Path(name).expanduser() if name else None), ()
    packaged = resource("configs")
    wanted = name.removeprefix("./").removeprefix("configs/")
    for plain in (wanted, f"stable-diffusion/{wanted}", f"stable-diffusion/{wanted}.yaml"):
        stem = plain.replace("/intel/", "/").replace("-fp32.", ".").replace("-bf16.", ".")
        for candidate in (plain, stem):
            if (packaged / candidate).is_file():
                return packaged / candidate, (f"{name}: using the packaged configs/{candidate}",)
    known = [path.name for path in sorted(packaged.glob("stable-diffusion/*.yaml"))]
    hint = nearest(Path(name).name, known)
    raise ConfigError(f"--config {name}: no such file{hint} (packaged: {', '.join(known)})")


def read_prompts(name: str, repeat: int) -> tuple[str, ...]:
    """The prompts of a text file, a line each; blank lines are skipped. `-` is standard input."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise JobError(f"--from-file {name}: cannot be read ({reason})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise JobError(f"--from-file {name}, line {line}: not UTF-8 text") from None
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise JobError(f"--from-file {name}: no prompt in it")
    return tuple(prompt for prompt in prompts for _ in range(repeat))


def _bundled(task: str) -> Path:
    """The first of the bundled models for a task that is there."""
    paths = [resource("models") / f"{name}.safetensors" for name in BUNDLED.get(task, ())]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"--model is missing: no bundled model can do {task}{_able(task)}; "
            "the README says where checkpoints are published"
        )
    return path


def _able(task: str) -> str:
    """The end of a message: which of the models that can be named would do."""
    names = []
    for path in (path for folder in model_folders() for path in _checkpoints(folder)):
        try:
            family = choose(read_header(path)).family
        except UsageError:
            continue
        if family.task in FITTING.get(task, (task,)):
            names.append(path.stem)
    return f"; these can: {', '.join(names[:5])}" if names else ", nor any under ./models"


def _matches(folder: Path, name: str) -> list[Path]:
    """The checkpoints in a folder tree whose path ends in a name; .safetensors before .ckpt."""
    *parents, last = Path(name).parts
    for suffix in SUFFIXES:
        tail = (*parents, f"{last}{suffix}")
        found = [path for path in _checkpoints(folder) if path.parts[-len(tail) :] == tail]
        direct = [path for path in found if path == folder.joinpath(*tail)]
        if found:
            return direct or found
    return []


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES[1:])


def _no_model(name: str) -> str:
    there = sorted({path.stem for folder in model_folders() for path in _checkpoints(folder)})
    hint = nearest(Path(name).name, there)
    known = f"; there are {', '.join(there[:10])}" if there else ""
    return f"--model {name}: no such file, nor under ./models or $LDM_MODELS{hint}{known}"


def _recorded(name: str | None, checkpoint: Path) -> str | None:
    """What a record says of the checkpoint: the name or path as it was given."""
    if name is None:
        packaged = checkpoint.parent == resource("models")
        return checkpoint.stem if packaged else checkpoint.as_posix()
    return _short(name)


def _short(name: str | None) -> str | None:
    """A path that tells no one's home folder."""
    if name is None or not Path(name).is_absolute():
        return name
    home = Path.home()
    if home == Path(home.anchor) or not Path(name).is_relative_to(home):
        return name
    return f"~/{Path(name).relative_to(home).as_posix()}"


# --- fit ------------------------------------------------------------------------------------------


def check_task(task: str, choice: Choice) -> None:
    """Raise JobError where the model cannot do the task."""
    family = choice.family
    if family.task not in FITTING.get(task, (task,)):
        raise JobError(
            f"{family.title} is a model for {family.task}, not for {task}; "
            f"use another --model{_able(task)}"
        )


def check_model(job: Job, choice: Choice) -> None:
    """Raise JobError where the model cannot do the size, or --C or --f contradict it."""
    factor, multiple = size_rule(choice.config)
    sides = () if job.task in PICTURED else (("--width", job.width), ("--height", job.height))
    for flag, value in sides:
        if value is not None and value % multiple:
            near = max(multiple, round(value / multiple) * multiple)
            raise JobError(f"{flag} must be a multiple of {multiple} here, not {value}; try {near}")
    if job.factor not in (None, factor):
        raise JobError(f"--f {job.factor}: this model has {factor} pixels per latent position")
    channels = _part(choice.config, "first_stage_config", "params").get("embed_dim")
    if job.channels is not None and job.channels != channels:
        raise JobError(f"--C {job.channels}: this model's latents have {channels} channels")


def _measured(job: Job, choice: Choice) -> Job:
    """The job with the size of the picture that comes out; its files are read and tried."""
    from ldm.sources import read_sources  # numpy, which an error in a flag need not wait for

    width, height = read_sources(job, size_rule(choice.config)[1]).size
    return replace(job, width=width, height=height)


def size_rule(config: Config) -> tuple[int, int]:
    """Pixels per latent position of a YAML's autoencoder, and what sides must be a multiple of.

    The network halves its input once per level but the last.
    """
    ddconfig = _part(config, "first_stage_config", "params", "ddconfig")
    multipliers = ddconfig.get("ch_mult") or (1, 2, 4, 8)
    levels = _part(config, "unet_config", "params").get("channel_mult") or (1, 2, 4, 8)
    factor = 2 ** (len(multipliers) - 1)
    return factor, factor * 2 ** (len(levels) - 1)


def _part(config: Config, *keys: str) -> dict[str, Any]:
    """A section below model.params; what is missing or malformed is left to the registry to say."""
    tree: Any = config.tree
    for key in ("model", "params", *keys):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def explain(plan: Plan, *, as_json: bool) -> str:
    """What would apply and why, a field a line."""
    rows: dict[str, tuple[Any, str]] = {
        "checkpoint": (str(plan.header.path), ""),
        "yaml": (plan.choice.config.source, plan.choice.why),
        "family": (plan.choice.family.name, plan.choice.family.title),
        "predicts": (plan.choice.family.prediction, plan.choice.prediction_why),
    }
    for name, value in vars(plan.job).items():
        if value is not None and value != () and name not in ("skip_draws", "draw_rows"):
            rows[name] = (value, plan.why.get(name, ""))
    if as_json:
        return json.dumps({name: {"value": v, "why": w} for name, (v, w) in rows.items()})
    shown = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, (value, _) in rows.items()
    }
    width = max(len(text) for text in shown.values() if len(text) < 40)
    return "\n".join(f"{n:16} {shown[n]:{width}}  {w}".rstrip() for n, (_, w) in rows.items())
