"""ModelRunner: the one class that moves ints to tensors and back. Implements `model.interface.Model`.

Decides how a step is computed; which sequences are in it, the engine decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import torch
from torch import Tensor

from model.allocator import keep_freed_memory
from model.attention import PagedAttention
from model.batch import ForwardBatch
from model.interface import ModelInfo, SampleRequest, StepItem, StepOutput
from model.kv_cache import BLOCK_SIZE, KEY_TILE, KVCache
from model.linear import ROW_BLOCK
from model.loader import LoadedModel, LoadError, Progress, count_parameters, load
from model.sampling.sampler import Sampler

# The keys that one group of attention's pairs works on: on a CPU they must stay in its cache
# (at 8 MB a step of 32 sequences took three times as long as at 2), on a GPU they fill it.
GROUP_KEY_BYTES = {"cpu": 2 * 2**20, "cuda": 128 * 2**20}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """How to run a model folder. `auto`, and 0 for the integers: what suits the model and the machine."""

    model_id: str
    dtype: str = "auto"  # as stored, or float32, or bfloat16
    device: str = "auto"  # cuda where there is one, else cpu
    num_threads: int = 0  # of the CPU's matrix products; 0: all cores but one, which the front needs
    kv_cache_tokens: int = 0  # 0: `max_num_seqs` sequences of full length, or what memory allows
    max_num_seqs: int = 32


class ModelRunner:
    """A loaded decoder and its KV cache."""

    @classmethod
    def load(
        cls,
        folder: Path,
        options: RunnerOptions,
        on_progress: Progress = lambda done, total: None,
        on_layer: Callable[[], None] = lambda: None,
    ) -> ModelRunner:
        """From a folder to a runner that is ready for its first step. Raises `LoadError`.

        `on_layer` is called before each layer of each step: whoever watches sees that a long step goes on.
        """
        keep_freed_memory()
        device = torch.device(_choose_device(options.device))
        torch.set_num_threads(options.num_threads or max(1, _num_cores() - 1))
        loaded = load(folder, options.dtype, device, on_progress)
        for layer in (*loaded.decoder.layers, loaded.decoder.output):
            layer.register_forward_pre_hook(lambda *_: on_layer())
        return cls(loaded, options.model_id, _num_blocks(loaded, options, device), device)

    def __init__(self, loaded: LoadedModel, model_id: str, num_blocks: int, device: torch.device) -> None:
        config = loaded.decoder.config
        self.decoder = loaded.decoder
        self.device = device
        self.sampler = Sampler()
        self.cache = KVCache(config, num_blocks, loaded.dtype, device)
        self.group_size = config.num_heads // config.num_kv_heads
        key_tile_bytes = config.num_kv_heads * KEY_TILE * config.head_dim * torch.float32.itemsize
        self.max_pairs = max(1, GROUP_KEY_BYTES[device.type] // key_tile_bytes)
        num_parameters, weight_bytes = count_parameters(loaded.decoder)
        self._info = ModelInfo(
            model_id=model_id,
            model_type=loaded.model_type,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(device),
            kernels="torch",
            fingerprint=loaded.fingerprint,
            num_parameters=num_parameters,
            weight_bytes=weight_bytes,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            end_token_ids=loaded.end_token_ids,
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks,
            kv_bytes_per_token=KVCache.bytes_per_token(config, loaded.dtype),
        )

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        return self._info

    @torch.inference_mode()
    def execute(self, items: Sequence[StepItem]) -> list[StepOutput]:
        """Run one step: every item's rows through the decoder, then a token for each that asks."""
        batch = ForwardBatch.build(items, self.max_pairs, self.device)
        attend = PagedAttention(batch, self.cache, self.group_size)
        hidden = self.decoder.hidden(batch.token_ids, batch.positions, attend)
        per_item = hidden.split([len(item.token_ids) for item in items])

        sampling = [
            (rows[-1:], item.sample) for rows, item in zip(per_item, items, strict=True) if item.sample
        ]
        sampled = iter(self._sample(sampling))
        outputs = [next(sampled) if item.sample else StepOutput() for item in items]
        return [
            self._with_targets(output, rows, item.target_ids) if item.target_ids else output
            for output, rows, item in zip(outputs, per_item, items, strict=True)
        ]

    def _sample(self, wishes: list[tuple[Tensor, SampleRequest]]) -> list[StepOutput]:
        """One token for each (hidden row [1, hidden_size], wish)."""
        if not wishes:
            return []
        rows = torch.cat([row for row, _ in wishes])
        return self.sampler.sample(self.decoder.logits(rows), [request for _, request in wishes])

    def _with_targets(self, output: StepOutput, rows: Tensor, target_ids: Sequence[int]) -> StepOutput:
        """The output with the log-probability of each target after its row. rows: [num_rows, hidden_size]."""
        targets = torch.tensor(target_ids, device=self.device).unsqueeze(1)
        parts = [
            torch.log_softmax(self.decoder.logits(part).double(), -1).gather(1, target)
            for part, target in zip(
                rows[: len(target_ids)].split(ROW_BLOCK), targets.split(ROW_BLOCK), strict=True
            )
        ]  # in parts: [num_rows, vocab_size] whole would be a gigabyte for a large vocabulary
        logprobs = torch.cat(parts).flatten()
        if not torch.isfinite(logprobs).all():
            return StepOutput(error="the model's logits for the prompt hold NaN or infinity")
        return msgspec.structs.replace(output, target_logprobs=tuple(logprobs.tolist()))


def _choose_device(wish: str) -> str:
    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wish == "cuda" and not torch.cuda.is_available():
        raise LoadError("device is 'cuda', but this machine or this build of torch has none")
    return wish


def _num_blocks(loaded: LoadedModel, options: RunnerOptions, device: torch.device) -> int:
    """How many blocks the cache gets: what was asked for, or what suits, within half of the free memory."""
    config = loaded.decoder.config
    block_bytes = BLOCK_SIZE * KVCache.bytes_per_token(config, loaded.dtype)
    num_affordable = _free_bytes(device) // 2 // block_bytes
    if options.kv_cache_tokens:
        num_blocks = -(-options.kv_cache_tokens // BLOCK_SIZE)
        if num_blocks > 2 * num_affordable:
            raise LoadError(
                f"kv_cache_tokens is {options.kv_cache_tokens}, which takes "
                f"{num_blocks * block_bytes:,} bytes; {_free_bytes(device):,} are free"
            )
        return num_blocks
    num_blocks = options.max_num_seqs * -(-config.max_positions // BLOCK_SIZE)
    return max(1, min(num_blocks, num_affordable))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _num_cores() -> int:
    """The cores that this process may use, as far as the system can say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
