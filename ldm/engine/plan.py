"""From a request to a plan: the files, the family, its defaults; without torch.

All errors of a request are found here, before weights are read.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm.checkpoints.components import settings_of
from ldm.checkpoints.config import resource
from ldm.checkpoints.families import FAMILIES
from ldm.checkpoints.families.choice import NOTHING, Choice, is_flow, with_prediction
from ldm.checkpoints.locate import (
    chosen,
    find_checkpoint,
    find_config,
)
from ldm.checkpoints.sgm import is_sgm, zeros_for_no_text
from ldm.checkpoints.weights.header import Header
from ldm.engine.advice import notes_about
from ldm.engine.fit import (
    check_components,
    check_loras,
    check_model,
    check_parts,
    check_task,
    model_section,
    most_noise,
    whole_number,
    with_sizes,
)
from ldm.engine.flow_fit import check_flow
from ldm.engine.same_noise import same_noise
from ldm.errors import CheckpointError, JobError
from ldm.jobs.fields import CONDITIONED, IMAGE_TASKS, PROMPTED
from ldm.jobs.files import read_text
from ldm.jobs.imagenet import CLASSES, class_number
from ldm.jobs.job import Defaults, Job
from ldm.jobs.legacy import SCRIPT_CHECKPOINTS, SCRIPT_DEFAULTS
from ldm.jobs.loras import split_tags
from ldm.jobs.noise_options import noise_notes
from ldm.jobs.sampler_names import with_our_names
from ldm.text.bounds import check_weights
from ldm.text.hints import hints


@dataclass(frozen=True)
class Plan:
    """A job without gaps, the checkpoint and YAML to run it with, and a reason for each value.

    `choice` has no `prediction_why` if only a measurement of the network can decide eps or v;
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
    """Plan the given fields; raises UsageError for a request that cannot be fulfilled.

    `script` takes the defaults of the original scripts where nothing is given.
    """
    given = with_our_names(given)
    asked = Job(**given)
    asked.validate()
    if asked.mask_blur and given.get("feather"):
        raise JobError("--mask-blur and --feather exclude each other; give one of them")
    if asked.classes:
        asked = replace(asked, classes=tuple(class_number(name) for name in asked.classes))
    if asked.attention == "xformers" and importlib.util.find_spec("xformers") is None:
        raise JobError(
            "--attention xformers: the package is not installed; "
            "pip install 'ldm-cli[xformers]', or use --attention sdpa"
        )
    checkpoint, notes = find_checkpoint(asked.model, asked.task, script=script)
    if script and asked.model is None and asked.task == "inpaint" and asked.prompt is None:
        _check_usual(checkpoint)
    config, config_notes = find_config(asked.config)
    header, choice = chosen(checkpoint, config, settings_of(asked))
    if asked.prediction is not None:
        choice = with_prediction(choice, asked.prediction, "asked for")
    if script:
        asked = Job(**{**script_defaults(asked.task, choice), **given})
    if asked.prompts:
        asked = replace(asked, prompt=None)
    asked = replace(asked, model=_recorded(asked.model, checkpoint), config=_short(asked.config))
    check_task(asked.task, choice)
    _check_vocabulary(header, choice)
    plan = Plan(asked, asked, {}, header, config, choice, (*notes, *config_notes))
    plan = resolve(plan, choice.family.defaults, given, script=script)
    plan = _fitted(plan, script=script)
    ignored = [flag for name, flag in _TEXTS.items() if getattr(asked, name)]
    if ignored and _is_textless(choice) and asked.task in PROMPTED:
        note = f"this model takes no text: {' and '.join(ignored)} will do nothing"
        plan = replace(plan, notes=(*plan.notes, note))
    prompts = (asked.prompt or "", *asked.prompts)
    texts = (*prompts, asked.negative, asked.prompt_2 or "", asked.negative_2 or "")
    for text in texts:
        check_weights(split_tags(text, asked.prompt_syntax)[0], asked.prompt_syntax)
    found = {hint: None for text in prompts for hint in hints(text, asked.prompt_syntax)}
    return replace(plan, notes=(*plan.notes, *found), given=given)


