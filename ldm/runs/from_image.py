"""The settings inside an image, of `ldm` or of another program, as the fields of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoints.folders import model_files
from ldm.checkpoints.hashes import find_by_hash, is_hash_of
from ldm.checkpoints.locate import find_checkpoint
from ldm.errors import CheckpointError, ImageError
from ldm.images.texts import read_texts
from ldm.jobs.job import Job, to_record
from ldm.jobs.metadata import Record
from ldm.jobs.options import options_of
from ldm.jobs.programs import Settings, read_settings
from ldm.jobs.programs.settings import short

# What belongs to a value: where a flag replaces the value, the image's others go with it.
_TOGETHER: Mapping[str, tuple[str, ...]] = {
    "sampler": ("grid", "eta"),
    "model": ("config", "prediction"),
    "seeds": ("seed",),
    "prompt": ("prompts",),
}
_NEEDED = ("prompt", "seed", "steps", "sampler")


@dataclass(frozen=True)
class Origin:
    """What is known of how an image was made.

    `texts` are all texts of the file by key. `record` is ours, `settings` another program's; both
    are None in an image that says nothing.
    """

    texts: Mapping[str, str]
    record: Record | None = None
    settings: Settings | None = None


def read_origin(path: Path) -> Origin:
    """Read how an image was made; pixels are decoded only where the file has no such text.

    Raises ImageError for a file that is damaged, or whose texts are.
    """
    texts = read_texts(path)
    try:
        if "ldm" in texts:
            return Origin(texts, record=Record.from_json(texts["ldm"]))
        settings = read_settings(texts)
        if settings is None:
            from ldm.images.hidden import hidden_texts

            hidden = hidden_texts(path)
            texts = {**texts, **hidden}
            settings = read_settings(hidden)
    except ImageError as error:
        named = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
        raise ImageError(named) from None
    return Origin(texts, settings=settings)


def fields_from_image(
    name: str, task: str, given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The fields of a job for the settings inside an image, and notes on what is not honoured.

    `given` are the user's own, which replace the image's; only the rest is returned. Raises
    ImageError for an image that says nothing, CheckpointError where its model is not at hand.
    """
    path = Path(name)
    origin = read_origin(path)
    if origin.record is not None:
        fields, notes = _of_record(origin.record)
        model, digest = origin.record.model, origin.record.hash
        named = fields.pop("model", model)
    elif origin.settings is not None:
        fields, notes = _of_settings(origin.settings)
        model, digest = origin.settings.model, origin.settings.hash
        named = model
    else:
        raise ImageError(f"{path}: contains no settings; no program wrote how it was made")
    fields, more = _fitting(fields, task)
    replaced = {*given, *(other for name in given for other in _TOGETHER.get(name, ()))}
    fields = {field: value for field, value in fields.items() if field not in replaced}
    if "model" not in given and (named or digest):
        fields["model"] = _find_model(path, named, model, digest)
    elif "model" not in given:
        notes.append(f"{path} does not name its model")
    return fields, [*notes, *more]


def _of_record(record: Record) -> tuple[dict[str, Any], list[str]]:
    """The job of one image of a batch, or of the batch where its images are not independent."""
    job = record.job
    fields = to_record(job)
    notes = []
    if job.noise == "image" and not job.fixed_code:
        for name in ("prompts", "seeds", "seed_step", "n_samples", "n_iter"):
            fields.pop(name, None)
        fields["seed"] = job.image_seeds()[record.row]
        if job.texts()[record.row] or not job.classes:
            fields["prompt"] = job.texts()[record.row]
        if job.classes:
            fields.pop("prompt", None)
        if job.variation_seed is not None:
            fields["variation_seed"] = job.variation_seeds()[record.row]
    elif job.n_samples > 1:
        notes.append(
            f"the image is number {record.row + 1} of a batch of {job.n_samples} with one stream "
            "of random numbers; all of them are made"
        )
    defaults = vars(Job())
    # A record has the device that was used, and a list in place of a tuple.
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return {name: value for name, value in fields.items() if value != defaults[name]}, notes


def _of_settings(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    notes = [f"not honoured from {settings.program}: {entry}" for entry in settings.unused]
    missing = [name for name in _NEEDED if name not in settings.fields]
    if missing:
        notes.append(f"{settings.program} does not say: {', '.join(missing)}; ldm's own is used")
    return settings.job_fields(), notes


def _fitting(fields: Mapping[str, Any], task: str) -> tuple[dict[str, Any], list[str]]:
    """The fields that a command takes, and a note on those that it does not."""
    options = options_of(Job)
    fitting = {
        name: value
        for name, value in fields.items()
        if name != "task" and (options[name].fits(task) or not options[name].flags)
    }
    left = [
        f"{options[name].flags[0]} {short(value, 40)}"
        for name, value in fields.items()
        if name not in fitting and name != "task" and value not in ("", None)
    ]
    return fitting, [f"not for {task}: {', '.join(left)}"] if left else []


def _find_model(path: Path, named: str, model: str, digest: str) -> str:
    """The checkpoint of a name or a hash: the hash decides where there is one."""
    tail = named.replace("\\", "/")
    found: Path | None = None
    for name in dict.fromkeys((tail, Path(tail).name)) if tail else ():
        try:
            found = find_checkpoint(name)[0]
        except CheckpointError:
            continue
        if not digest or is_hash_of(digest, found):
            return name
    if digest:
        by_hash = find_by_hash(digest, [file.path for file in model_files()])
        if by_hash is not None:
            return str(by_hash)
    what = " and ".join(
        part for part in (model and f"model {model}", digest and f"hash {digest}") if part
    )
    other = f"; {found} has another hash" if found is not None else ""
    raise CheckpointError(
        f"{path}: made with {what}, and no file under ./models or $LDM_MODELS has it{other}; "
        "name a checkpoint with --model"
    )
