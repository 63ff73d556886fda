"""The decoder, in the order of the document: embed, add positions, N layers, linear.

The softmax that follows belongs to `model/sampling`. Knows nothing of caches, batches or sequences:
rows in, rows out. Where the rows of one sequence meet is `attend` (see attention.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from model.attention import Attend, MaskedMultiHeadAttention
from model.config import DecoderConfig
from model.embeddings import POSITIONS, TokenEmbedding
from model.feed_forward import FeedForward
from model.linear import Linear
from model.norms import ADD_AND_NORM, make_norm


class DecoderLayer(nn.Module):
    """Masked multi-head attention, Add & Norm, position-wise feed-forward, a second Add & Norm."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.attention = MaskedMultiHeadAttention(config, index)
        self.attention_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = make_norm(config)
        self.add_and_norm = ADD_AND_NORM[config.norm_placement]

    def forward(self, x: Tensor, rotate: Callable[[Tensor], Tensor], attend: Attend) -> Tensor:
        """x: [num_tokens, hidden_size] -> the same shape."""
        attention = partial(self.attention, rotate=rotate, attend=attend)
        x = self.add_and_norm(x, attention, self.attention_norm)
        return self.add_and_norm(x, self.feed_forward, self.feed_forward_norm)


class Decoder(nn.Module):
    """The whole stack. Its parameters' names are those of the embedded model's checkpoint."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config.vocab_size, config.hidden_size, config.embedding_scale)
        self.positions = POSITIONS[config.positions](config)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_layers))
        # Post-norm ends every layer with a norm; pre-norm leaves the last one's output without.
        self.final_norm = make_norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.output = Linear(config.hidden_size, config.vocab_size, has_bias=False)
        if config.is_output_tied:
            self.output.weight = self.embedding.weight

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Everything up to the last linear layer.

        token_ids, positions: [num_tokens], integers -> [num_tokens, hidden_size].
        """
        x: Tensor = self.embedding(token_ids)
        x = self.positions.add(x, positions)
        rotate = partial(self.positions.rotate, positions=positions)
        for layer in self.layers:
            x = layer(x, rotate, attend)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """The last linear layer. x: [num_rows, hidden_size] -> [num_rows, vocab_size], float32."""
        logits: Tensor = self.output(self.final_norm(x))
        return logits.float()

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The logits after each position: [num_tokens] -> [num_tokens, vocab_size], float32."""
        return self.logits(self.hidden(token_ids, positions, attend))


def build_empty(config: DecoderConfig) -> Decoder:
    """A decoder whose parameters have shapes but no memory yet: the loader, or a recipe, fills them in."""
    with torch.device("meta"):
        return Decoder(config)
