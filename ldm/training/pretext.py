"""Pretraining of a text conditioner on the meaning of captions, without images.

If both are trained together from scratch, the network ignores the text for thousands of steps. So
the conditioner first learns to predict a scene's facts from its caption, and the glyph at every
place of the image; that takes minutes. The heads are discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.model import TextEmbedder
from ldm.nn.attention import CrossAttention
from ldm.training.glyphs import GLYPHS
from ldm.training.scenes import FACT_SIZES, Scene, facts, glyph_layout

BATCH = 128
LEARNING_RATE = 1e-3
CELLS = 8  # per side, as many as where the bundled network attends to the text
HEADS = 4


class LayoutHead(nn.Module):
    """Predicts the glyph that covers each cell of a scene, by attention from the cell to the text.

    A network attends to the text in the same way, so the words for a glyph learn its place.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, CELLS * CELLS, width))
        self.attention = CrossAttention(width, width, HEADS, width // HEADS)
        self.out = nn.Linear(width, len(GLYPHS) + 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [B,L,D] -> logits [B, cells, glyphs + 1]."""
        logits: Tensor = self.out(self.attention(self.places.expand(len(hidden), -1, -1), hidden))
        return logits


def teach(embedder: TextEmbedder, scene: Callable[[int], Scene], steps: int, seed: int) -> float:
    """Train a conditioner to predict the facts of scenes 0, 1, 2, ... from their captions.

    Returns the last loss, in nats summed over the facts and the layout. Captions may omit facts, so
    it does not reach zero.
    """
    from tqdm import trange

    torch.manual_seed(seed)
    width = embedder.encode([""])[0].shape[-1]
    heads = nn.ModuleList(nn.Linear(width, size) for size in FACT_SIZES)
    layout_head = LayoutHead(width)
    all_heads = nn.ModuleList([heads, layout_head]).to(next(embedder.parameters()).device)
    weights = [*embedder.parameters(), *all_heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    loss = torch.zeros(())
    for step in (bar := trange(steps, desc="captions", disable=None)):
        scenes = [scene(step * BATCH + row) for row in range(BATCH)]
        hidden, _ = embedder.encode([what.caption for what in scenes])
        loss = _fact_loss(heads, hidden, scenes) + _layout_loss(layout_head, hidden, scenes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return loss.item()


def _fact_loss(heads: nn.ModuleList, hidden: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Cross entropy of the facts as predicted from the mean of all positions, and from the last.

    The mean is what attention sees before it has learnt where to look.
    """
    targets = torch.tensor([facts(what) for what in scenes], device=hidden.device)
    loss = hidden.new_zeros(())
    for column, head in enumerate(heads):
        for summary in (hidden.mean(dim=1), hidden[:, -1]):
            loss = loss + F.cross_entropy(head(summary), targets[:, column]) / 2
    return loss


def _layout_loss(head: LayoutHead, hidden: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Cross entropy of the glyph in each cell, averaged over cells."""
    layouts = np.stack([glyph_layout(what, CELLS) for what in scenes])
    targets = torch.from_numpy(layouts).flatten(1).to(hidden.device)
    return F.cross_entropy(head(hidden).transpose(1, 2), targets)
