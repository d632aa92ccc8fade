"""A question beside the image, for a network in training: what is to be where?

The loss of the image alone hardly tells a network that the words for a thing belong to a place:
it learns to draw a mixture of all that is named, everywhere. Asked for the kind of thing in every
cell, of the features in which it has just attended to the text, it soon finds out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.nn.attention import SpatialTransformer
from ldm.nn.unet import UNetModel


class LayoutLoss(nn.Module):
    """Cross entropy of the kind of thing in each cell, told by a network's own features.

    They are those of the last place where the network attends to the text. Raises ConfigError for a
    network that never does.
    """

    def __init__(self, network: UNetModel, kinds: int) -> None:
        super().__init__()
        asked = [m for m in network.output_blocks.modules() if isinstance(m, SpatialTransformer)]
        if not asked:
            raise ConfigError("train.layout_weight: the network attends to no text; leave it out")
        self.seen: Tensor | None = None
        asked[-1].register_forward_hook(self._see)
        self.head = nn.Conv2d(asked[-1].norm.num_channels, kinds, 1)

    def _see(self, _: nn.Module, __: tuple[Tensor, ...], features: Tensor) -> None:
        self.seen = features

    def forward(self, layout: Tensor) -> Tensor:
        """layout [B,h,w], as fine as the features that the network has just had, or finer."""
        assert self.seen is not None
        logits, self.seen = self.head(self.seen), None
        step = layout.shape[-1] // logits.shape[-1]
        middles = layout[:, step // 2 :: step, step // 2 :: step]
        return F.cross_entropy(logits.float(), middles.long())
