"""The random number of a draw: a function of (seed, choice, position), so there is no state to save.

Torch-free. Knows nothing of tokens or probabilities.
"""

from __future__ import annotations

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key's words grow by from round to round
_WORD = 0xFFFFFFFF

Words4 = tuple[int, int, int, int]


def philox4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Four random words from four counter words and two key words, all of 32 bits: Philox4x32-10.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, choice: int, position: int) -> float:
    """The number that draws the token at `position`: a multiple of 2^-53 in [0, 1).

    `seed` and `position` are below 2^64, `choice` is below 2^32; each triple has a counter of its own.
    """
    counter = (position & _WORD, position >> 32, choice, 0)
    high, low, _, _ = philox4x32(counter, (seed & _WORD, seed >> 32))
    return ((high << 32 | low) >> 11) * 2.0**-53
