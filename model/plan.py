"""What a model takes of memory, by arithmetic: weights, KV cache, the buffers of a step. No weights are read.

The runner takes exactly what is planned here, and `verbatim plan` shows it. Knows nothing of files.
"""

from __future__ import annotations

import torch

from model.config import DecoderConfig
from model.counting import count_weight_bytes
from model.cuda_graphs import decode_shapes
from model.decoder import Decoder
from model.folder import LoadError
from model.interface import MemoryPlan
from model.kernels.recording import recorded_bytes
from model.kv_cache import BLOCK_SIZE, KEY_TILE, KVCache, padded_size
from model.linear import ROW_BLOCK, Linear
from model.pairs import BLOCKS_PER_TILE, QUERY_TILE
from model.quantization import QuantizedLinear

# The keys that one group of attention's pairs works on: on a CPU they must stay in its cache
# (at 8 MB a step of 32 sequences took three times as long as at 2), on a GPU they fill it.
GROUP_KEY_BYTES = {"cpu": 2 * 2**20, "cuda": 128 * 2**20}

SHORTEST_CONTEXT = 64  # for which it is said how many sequences fit


def plan_memory(
    decoder: Decoder,
    dtype: torch.dtype,
    device_type: str,
    *,
    is_native: bool,
    kv_cache_tokens: int,
    max_batch_tokens: int,
    max_num_seqs: int,
    speculative_tokens: int,
    base_bytes: int,
    free_bytes: int,
) -> MemoryPlan:
    """Divide the memory that is free. `decoder` may be without weights; kv_cache_tokens 0 is what suits.

    is_native: whether native kernels compute. base_bytes is what the process holds already, and no part of
    free_bytes. Raises `LoadError` with the figures if it does not fit.
    """
    config = decoder.config
    weight_bytes = _weight_bytes(decoder, dtype)
    num_sampled = min(max_batch_tokens, max_num_seqs * (1 + speculative_tokens))
    attention = _native_attention if is_native else _paged_attention
    step_bytes = _step_bytes(
        config, dtype, is_native, max_batch_tokens, num_sampled,
        *attention(config, dtype, device_type, max_batch_tokens, max_num_seqs),
    )  # fmt: skip
    if device_type == "cuda":
        step_bytes += graph_bytes(decoder, dtype, max_num_seqs)
    if is_native:
        step_bytes += kernel_bytes(decoder, max_batch_tokens) + recorded_bytes(config, dtype)
    else:
        step_bytes += _decoding_bytes(decoder, max_batch_tokens)
    block_bytes = BLOCK_SIZE * KVCache.bytes_per_token(config, dtype)
    room = free_bytes - weight_bytes - step_bytes
    if kv_cache_tokens:
        num_blocks = _num_blocks(kv_cache_tokens)
        what = f"kv_cache_tokens is {kv_cache_tokens}, which takes"
    else:
        smallest = _num_blocks(min(config.max_positions, max_batch_tokens))
        wanted = max_num_seqs * _num_blocks(config.max_positions)
        # A cache that nobody asked for leaves half of the room to others.
        num_blocks = min(wanted, max(smallest, room // 2 // block_bytes))
        what = f"the smallest KV cache, {num_blocks * BLOCK_SIZE} tokens, takes"
    if num_blocks * block_bytes > room:
        raise LoadError(
            f"{what} {num_blocks * block_bytes:,} bytes; beside {weight_bytes:,} of weights and "
            f"{step_bytes:,} of a step's buffers, {max(0, room):,} of {free_bytes:,} free bytes are left"
        )
    return MemoryPlan(
        base_bytes=base_bytes,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=KVCache.bytes_per_token(config, dtype),
        kv_cache_tokens=num_blocks * BLOCK_SIZE,
        step_bytes=step_bytes,
        free_bytes=free_bytes,
        num_sequences=tuple(
            (context, num_blocks // _num_blocks(context)) for context in _contexts(config.max_positions)
        ),
    )


def kernel_bytes(decoder: Decoder, max_batch_tokens: int) -> int:
    """What the native kernels take themselves, beside tensors: the rows of the widest linear layer."""
    linears = (module for module in decoder.modules() if isinstance(module, Linear | QuantizedLinear))
    return max(module.kernel_bytes(max_batch_tokens) for module in linears)


def graph_bytes(decoder: Decoder, dtype: torch.dtype, max_num_seqs: int) -> int:
    """What CUDA graphs hold, at most: what the steps of each shape read, and a step's temporaries for all."""
    config = decoder.config
    shapes = decode_shapes(config, max_num_seqs, max_pairs(config, "cuda"))
    if not shapes:
        return 0
    attention = _paged_attention(config, dtype, "cuda", max_num_seqs, max_num_seqs)
    num_windows = len(set(config.layer_windows))
    read = sum(shape.num_pairs for shape in shapes) * (BLOCKS_PER_TILE + 2) * 8 * num_windows
    temporaries = _step_bytes(config, dtype, False, max_num_seqs, 0, *attention)
    return read + temporaries + _decoding_bytes(decoder, max_num_seqs)


def max_pairs(config: DecoderConfig, device_type: str) -> int:
    """How many of attention's pairs are computed in one go."""
    key_tile_bytes = config.num_kv_heads * KEY_TILE * config.head_dim * torch.float32.itemsize
    return max(1, GROUP_KEY_BYTES[device_type] // key_tile_bytes)


def _decoding_bytes(decoder: Decoder, num_rows: int) -> int:
    """What a quantized layer takes in plain torch beside its result, at most."""
    packed = (module for module in decoder.modules() if isinstance(module, QuantizedLinear))
    return max((module.temporary_bytes(num_rows) for module in packed), default=0)


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def _contexts(max_positions: int) -> list[int]:
    """Powers of two up to the longest context, and that itself."""
    powers = [2**n for n in range(max_positions.bit_length()) if SHORTEST_CONTEXT <= 2**n < max_positions]
    return [*powers, max_positions]


def _weight_bytes(decoder: Decoder, dtype: torch.dtype) -> int:
    """Parameters, shared ones once, and the tables that are computed, not stored."""
    return count_weight_bytes(decoder, dtype) + sum(buffer.nbytes for buffer in decoder.buffers())


def _feed_forward_row(config: DecoderConfig, layer: int, width: int, is_native: bool) -> int:
    """What one row takes within a feed-forward network, at most: all rows may choose the same expert."""
    single = torch.float32.itemsize
    if is_native:  # both halves if gated, and as clamped where they are; what comes of them
        inner = (2 + config.is_gated + 2 * (config.gate_limit is not None)) * width
    else:
        inner = 4 * single + width  # four float32 tensors within an activation, and the other half if gated
    experts = config.experts_of(layer)
    if experts is None:
        return config.feed_forward_size * inner
    size = max(experts.feed_forward_size, experts.shared_size or 0)
    # The row as its expert sees it, what it made of it, that in float32 and weighted, and the sum; the
    # router's shares as they are and sorted, with their numbers.
    return size * inner + config.hidden_size * (2 * width + 3 * single) + experts.num_experts * 24


def _paged_attention(
    config: DecoderConfig, dtype: torch.dtype, device_type: str, max_batch_tokens: int, max_num_seqs: int
) -> tuple[int, int]:
    """What attention in plain torch holds: (through the whole step, within a layer)."""
    width, single = dtype.itemsize, torch.float32.itemsize
    head_dim = padded_size(config.head_dim)
    heads, kv_heads = config.num_heads, config.num_kv_heads
    key_tiles = -(-config.max_positions // KEY_TILE)
    query_tiles = -(-max_batch_tokens // QUERY_TILE) + max_num_seqs  # each sequence's last tile may be short
    query_rows = QUERY_TILE * heads // kv_heads
    # Laid out for the whole step: each pair's mask, blocks and places.
    layout = query_tiles * key_tiles * (query_rows * KEY_TILE + (BLOCKS_PER_TILE + 2) * 8)
    layout *= len(set(config.layer_windows))
    # A group: keys and values in float32, one of them also as stored; of each pair its queries, and three of
    # its scores or weighted sums.
    pairs = min(max(max_pairs(config, device_type), key_tiles), query_tiles * key_tiles)
    stored = width if width < single else 0
    pair = kv_heads * (
        KEY_TILE * head_dim * (2 * single + stored) + 4 * query_rows * max(KEY_TILE, head_dim) * single
    )
    # Beside it q, k, v as projected, and q and the result in float32.
    projected = max_batch_tokens * head_dim * ((heads + 2 * kv_heads) * width + 2 * heads * single)
    return layout, projected + pairs * pair


def _native_attention(
    config: DecoderConfig, dtype: torch.dtype, device_type: str, max_batch_tokens: int, max_num_seqs: int
) -> tuple[int, int]:
    """What attention with the native kernels holds: (through the whole step, within a layer)."""
    tables = max_num_seqs * _num_blocks(config.max_positions) * 4
    # q, k, v, and q once more: before it was turned, or the result.
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return tables, max_batch_tokens * config.head_dim * heads * dtype.itemsize


def _step_bytes(
    config: DecoderConfig,
    dtype: torch.dtype,
    is_native: bool,
    max_batch_tokens: int,
    num_sampled: int,
    layout: int,
    attention: int,
) -> int:
    """The most that the temporaries of one step hold at a time.

    What lives through the step and through a layer, and the greatest of three moments: attention, the
    activation within the feed-forward network, the logits. Each counts the tensors alive then; float32 where
    it computes in it.
    """
    width, single = dtype.itemsize, torch.float32.itemsize
    rows = max_batch_tokens
    # x as the layer got it and as it is now, and what is added to it, in a parallel layer twice.
    stream = (4 if config.is_parallel else 3) * rows * config.hidden_size * width
    feed_forward = rows * max(
        _feed_forward_row(config, layer, width, is_native) for layer in range(config.num_layers)
    )
    # Of each sampled row, guesses included, as computed and in float32; or of a block of a prompt's rows,
    # while the block before it is still held in float32. And one row's sums in float64.
    of_row = single if width == single else width + single
    logits = config.vocab_size * (max(num_sampled * of_row, ROW_BLOCK * (of_row + single)) + 8 * 8)
    return layout + stream + max(attention, feed_forward, logits)
