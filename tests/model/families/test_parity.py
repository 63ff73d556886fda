"""Each family against `transformers`: the same logits, the same greedy text; and promise 1 for its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import INDEX
from model.decoder import Decoder
from model.kernels.library import NO_PATH, open_library
from model.loader import load, open_folder
from tests.model.decoders import Stepper, random_ids, whole
from tests.model.families.checkpoints import FAMILIES, random_model, save, varied
from tests.model.kernels.paths import AVAILABLE
from tests.model.test_exactness import assert_same_bits

NUM_PROMPT, NUM_NEW = 40, 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.filterwarnings("ignore")  # those of transformers
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_gives_the_logits_and_the_text_of_transformers(model_type: str, tmp_path: Path) -> None:
    """In each of several configurations; files of each dtype, and every second folder in shards.

    With native kernels, and every third without.
    """
    for number, config in enumerate(varied(model_type)):
        model = random_model(config, dtype := DTYPES[number % 3], number)
        folder = tmp_path / str(number)
        save(model, folder, dtype, *[500] * (number % 2))
        assert (folder / INDEX).exists() == bool(number % 2)
        decoder = load(open_folder(folder, "float32")).decoder
        for path in [*AVAILABLE[:1], NO_PATH][: 1 + (number % 3 == 0)]:
            decoder.use(open_library(path))
            assert_same_logits_and_text(decoder, model)


def assert_same_logits_and_text(decoder: Decoder, model: Any) -> None:
    """What is written token by token is what `transformers` would write, and what one step computes."""
    config = model.config
    token_ids = random_ids(NUM_PROMPT, config.get_text_config().vocab_size, seed=1)
    stepper = Stepper(decoder, 1)
    rows = stepper.step([(0, 0, token_ids)])
    for position in range(NUM_PROMPT, NUM_PROMPT + NUM_NEW):
        token_ids.append(int(rows[-1][-1].argmax()))
        rows += stepper.step([(0, position, token_ids[-1:])])

    with torch.inference_mode():
        expected = model(torch.tensor([token_ids]), use_cache=False).logits[0]
    logits = torch.cat(rows)
    error = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() <= 1e-4, config
    assert expected[NUM_PROMPT - 1 : -1].argmax(-1).tolist() == token_ids[NUM_PROMPT:], config
    assert_same_bits(logits, whole(decoder, token_ids))
