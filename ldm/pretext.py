"""A text conditioner's first lessons: what captions say, before there are pictures to go by.

Learnt together from nothing, a network finds no sense in the text for thousands of steps. So the
conditioner first learns to tell a scene's facts from its caption, which costs a minute; the
heads that tell them are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data import FACT_SIZES, Scene, facts
from ldm.model import TextEmbedder

BATCH = 128
LEARNING_RATE = 1e-3


def teach(embedder: TextEmbedder, scene: Callable[[int], Scene], steps: int, seed: int) -> float:
    """Train a conditioner to tell the facts of scenes 0, 1, 2, ... from their captions.

    Gives the last loss, in nats summed over the facts. A caption may leave facts out, so that it
    does not go to zero.
    """
    from tqdm import trange

    torch.manual_seed(seed)
    width = embedder.encode([""])[0].shape[-1]
    heads = nn.ModuleList(nn.Linear(width, size) for size in FACT_SIZES)
    heads.to(next(embedder.parameters()).device)
    weights = [*embedder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    loss = torch.zeros(())
    for step in (bar := trange(steps, desc="captions", disable=None)):
        scenes = [scene(step * BATCH + row) for row in range(BATCH)]
        loss = _loss(embedder, heads, scenes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return loss.item()


def _loss(embedder: TextEmbedder, heads: nn.ModuleList, scenes: Sequence[Scene]) -> Tensor:
    """Cross entropy of the facts as told by the mean of all places, and by the last one.

    The mean is what attention sees before it has learnt where to look.
    """
    hidden, _ = embedder.encode([what.caption for what in scenes])
    targets = torch.tensor([facts(what) for what in scenes], device=hidden.device)
    loss = hidden.new_zeros(())
    for column, head in enumerate(heads):
        for seen in (hidden.mean(dim=1), hidden[:, -1]):
            loss = loss + F.cross_entropy(head(seen), targets[:, column]) / 2
    return loss
