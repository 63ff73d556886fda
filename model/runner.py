"""ModelRunner: the one class that moves ints to tensors and back. Implements `model.interface.Model`.

Decides how a step is computed; which sequences are in it, the engine decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from model.allocator import keep_freed_memory, reserve, return_freed_memory
from model.batch import ForwardBatch
from model.config import DecoderConfig
from model.counting import count_parameters
from model.cuda_graphs import DecodeGraphs
from model.decoder import Decoder
from model.folder import LoadError
from model.interface import ModelInfo, SampleRequest, StepItem, StepOutput
from model.kernels.attention import make_attend
from model.kernels.library import NO_PATH, Kernels, open_library
from model.kernels.recording import MAX_ROWS, RecordedLayers
from model.kv_cache import BLOCK_SIZE, KVCache
from model.linear import ROW_BLOCK
from model.loader import ModelFolder, Progress, load, open_folder
from model.machine import free_bytes, library, num_cores, resident_bytes
from model.plan import max_pairs, plan_memory
from model.sampling.ranking import Softmax
from model.sampling.sampler import Sampler
from model.sampling.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """How to run a model folder. `auto`, and 0 for the integers: what suits the model and the machine."""

    model_id: str
    dtype: str = "auto"  # bfloat16 where it is stored so, else float32; or one of them by its name
    quantize: str = "none"  # or int8, int4: of linear layers, as they are loaded
    device: str = "auto"  # cuda where there is one, else cpu
    kernels: str = "auto"  # the path of the native kernels: the fastest here; or its name, or torch for none
    num_threads: int = 0  # of the CPU's matrix products; 0: one for each core
    kv_cache_tokens: int = 0  # 0: `max_num_seqs` sequences of full length, or what memory allows
    max_batch_tokens: int = 512
    max_num_seqs: int = 32
    speculative_tokens: int = 0  # the most drafts of an item


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
        prepared = _prepare(folder, options)
        loaded = load(prepared.folder, prepared.device, on_progress, prepared.kernels)
        keep_freed_memory()
        loaded.decoder.use(prepared.kernels)
        for layer in (*loaded.decoder.layers, loaded.decoder.output):
            layer.register_forward_pre_hook(lambda *_: on_layer())
        runner = cls(loaded.decoder, replace(prepared.info, fingerprint=loaded.fingerprint))
        runner.graphs = DecodeGraphs.capture(
            loaded.decoder, runner.cache, options.max_num_seqs, runner.max_pairs, on_layer
        )
        in_graphs = 0 if runner.graphs is None else runner.graphs.num_bytes
        reserve(prepared.info.memory.step_bytes - in_graphs, prepared.device)
        runner.recorded = RecordedLayers.record(loaded.decoder, runner.cache, on_layer)
        return runner

    @staticmethod
    def plan(folder: Path, options: RunnerOptions) -> ModelInfo:
        """What `load` would give, but for the fingerprint: no weights are read. Raises `LoadError`."""
        return _prepare(folder, options).info

    def __init__(self, decoder: Decoder, info: ModelInfo) -> None:
        config = decoder.config
        self.decoder = decoder
        self.device = torch.device(info.device)
        self.sampler = Sampler()
        self.cache = KVCache(config, info.num_blocks, getattr(torch, info.dtype), self.device)
        self.max_pairs = max_pairs(config, self.device.type)
        self.recorded: RecordedLayers | None = None  # on a CPU
        self.graphs: DecodeGraphs | None = None  # on a GPU
        self._info = info

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        return self._info

    @torch.inference_mode()
    def execute(self, items: Sequence[StepItem]) -> list[StepOutput]:
        """Run one step: every item's rows through the decoder, then a token for each that asks."""
        per_item = self._hidden(items).split([len(item.token_ids) for item in items])

        sampled = iter(
            self._sample([(rows, item) for rows, item in zip(per_item, items, strict=True) if item.sample])
        )
        outputs = [next(sampled) if item.sample else StepOutput() for item in items]
        return [
            self._with_targets(output, rows, item.target_ids) if item.target_ids else output
            for output, rows, item in zip(outputs, per_item, items, strict=True)
        ]

    def _hidden(self, items: Sequence[StepItem]) -> Tensor:
        """What the layers make of every item's rows, until the next step: [num_tokens, hidden_size]."""
        if self.graphs is not None and (hidden := self.graphs(items)) is not None:
            return hidden
        batch = ForwardBatch.build(items, self.device)
        attend = make_attend(batch, self.cache, self.decoder.config, self.decoder.kernels, self.max_pairs)
        if self.recorded is not None and len(batch.token_ids) <= MAX_ROWS:
            x = self.decoder.embed(batch.token_ids, batch.positions)
            return self.recorded(x, batch.positions, attend)
        return self.decoder.hidden(batch.token_ids, batch.positions, attend)

    def _sample(self, asking: list[tuple[Tensor, StepItem]]) -> list[StepOutput]:
        """The tokens of each (hidden rows [num_rows, hidden_size], item that samples)."""
        if not asking:
            return []
        parts = [rows[-1 - item.num_drafts :] for rows, item in asking]
        logits = self.decoder.logits(torch.cat(parts)).split([len(part) for part in parts])
        return [
            self.sampler.verify(part, item.sample, item.token_ids[len(item.token_ids) - item.num_drafts :])
            for part, (_, item) in zip(logits, asking, strict=True)
            if item.sample
        ]

    def _with_targets(self, output: StepOutput, rows: Tensor, target_ids: Sequence[int]) -> StepOutput:
        """The output with the log-probability of each target after its row. rows: [num_rows, hidden_size]."""
        logprobs: list[float] = []
        # In parts: [num_rows, vocab_size] whole would be a gigabyte for a large vocabulary.
        for part in rows[: len(target_ids)].split(ROW_BLOCK):
            for row in self.decoder.logits(part).cpu().numpy():
                logit, largest = row[target_ids[len(logprobs)]].item(), row.max().item()
                if not (math.isfinite(logit) and math.isfinite(largest)):
                    return StepOutput(error="the model's logits for the prompt hold NaN or infinity")
                logprobs.append(Softmax(row, largest).logprob(logit))  # the bits that generation gives
        return msgspec.structs.replace(output, target_logprobs=tuple(logprobs))


