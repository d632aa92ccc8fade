"""The hint for an image that is generated over with the seed that it was made from."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ldm.errors import LdmError
from ldm.images.texts import read_texts
from ldm.jobs.fields import PARTIAL
from ldm.jobs.job import Job
from ldm.jobs.metadata import Record, parse_infotext

_MOST_BATCHES = 1000  # that are searched for the seed


def same_noise(job: Job) -> list[str]:
    """A note where a resolved job puts the noise on its image that the image was made from.

    The same noise twice adds up: shapes sharpen into artefacts, colours burn.
    """
    if job.task not in PARTIAL or not job.strength or job.init_img is None:
        return []
    seed = recorded_seed(Path(job.init_img))
    batches = islice(job.batches(), _MOST_BATCHES)
    if seed is None or not any(seed in batch.image_seeds() for batch in batches):
        return []
    return [
        f"{job.init_img} was made from seed {seed}, too: the same noise again distorts an image; "
        "use another --seed"
    ]


def recorded_seed(path: Path) -> int | None:
    """The seed in an image's own record or `parameters` text; None where there is none."""
    try:
        texts = read_texts(path)
        if "ldm" in texts:
            record = Record.from_json(texts["ldm"])
            return record.job.image_seeds()[record.row]
        return int(parse_infotext(texts.get("parameters", "")).settings["Seed"])
    except (LdmError, KeyError, ValueError):
        return None
