"""Masked multi-head attention. The only file that knows the mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from model.config import DecoderConfig
from model.embeddings import Rotate
from model.kv_cache import KVCache
from model.linear import Linear, padded
from model.norms import make_head_norm
from model.pairs import QUERY_TILE, PairGroup, PairLayout


class Attend(Protocol):
    """Where the rows of one sequence meet: scores, scale, mask, softmax, weighted sum, for all heads."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        """q: [num_tokens, num_heads, head_dim]; k, v: [num_tokens, num_kv_heads, head_dim] -> like q.

        sinks: [num_heads], one more score for each head, to which no value belongs.
        """
        ...


class MaskedMultiHeadAttention(nn.Module):
    """Projections to queries, keys and values; attention in every head; concatenation; Wo."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        query_size, key_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.wq = Linear(config.hidden_size, query_size, config.has_attention_bias)
        self.wk = Linear(config.hidden_size, key_size, config.has_attention_bias)
        self.wv = Linear(config.hidden_size, key_size, config.has_attention_bias)
        self.wo = Linear(query_size, config.hidden_size, config.has_attention_output_bias)
        self.q_norm = make_head_norm(config, config.num_heads)
        self.k_norm = make_head_norm(config, config.num_kv_heads)
        self.sinks = nn.Parameter(torch.empty(config.num_heads)) if config.has_attention_sinks else None

    def forward(self, x: Tensor, rotate: Rotate, attend: Attend) -> Tensor:
        """x: [num_tokens, hidden_size] -> the same shape."""
        q = rotate(self.q_norm(self._in_heads(self.wq(x))))  # [num_tokens, num_heads, head_dim]
        k = rotate(self.k_norm(self._in_heads(self.wk(x))))  # [num_tokens, num_kv_heads, head_dim]
        v = self._in_heads(self.wv(x))
        heads = attend(self.layer, q, k, v, self.sinks)  # [num_tokens, num_heads, head_dim]
        concatenated = heads.flatten(1)
        out: Tensor = self.wo(concatenated)
        return out

    def _in_heads(self, projected: Tensor) -> Tensor:
        """[num_tokens, heads * head_dim] -> [num_tokens, heads, head_dim]."""
        return torch.unflatten(projected, -1, (-1, self.head_dim))


class PagedAttention:
    """`Attend` for serving: one step of many sequences, each against its own keys in the cache.

    softmax(Q K^T / sqrt(d_k) + mask) V, where the softmax's sums run over key tiles in the order of
    their positions: within each tile by its own maximum, then all tiles brought to the common one
    (Milakov & Gimelshein 2018; Dao et al. 2022). Computed in float32 whatever the cache's dtype.
    """

    def __init__(self, layout: PairLayout, cache: KVCache, config: DecoderConfig) -> None:
        """layout: of the step, for the windows of the decoder's layers."""
        self.layout = layout
        self.cache = cache
        self.config = config
        self.group_size = config.num_heads // config.num_kv_heads
        self.masks: dict[int | None, list[_Mask]] = {}
        self.slopes = None
        if config.alibi_slopes:
            slopes = torch.tensor(config.alibi_slopes, device=layout.slots.device)
            self.slopes = self._by_kv_head(slopes)  # [num_kv_heads, 1, group_size, 1]
        self.mask()

    def mask(self) -> None:
        """Compute the masks, again if what the layout's tensors hold has changed."""
        self.masks = {
            window: [_Mask(group, self.group_size, window, self.layout.is_fixed) for group in groups]
            for window, groups in self.layout.groups.items()
        }

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        """Writes k and v to the cache, then looks up each row of q."""
        self.cache.write(layer, self.layout.slots, k, v)
        head_dim = q.shape[-1]
        q = padded(q.float() * self.config.score_scale)
        if sinks is not None:  # [num_kv_heads, 1, QUERY_TILE * group_size, 1]
            sinks = self._by_kv_head(sinks.float()).repeat(1, 1, QUERY_TILE, 1)
        out = torch.empty_like(q)
        window = self.config.layer_windows[layer]
        for group, mask in zip(self.layout.groups[window], self.masks[window], strict=True):
            out.index_copy_(0, group.out_rows, self._attend_group(layer, q, group, mask, sinks))
        return out[..., :head_dim].to(v.dtype)

    def _attend_group(
        self, layer: int, q: Tensor, group: PairGroup, mask: _Mask, sinks: Tensor | None
    ) -> Tensor:
        """The rows of one group: [len(group.out_rows), num_heads, head_dim]."""
        tiles = torch.unflatten(q[group.rows], 2, (-1, self.group_size))
        # [num_kv_heads, num_query_tiles, QUERY_TILE * group_size, head_dim]
        tiles = tiles.permute(2, 0, 1, 3, 4).flatten(2, 3)
        queries = tiles.index_select(1, group.pair_query)  # [num_kv_heads, num_pairs, ...]
        keys, values = self.cache.read_tiles(layer, group.pair_blocks)
        mask.clear_unseen(values)

        # Dot products (q is scaled already), mask, softmax (its division comes last), weighted sum of V.
        scores = self._adjusted(_batched_product(queries, keys.transpose(-1, -2)), group)
        scores.masked_fill_(mask.is_hidden, torch.finfo(scores.dtype).min)
        largest = scores.amax(-1, keepdim=True)  # of each row in each pair
        weights = torch.exp(scores - largest)
        sums = weights.sum(-1, keepdim=True)
        weighted = _batched_product(weights, values)

        common = _merge(torch.maximum, largest, group.num_reaching)
        rescale = torch.exp(largest - common.index_select(1, group.pair_query))
        weighted = _merge(torch.add, weighted * rescale, group.num_reaching)
        sums = _merge(torch.add, sums * rescale, group.num_reaching)
        if sinks is not None:
            sums = sums + torch.exp(sinks - common)
        heads = torch.unflatten(weighted / sums, 2, (-1, self.group_size))
        rows = heads.permute(1, 2, 0, 3, 4).reshape(-1, *q.shape[1:])
        return rows.index_select(0, group.out_places)

    def _adjusted(self, scores: Tensor, group: PairGroup) -> Tensor:
        """The scores, capped, and with ALiBi's bias (Press et al. 2021), where a decoder has these.

        scores: [num_kv_heads, num_pairs, QUERY_TILE * group_size, KEY_TILE]. What grows with the key's
        position falls with its distance: softmax sees only differences within a row.
        """
        if self.config.attention_softcap is not None:
            scores = softcap(scores, self.config.attention_softcap)
        if self.slopes is not None:
            keys = group.key_positions()[:, None, :].float()
            if self.config.is_alibi_rounded:
                bias = (self.slopes * keys.bfloat16()).bfloat16().float() * self.config.score_scale
            else:
                bias = self.slopes * keys  # [num_kv_heads, num_pairs, group_size, KEY_TILE]
            torch.unflatten(scores, 2, (QUERY_TILE, -1)).add_(bias.unsqueeze(2))
        return scores

    def _by_kv_head(self, of_heads: Tensor) -> Tensor:
        """[num_heads] -> [num_kv_heads, 1, group_size, 1]."""
        return of_heads.view(-1, 1, self.group_size, 1)


