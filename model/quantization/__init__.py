"""Weights in fewer bits: one file for each format. This one finds them.

Checkpoints that are quantized say so in config.json; others can be quantized as they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from model.kernels.library import Kernels
from model.quantization import awq, bitsandbytes, compressed_tensors, fp8, gptq, int4, int8, mxfp4
from model.quantization._scheme import Scheme
from model.quantization.linear import QuantizedLinear

__all__ = ["AT_LOAD", "SCHEMES", "Quantize", "QuantizedLinear", "Scheme", "scheme_of"]

# What a config.json calls them.
SCHEMES: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "awq": awq.scheme,
    "bitsandbytes": bitsandbytes.scheme,
    "compressed-tensors": compressed_tensors.scheme,
    "fp8": fp8.scheme,
    "gptq": gptq.scheme,
    "mxfp4": mxfp4.scheme,
}

# A dense weight, [out, in], and what makes it faster -> the tensors of the module that will hold it.
Quantize = Callable[[Tensor, Kernels | None], dict[str, Tensor]]
AT_LOAD: Mapping[str, tuple[type[QuantizedLinear], Quantize]] = {
    "int8": (int8.Int8RowsLinear, int8.quantize),
    "int4": (int4.Int4RowsLinear, int4.quantize),
}


def scheme_of(config_json: Mapping[str, Any]) -> Scheme | None:
    """How a folder's weights are stored; None if plainly.

    Raises `ValueError` naming what is not supported.
    """
    config = config_json.get("quantization_config", config_json.get("compression_config"))
    if config is None:
        return None
    method = str(config.get("quant_method")) if isinstance(config, dict) else ""
    if method not in SCHEMES:
        raise ValueError(
            f"quantization_config: quant_method is {method[:100]!r}, must be one of {', '.join(SCHEMES)}"
        )
    try:
        return SCHEMES[method](config)
    except ValueError as error:
        raise ValueError(f"quantization_config ({method}): {error}") from error