_TINY = DecoderConfig(
    vocab_size=256,
    hidden_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    feed_forward_size=256,
    max_positions=64,
    positions="sinusoidal",
    norm="layer_norm",
    norm_placement="post",
    activation="gelu",
    is_gated=False,
    has_attention_bias=True,
    has_attention_output_bias=True,
    has_feed_forward_bias=True,
    is_output_tied=True,
)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A folder, and all that can be said of its model before it is loaded."""

    folder: ModelFolder
    device: torch.device
    kernels: Kernels | None
    info: ModelInfo


def _prepare(path: Path, options: RunnerOptions) -> _Prepared:
    """Everything before the weights: the process set up, the folder opened, the memory divided."""
    return_freed_memory()
    device = torch.device(_choose_device(options.device))
    torch.set_num_threads(options.num_threads or num_cores())
    kernels = _choose_kernels(options.kernels, device)
    folder = open_folder(path, options.dtype, options.quantize)
    memory = plan_memory(
        folder.decoder,
        folder.dtype,
        device.type,
        is_native=kernels is not None,
        kv_cache_tokens=options.kv_cache_tokens,
        max_batch_tokens=options.max_batch_tokens,
        max_num_seqs=options.max_num_seqs,
        speculative_tokens=options.speculative_tokens,
        base_bytes=_base_bytes(folder.dtype, kernels) if device.type == "cpu" else 0,
        free_bytes=free_bytes(device),
    )
    config = folder.decoder.config
    info = ModelInfo(
        model_id=options.model_id,
        model_type=folder.model_type,
        dtype=str(folder.dtype).removeprefix("torch."),
        quantization=folder.quantization,
        device=str(device),
        kernels=NO_PATH if kernels is None else kernels.path,
        library=library(device),
        fingerprint="",
        num_parameters=count_parameters(folder.decoder),
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        end_token_ids=folder.end_token_ids,
        block_size=BLOCK_SIZE,
        num_blocks=memory.kv_cache_tokens // BLOCK_SIZE,
        memory=memory,
    )
    return _Prepared(folder, device, kernels, info)


def _choose_kernels(wish: str, device: torch.device) -> Kernels | None:
    if device.type != "cpu" and wish == "auto":
        return None
    if device.type != "cpu" and wish != NO_PATH:
        raise LoadError(f"kernels is {wish!r}, but the device is {device.type!r}: they are for the CPU")
    try:
        return open_library(wish)
    except ValueError as error:
        raise LoadError(str(error)) from error


def _base_bytes(dtype: torch.dtype, kernels: Kernels | None) -> int:
    """What the process holds before there is a model: the interpreter and its libraries.

    Much of a library comes into memory with its first use. So a decoder of a few numbers makes a step first.
    """
    device = torch.device("cpu")
    decoder = Decoder(_TINY).to(dtype).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.zero_()
    decoder.use(kernels)
    ids = [0] * 2 * ROW_BLOCK
    batch = ForwardBatch.build([StepItem(token_ids=ids, start=0, block_table=range(2))], device)
    attend = make_attend(batch, KVCache(_TINY, 2, dtype, device), _TINY, kernels, 8)
    logits = decoder(batch.token_ids, batch.positions, attend)
    wish = SampleRequest(params=SamplingParams(top_p=0.5), token_ids=ids, num_prompt_tokens=len(ids))
    Sampler().sample(logits[-1:], [wish])
    return resident_bytes()


def _choose_device(wish: str) -> str:
    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wish == "cuda" and not torch.cuda.is_available():
        raise LoadError("device is 'cuda', but this machine or this build of torch has none")
    return wish