def _fitted(plan: Plan, *, script: bool) -> Plan:
    """A plan with the sizes and the LoRA files for its model, and notes about how they fit.

    Raises JobError and CheckpointError for what the model cannot do.
    """
    choice = plan.choice
    fit_notes = check_model(plan.job, choice, script=script)
    flow_notes = check_flow(plan.job, choice)
    check_components(plan.job, plan.header, choice)
    check_parts(plan.job, choice)
    files, lora_notes = check_loras(plan.job, choice)
    asked = replace(plan.asked, lora_files=files)
    job, size_notes = with_sizes(replace(plan.job, lora_files=files), choice)
    notes = (*fit_notes, *flow_notes, *lora_notes, *size_notes, *noise_notes(job))
    notes = (*notes, *notes_about(job, choice), *same_noise(job))
    return replace(plan, asked=asked, job=job, notes=(*plan.notes, *notes))


def _check_usual(checkpoint: Path) -> None:
    """Raise CheckpointError where it is another than a script without prompts was made for."""
    usual = Path(SCRIPT_CHECKPOINTS["inpaint"])
    if checkpoint != usual:
        raise CheckpointError(
            f"{usual}: no such file; put the checkpoint of latent diffusion's inpainting there, "
            "or name one with --ckpt"
        )


# What says something to a model that takes text.
_TEXTS = {
    "prompt": "--prompt",
    "prompts": "--from-file",
    "negative": "--negative",
    "prompt_2": "--prompt-2",
    "negative_2": "--negative-2",
    "scale": "--scale",
}


def resolve(
    plan: Plan,
    defaults: Defaults,
    given: Mapping[str, Any],
    *,
    script: bool = False,
    draw_seed: Callable[[], int] = lambda: secrets.randbelow(2**32),
) -> Plan:
    """Complete a plan's job with a family's defaults; the seed is drawn only once."""
    asked = plan.asked
    defaults = _for_task(defaults, asked, plan.choice)
    _check_subject(asked, plan.choice)
    if script and asked.task == "txt2img" and plan.choice.family.name in FAMILIES:
        scale = 9.0 if _is_v2(plan.choice) else 7.5
        defaults = Defaults(512, 512, scale, 50, "ddim", "the original script")
    if plan.job.seed is not None and plan.job.seed >= 0:
        asked = replace(asked, seed=plan.job.seed)
    if plan.why:  # resolved before: a factor has become a size
        asked = replace(asked, hires=plan.job.hires, whole_size=plan.job.whole_size)
    resolved = asked.resolve(defaults, draw_seed)
    why = dict.fromkeys(vars(asked), "the original script" if script else "the default")
    why |= dict.fromkeys(given, "asked for") | resolved.why
    why |= {name: plan.why[name] for name in ("seed",) if name in plan.why}
    job = resolved.job
    if asked.task in IMAGE_TASKS and asked.inpaint_area != "masked":  # as measured, if they were
        job = replace(job, width=plan.job.width, height=plan.job.height)
    if asked.task in PROMPTED and _is_textless(plan.choice):
        job, why["scale"] = replace(job, scale=1.0), "the model takes no text"
    return replace(plan, asked=asked, job=job, why=why)


def script_defaults(task: str, choice: Choice) -> Mapping[str, Any]:
    """The defaults of the original script of a task, of the version that a checkpoint is for."""
    return SCRIPT_DEFAULTS[task][1 if _is_v2(choice) else 0]


def _is_v2(choice: Choice) -> bool:
    """Version 2 has the text encoder of OpenCLIP, whatever its size."""
    return not is_sgm(choice.config) and "OpenCLIP" in str(
        model_section(choice.config, "cond_stage_config").get("target", "")
    )


