"""The encoder of T5 v1.1 (arXiv 1910.10683, 2002.05202), as transformers builds it.

Keys are those of a t5xxl file: `encoder.embed_tokens`, `encoder.block` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.nn.clip_sizes import read_sizes
from ldm.nn.streaming import Streamed


@dataclass(frozen=True)
class T5Sizes:
    """Sizes of an encoder, with the field names of transformers' T5Config; by default T5-XXL's."""

    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    vocab_size: int = 32128
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"

    _INERT: ClassVar[frozenset[str]] = frozenset(
        {
            *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version"),
            *("num_decoder_layers", "dropout_rate", "initializer_factor", "is_encoder_decoder"),
            *("use_cache", "tie_word_embeddings", "pad_token_id", "eos_token_id", "output_past"),
            *("decoder_start_token_id", "classifier_dropout", "dense_act_fn", "is_gated_act"),
        }
    )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> T5Sizes:
        """Raises ConfigError for an unknown field, a wrong size, or another kind of T5."""
        sizes = read_sizes(cls, values, cls._INERT, "t5_config")
        if sizes.feed_forward_proj != "gated-gelu":
            raise ConfigError("t5_config.feed_forward_proj must be gated-gelu, as in T5 v1.1")
        return sizes


class T5Encoder(nn.Module):
    """Token ids [N,L] -> hidden states [N,L,d_model] after the final norm.

    Padding is seen like any token. The weights may stay in a file in its own precision: each block
    is brought to `dtype` only while it computes.
    """

    encoder: nn.Module

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        # seconds to import, which other models do without
        from transformers import T5Config, T5EncoderModel

        self.sizes = sizes
        config = T5Config(
            **asdict(sizes), dropout_rate=0.0, is_encoder_decoder=False, use_cache=False
        )
        self.encoder = T5EncoderModel(config).encoder
        self.dtype = torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        streamed = Streamed(self.encoder, ids.device, self.dtype)
        try:
            mask = torch.ones_like(ids)
            out: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            return out
        finally:
            streamed.end()
