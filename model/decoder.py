"""The decoder, in the order of the document: embed, add positions, N layers, linear.

The softmax that follows belongs to `model/sampling`. Knows nothing of caches, batches or sequences:
rows in, rows out. Where the rows of one sequence meet is `attend` (see attention.py).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from model.attention import Attend, MaskedMultiHeadAttention, softcap
from model.config import DecoderConfig
from model.embeddings import POSITIONS, Rotate, TokenEmbedding
from model.feed_forward import FeedForward
from model.kernels.library import Kernels
from model.linear import Linear
from model.machine import settle_library
from model.mixture_of_experts import MixtureOfExperts
from model.norms import (
    Add,
    add_and_norm_post,
    add_and_norm_pre,
    make_input_norm,
    make_norm,
    make_output_norm,
)


class DecoderLayer(nn.Module):
    """Masked multi-head attention, Add & Norm, position-wise feed-forward, a second Add & Norm."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.attention = MaskedMultiHeadAttention(config, index)
        self.attention_norm = make_input_norm(config)
        self.attention_output_norm = make_output_norm(config)
        experts = config.experts_of(index)
        self.feed_forward = MixtureOfExperts(config, experts) if experts else FeedForward(config)
        self.feed_forward_norm = self.attention_norm if config.is_norm_shared else make_input_norm(config)
        self.feed_forward_output_norm = make_output_norm(config)
        self.add = Add(config)
        self.add_and_norm = add_and_norm_post if config.norm_placement == "post" else add_and_norm_pre
        self.is_parallel = config.is_parallel

    def forward(self, x: Tensor, rotate: Rotate, attend: Attend) -> Tensor:
        """x: [num_tokens, hidden_size] -> the same shape."""
        attention = partial(self.attention, rotate=rotate, attend=attend)
        attended = self.add_and_norm(x, attention, self.attention_norm, self.attention_output_norm, self.add)
        if self.is_parallel:  # both sub-layers see x (Wang & Komatsuzaki 2021)
            fed = self.feed_forward_output_norm(self.feed_forward(self.feed_forward_norm(x)))
            joined: Tensor = self.add(attended, fed)
            return joined
        return self.add_and_norm(
            attended, self.feed_forward, self.feed_forward_norm, self.feed_forward_output_norm, self.add
        )


class Decoder(nn.Module):
    """The whole stack. Its parameters' names are those of the embedded model's checkpoint."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        settle_library()
        self.config = config
        self.kernels: Kernels | None = None
        self.embedding = TokenEmbedding(config)
        self.positions = POSITIONS[config.positions](config)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_layers))
        # Post-norm ends every layer with a norm; pre-norm leaves the last one's output without.
        self.final_norm = nn.Identity() if config.norm_placement == "post" else make_norm(config)
        size = config.embedding_size or config.hidden_size
        is_narrow = config.embedding_size is not None
        self.output_projection = Linear(config.hidden_size, size, False) if is_narrow else nn.Identity()
        self.output = Linear(size, config.vocab_size, config.has_output_bias)
        if config.is_output_tied:
            self.output.weight = self.embedding.weight

    def use(self, kernels: Kernels | None) -> None:
        """Compute with these where they have something for a module; with None, in plain torch."""
        for module in self.modules():
            if hasattr(module, "kernels"):
                setattr(module, "kernels", kernels)  # noqa: B010  # which nn.Module is not known to have

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """What enters the first layer. token_ids, positions: [num_tokens] -> [num_tokens, hidden_size]."""
        return self.positions.add(self.embedding(token_ids), positions)

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Everything up to the last linear layer.

        token_ids, positions: [num_tokens], integers -> [num_tokens, hidden_size].
        """
        x = self.embed(token_ids, positions)
        rotations = self.positions.rotations(positions)
        for layer, rotate in zip(self.layers, rotations, strict=True):
            x = layer(x, rotate, attend)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """The last linear layer. x: [num_rows, hidden_size] -> [num_rows, vocab_size], float32."""
        logits: Tensor = self.output(self.output_projection(self.final_norm(x))).float()
        if self.config.logits_scale != 1.0:
            logits = logits * self.config.logits_scale
        return logits if self.config.logits_softcap is None else softcap(logits, self.config.logits_softcap)

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The logits after each position: [num_tokens] -> [num_tokens, vocab_size], float32."""
        return self.logits(self.hidden(token_ids, positions, attend))


def build_empty(config: DecoderConfig) -> Decoder:
    """A decoder whose parameters have shapes but no memory yet: the loader, or a recipe, fills them in."""
    with torch.device("meta"):
        return Decoder(config)
