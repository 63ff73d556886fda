"""The limit that a machine sets to a decoder: what a step must read and multiply, and how fast that goes.

Measures the machine, and counts the decoder; times no step of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from model.counting import held_dtype, parameter_owners
from model.decoder import Decoder
from model.interface import ModelInfo, Roof
from model.machine import cache_bytes, free_bytes
from model.mixture_of_experts import MixtureOfExperts
from model.quantization import QuantizedLinear

# Of so many times what the caches hold, read over and over, they give next to nothing, however they replace.
CACHES = 4
LEAST_CACHE_BYTES = 2**26  # that a machine is taken to have, if it tells of less
MEASURE_S = 0.2  # how long each product or reading is repeated, and at least `MIN_RUNS` times
MIN_RUNS = 3
ROWS, INNER, COLUMNS = 512, 2048, 2048  # of the product by which the rate is taken
PROBE = 128  # inner size and columns of the one that says whether that is worth its time


def measure_roof(decoder: Decoder, info: ModelInfo) -> Roof:
    """What this decoder needs, and what the machine gives now. Takes a few seconds."""
    dtype, device = getattr(torch, info.dtype), torch.device(info.device)
    weight_bytes, layers, output = demand(decoder, dtype)
    formats = [torch.float32]  # those in which its products could be computed: its own, and wider ones
    if dtype != torch.float32:
        formats.append(dtype)
    if info.quantization is not None:
        formats += [torch.bfloat16, torch.int8]
    return Roof(
        num_threads=torch.get_num_threads(),
        bytes_per_s=read_bytes_per_s(round(weight_bytes), device),
        multiplications_per_s=multiplications_per_s(formats, device),
        weight_bytes=weight_bytes,
        kv_bytes_per_token=info.memory.kv_bytes_per_token,
        layer_multiplications=layers,
        output_multiplications=output,
    )


def demand(decoder: Decoder, dtype: torch.dtype) -> tuple[float, float, int]:
    """Bytes of weights read in a step; multiplications of each row in the layers, and in the output.

    dtype: that of dense weights. Of an embedding that is not tied a few rows are read: it does not count.
    """
    shares = _expert_shares(decoder)
    num_bytes = layers = 0.0
    output = 0
    for name, owners in parameter_owners(decoder).items():
        modules = [module for module, _ in owners]
        if modules == [decoder.embedding]:
            continue
        module, attribute = owners[-1]  # of a tied weight the output layer
        parameter = module.get_parameter(attribute)
        share = next((share for prefix, share in shares.items() if name.startswith(prefix)), 1.0)
        num_bytes += share * parameter.numel() * held_dtype(module, attribute, dtype).itemsize
        numbers = _multiplied(module, attribute, parameter)
        if decoder.output in modules:
            output += numbers
        else:
            layers += share * numbers
    return num_bytes, layers, output


def _expert_shares(decoder: Decoder) -> dict[str, float]:
    """The part of a mixture's experts that one token passes through, by what their names begin with."""
    return {
        f"{prefix}.experts.": module.num_chosen / len(module.experts)
        for prefix, module in decoder.named_modules()
        if isinstance(module, MixtureOfExperts)
    }


def _multiplied(module: torch.nn.Module, attribute: str, parameter: Tensor) -> int:
    """The numbers of a matrix; none of anything else."""
    if isinstance(module, QuantizedLinear):
        return module.in_features * module.out_features if attribute == "codes" else 0
    return parameter.numel() if parameter.dim() == 2 else 0


def read_bytes_per_s(num_bytes: int, device: torch.device) -> float:
    """How fast so many bytes are read over and over, by torch's threads: from a cache, if they fit one."""
    numbers = torch.ones(max(1, min(num_bytes, most_read_bytes(device)) // 4), device=device)
    return max(numbers.nbytes / _fastest_s(read, device) for read in (numbers.sum, lambda: numbers @ numbers))


def most_read_bytes(device: torch.device) -> int:
    """More than this is as slow: far more than all caches hold, and no more than half of the free memory."""
    return min(CACHES * max(cache_bytes(device), LEAST_CACHE_BYTES), free_bytes(device) // 2)


def multiplications_per_s(formats: Iterable[torch.dtype], device: torch.device) -> float:
    """The best that the library's products reach in any of these formats, by torch's threads."""
    best = 0.0
    for dtype in dict.fromkeys(formats):
        # A format that the processor has nothing for can take minutes for what takes another a millisecond.
        if _product_rate(dtype, PROBE, PROBE, device) > best / 10:
            best = max(best, _product_rate(dtype, INNER, COLUMNS, device))
    return best


def _product_rate(dtype: torch.dtype, inner: int, columns: int, device: torch.device) -> float:
    x = torch.ones(ROWS, inner, dtype=dtype, device=device)
    weight = torch.ones(columns, inner, dtype=dtype, device=device).t()
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    return ROWS * inner * columns / _fastest_s(lambda: multiply(x, weight), device)


def _fastest_s(work: Callable[[], Tensor], device: torch.device) -> float:
    """The least time of many runs; the first does not count."""
    taken_s: list[float] = []
    while len(taken_s) <= MIN_RUNS or sum(taken_s) < MEASURE_S:
        began_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken_s.append(time.perf_counter() - began_s)
    return min(taken_s[1:])
