"""From a config.json's fields about positions to the numbers that they come to.

The ways to stretch a context (`rope_scaling`) all end in other frequencies, and are known here alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from model.config import Rotation


class RopeScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rope_scaling`, in all its kinds."""

    rope_type: str | None = None
    type: str | None = None  # the older name of the same
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    # llama3
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    # yarn
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    # longrope
    short_factor: list[float] | None = None
    long_factor: list[float] | None = None

    @property
    def kind(self) -> str:
        """`default`, or how the context is stretched."""
        return self.rope_type or self.type or "default"


# What each kind reads, beside its name and `factor`; the first few are required.
SCALINGS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, {"original_max_position_embeddings"}),
    "llama3": (
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        set(),
    ),
    "yarn": (
        {"factor"},
        {
            "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
            "mscale", "mscale_all_dim", "truncate",
        },
    ),
    "longrope": (
        {"short_factor", "long_factor"},
        {"factor", "attention_factor", "original_max_position_embeddings"},
    ),
}  # fmt: skip


def frequencies(size: int, theta: float) -> tuple[float, ...]:
    """1 / theta^(2i / size) of each pair (Su et al. 2021). size: how many elements of a head are turned."""
    if size < 2 or size % 2:
        raise ValueError(f"rotary positions turn {size} elements of a head, must be even and at least 2")
    if not 0.0 < theta < 1e30:
        raise ValueError(f"rope_theta is {theta}, must be above 0 and below 1e30")
    return tuple(theta ** -(2 * i / size) for i in range(size // 2))


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """2^(-8/n), 2^(-16/n), …; and from between these, where n is no power of two (Press et al. 2021)."""
    power = 2 ** int(math.log2(num_heads))
    series = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * (num_heads - power) + 1, 2)]
    return tuple(series + between)


def rotation(
    size: int,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    *,
    max_positions: int,
    original_max_positions: int | None = None,
    is_interleaved: bool = False,
) -> tuple[Rotation, int]:
    """How `size` elements of each head are turned, and the most positions for which that holds.

    original_max_positions: the length before the context was stretched, where config.json has it outside
    of `rope_scaling`. Raises `ValueError` naming the field that cannot be honoured.
    """
    plain = frequencies(size, theta)
    read = _read(scaling)
    turned, amplitude, longest = plain, 1.0, max_positions
    if read.kind == "linear":
        turned = tuple(f / _factor(read) for f in plain)
    elif read.kind == "llama3":
        turned = _llama3(plain, read)
    elif read.kind == "yarn":
        turned, amplitude = _yarn(plain, theta, read, max_positions)
        if read.original_max_position_embeddings:
            longest = max(longest, int(_factor(read) * read.original_max_position_embeddings))
    elif read.kind == "longrope":
        turned, amplitude, longest = _longrope(plain, read, max_positions, original_max_positions)
    # `dynamic` stretches only sequences beyond max_positions, which are not served.
    return Rotation(frequencies=turned, amplitude=amplitude, is_interleaved=is_interleaved), longest


def _read(scaling: Mapping[str, Any] | None) -> RopeScaling:
    read = msgspec.convert(dict(scaling or {}), RopeScaling)
    if read.kind not in SCALINGS:
        raise ValueError(f"rope_scaling is of type {read.kind!r}, must be one of {', '.join(SCALINGS)}")
    required, optional = SCALINGS[read.kind]
    given = {name for name, value in (scaling or {}).items() if value is not None} - {"rope_type", "type"}
    if missing := sorted(required - given):
        raise ValueError(f"rope_scaling of type {read.kind!r} has no {missing[0]}")
    if left := sorted(given - required - optional):
        raise ValueError(f"rope_scaling of type {read.kind!r} has no use for {left[0]}")
    return read


def _factor(read: RopeScaling) -> float:
    if read.factor is None or not 1e-6 < read.factor < 1e6:
        raise ValueError(f"rope_scaling's factor is {read.factor}, must be above 1e-6 and below 1e6")
    return read.factor


def _llama3(plain: tuple[float, ...], read: RopeScaling) -> tuple[float, ...]:
    """Slow pairs are slowed by `factor`, fast ones stay, those between go over smoothly (Llama 3.1)."""
    original, low, high = (
        read.original_max_position_embeddings or 0, read.low_freq_factor or 0.0, read.high_freq_factor or 0.0
    )  # fmt: skip
    if not 0.0 < low < high:
        raise ValueError(f"rope_scaling's low_freq_factor is {low}, must be above 0 and below {high}")

    def one(frequency: float) -> float:
        turns = original * frequency / (2 * math.pi)  # within the original context
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - share) * frequency / _factor(read) + share * frequency

    return tuple(one(frequency) for frequency in plain)


def _yarn(
    plain: tuple[float, ...], theta: float, read: RopeScaling, max_positions: int
) -> tuple[tuple[float, ...], float]:
    """Frequencies between interpolation and extrapolation by their number of turns (Peng et al. 2023)."""
    size, factor = 2 * len(plain), _factor(read)
    original = read.original_max_position_embeddings or max_positions

    def pair_that_turns(times: float) -> float:
        return size * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(read.beta_fast or 32.0), pair_that_turns(read.beta_slow or 1.0)
    if read.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low or 0.001
    ramp = [min(max((i - low) / width, 0.0), 1.0) for i in range(len(plain))]
    turned = tuple(f / factor * share + f * (1 - share) for f, share in zip(plain, ramp, strict=True))

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    if read.attention_factor is not None:
        return turned, read.attention_factor
    if read.mscale and read.mscale_all_dim:
        return turned, magnitude(read.mscale) / magnitude(read.mscale_all_dim)
    return turned, magnitude(1.0)


def _longrope(
    plain: tuple[float, ...], read: RopeScaling, max_positions: int, original: int | None
) -> tuple[tuple[float, ...], float, int]:
    """Each pair slowed by a factor of its own (Ding et al. 2024): those for the original length.

    A longer sequence would have other factors, and all its earlier keys, turned already, would have to be
    turned anew; so the original length is the most that is served.
    """
    if len(read.short_factor or ()) != len(plain):
        raise ValueError(
            f"rope_scaling's short_factor has {len(read.short_factor or ())} entries, must have {len(plain)}"
        )
    if not all(1e-6 < factor < 1e6 for factor in read.short_factor or ()):
        raise ValueError("rope_scaling's short_factor must be above 1e-6 and below 1e6")
    turned = tuple(f / factor for f, factor in zip(plain, read.short_factor or (), strict=True))
    if original is None:
        original, factor = max_positions, read.factor or 1.0
    else:
        factor = max_positions / max(original, 2)
    amplitude = read.attention_factor
    if amplitude is None:
        amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
    return turned, amplitude, original
