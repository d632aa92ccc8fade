"""An auxiliary loss for a network in training: predict the layout of the image.

From the image loss alone, a network hardly learns that the words for an object belong to a place;
it generates a mixture of all named objects everywhere. Predicting the kind of object in every cell,
from the features that have just attended to the text, teaches it soon.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.nn.attention import SpatialTransformer
from ldm.nn.unet import UNetModel


class LayoutLoss(nn.Module):
    """Cross entropy of the kind of object in each cell, predicted from a network's own features.

    The features are those of the last attention to the text. Raises ConfigError for a network
    without any.
    """

    def __init__(self, network: UNetModel, kinds: int) -> None:
        super().__init__()
        asked = [m for m in network.output_blocks.modules() if isinstance(m, SpatialTransformer)]
        if not asked:
            raise ConfigError("train.layout_weight: the network does not attend to text; omit it")
        self.seen: Tensor | None = None
        asked[-1].register_forward_hook(self._see)
        self.head = nn.Conv2d(asked[-1].norm.num_channels, kinds, 1)

    def _see(self, _: nn.Module, __: tuple[Tensor, ...], features: Tensor) -> None:
        self.seen = features

    def forward(self, layout: Tensor) -> Tensor:
        """layout [B,h,w], at the resolution of the network's latest features, or a finer one."""
        assert self.seen is not None
        logits, self.seen = self.head(self.seen), None
        step = layout.shape[-1] // logits.shape[-1]
        middles = layout[:, step // 2 :: step, step // 2 :: step]
        return F.cross_entropy(logits.float(), middles.long())