def _for_task(defaults: Defaults, asked: Job, choice: Choice) -> Defaults:
    """A family's defaults, with those of the originals' script for the task."""
    task = asked.task
    if task in CONDITIONED and is_sgm(choice.config):
        zeros = zeros_for_no_text(choice.config)
        defaults = replace(defaults, unconditional="zeros" if zeros else "encoded")
    if task == "img2img":
        newer = is_sgm(choice.config) or is_flow(choice.config)
        usual = defaults.strength if newer else 0.75
        return replace(defaults, strength=0.8 if _is_v2(choice) else usual)
    if task == "sample" and not asked.classes:
        return replace(defaults, eta=1.0)
    if task == "variations":  # the demo put noise on a mixture, and none on an image alone
        return replace(defaults, noise_level=50 if len(asked.images) > 1 else 0)
    own = {"inpaint": (1.0, 0), "depth2img": (0.9, 0), "upscale": (0.75, 20)}
    strength, level = own.get(task, (defaults.strength, 0))
    most = most_noise(task, choice.config)
    return replace(defaults, strength=strength, noise_level=min(level, most))


def _check_subject(asked: Job, choice: Choice) -> None:
    """Raise JobError if the prompt or class is missing, or the model does not take it."""
    target = _conditioner(choice)
    if asked.task == "sample":
        if target.endswith("ClassEmbedder") and not asked.classes:
            raise JobError("--class is missing: give the number or name of a class")
        if not target.endswith("ClassEmbedder"):
            _check_unconditional(asked)
            return
        table = whole_number(
            model_section(choice.config, "cond_stage_config", "params"), "n_classes", CLASSES
        )
        wrong = [name for name in asked.classes if not int(name) < table]
        if wrong:
            raise JobError(f"--class {wrong[0]}: this model has the classes 0 to {table - 1}")
        if table == CLASSES and asked.scale not in (None, 1):
            raise JobError("--scale: this model was not trained without a class; use --scale 1")
        return
    prompted = asked.prompt is not None or bool(asked.prompts)
    if not prompted and asked.task not in ("upscale", "variations") and not _is_textless(choice):
        raise JobError("--prompt is missing")


def _conditioner(choice: Choice) -> str:
    """The target of a model's conditioner, or the word that stands for one."""
    section = model_section(choice.config).get("cond_stage_config")
    return str(section.get("target") if isinstance(section, dict) else section)


def _is_textless(choice: Choice) -> bool:
    """Whether a model is shown an image alone."""
    target = _conditioner(choice)
    return target.startswith("__") or target == NOTHING


def _check_unconditional(asked: Job) -> None:
    """Raise JobError for options that an unconditional model does not take."""
    if asked.classes:
        raise JobError("--class: this model has no classes; omit --class")
    if asked.scale not in (None, 1):
        raise JobError(
            "--scale: this model has no text and no classes, so there is no guidance; omit --scale"
        )


def _check_vocabulary(header: Header, choice: Choice) -> None:
    """Raise CheckpointError where a model's text encoder lacks its vocabulary."""
    section = model_section(choice.config, "cond_stage_config")
    params = model_section(choice.config, "cond_stage_config", "params")
    if str(section.get("target")).endswith("BERTEmbedder") and params.get("use_tokenizer", True):
        from ldm.text.wordpiece import find_vocabulary

        find_vocabulary(header.path.parent, params.get("bert_vocab"))


# --- texts --------------------------------------------------------------------------------------


def read_prompts(name: str, repeat: int) -> tuple[str, ...]:
    """The prompts of a text file, a line each; blank lines are skipped. `-` is standard input."""
    prompts = [line for line in read_text(name).splitlines() if line.strip()]
    if not prompts:
        raise JobError(f"--from-file {name}: no prompt in it")
    return tuple(prompt for prompt in prompts for _ in range(repeat))


def _recorded(name: str | None, checkpoint: Path) -> str | None:
    """The checkpoint in the record: the name or path as given."""
    if name is None:
        packaged = checkpoint.parent == resource("models")
        return checkpoint.stem if packaged else checkpoint.as_posix()
    return _short(name)


def _short(name: str | None) -> str | None:
    """A path with ~ for the home folder, which keeps user names out of records."""
    if name is None or not Path(name).is_absolute():
        return name
    home = Path.home()
    if home == Path(home.anchor) or not Path(name).is_relative_to(home):
        return name
    return f"~/{Path(name).relative_to(home).as_posix()}"