def softcap(scores: Tensor, cap: float) -> Tensor:
    """Scores bent to lie between -cap and cap (Bello et al. 2016)."""
    return cap * torch.tanh(scores / cap)


class _Mask:
    """No position sees a later one, nor one before its window: the keys hidden from each row of each pair."""

    def __init__(self, group: PairGroup, group_size: int, window: int | None, is_fixed: bool) -> None:
        keys = group.key_positions()[:, None, :]
        queries = group.query_positions[group.pair_query][:, :, None]
        hidden = keys > queries  # [num_pairs, QUERY_TILE, KEY_TILE]
        if window is not None:
            hidden |= keys <= queries - window
        self.is_hidden = hidden.repeat_interleave(group_size, 1)
        self._is_unseen = hidden.all(1)  # [num_pairs, KEY_TILE]
        # They are few, but how many depends on the step.
        self._unseen_keys = None if is_fixed else self._is_unseen.flatten().nonzero().squeeze(1)

    def clear_unseen(self, values: Tensor) -> None:
        """Keys that no row sees may be left from another sequence: 0 * NaN would carry its NaN over.

        values: [num_kv_heads, num_pairs, KEY_TILE, head_dim], changed in place.
        """
        if self._unseen_keys is None:
            values.masked_fill_(self._is_unseen.unsqueeze(-1), 0.0)
        else:
            values.flatten(1, 2).index_fill_(1, self._unseen_keys, 0.0)


def _batched_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b over two leading dimensions, as one batch of equal products: [h, p, n, k] x [h, p, k, m]."""
    return torch.unflatten(torch.bmm(a.flatten(0, 1), b.flatten(0, 1)), 0, a.shape[:2])


def _merge(combine: Callable[[Tensor, Tensor], Tensor], pairs: Tensor, num_reaching: list[int]) -> Tensor:
    """Combine each query tile's pairs over its key tiles, in the order of their positions.

    pairs: [num_kv_heads, num_pairs, ...] -> [num_kv_heads, num_query_tiles, ...].
    """
    first, *others = torch.split(pairs, num_reaching, 1)
    if combine is torch.add:
        first = first + 0.0  # -0.0 becomes 0.0, or adding a hidden tile's 0.0 would change its sign
    if not others:
        return first
    merged = first.clone()
    for part in others:
        reached = merged[:, : part.shape[1]]
        reached.copy_(combine(reached, part))
    return merged


class WholeSequences:
    """`Attend` for training: whole sequences of one length, no cache. softmax(Q K^T / sqrt(d_k) + mask) V.

    The document's attention alone: no windows, caps, biases, sinks or other scales.
    """

    def __init__(self, num_sequences: int, length: int, device: torch.device) -> None:
        self.num_sequences = num_sequences
        self.mask = torch.full((length, length), -torch.inf, device=device).triu(1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        """Rows are ordered by sequence, then by position."""
        k, v = (rows.repeat_interleave(q.shape[1] // rows.shape[1], 1) for rows in (k, v))
        q, k, v = (
            torch.unflatten(rows, 0, (self.num_sequences, -1)).transpose(1, 2) for rows in (q, k, v)
        )  # [num_sequences, num_heads, length, head_dim]
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2) + self.mask.to(q.dtype)
        weights = torch.softmax(scores, -1, dtype=scores.dtype)
        return (weights @ v).transpose(1, 2).flatten(0, 1)
