"""Each family against `transformers`: the same logits, the same greedy text; and promise 1 for its parts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from model.kernels.library import NO_PATH, open_library
from model.loader import load, open_folder
from tests.model.decoders import Stepper, random_ids, whole
from tests.model.families.checkpoints import FAMILIES, configurations, random_model, save
from tests.model.kernels.paths import AVAILABLE
from tests.model.test_exactness import assert_same_bits

NUM_PROMPT, NUM_NEW = 40, 64
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@pytest.mark.filterwarnings("ignore")  # those of transformers
@pytest.mark.parametrize("model_type", FAMILIES)
@given(data=st.data())
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
def test_a_family_gives_the_logits_and_the_text_of_transformers(model_type: str, data: st.DataObject) -> None:
    """What is written token by token is what `transformers` would write, and what one step computes.

    With native kernels and without.
    """
    config, dtype = data.draw(configurations(model_type)), data.draw(DTYPES)
    model = random_model(config, dtype, data.draw(st.integers(0, 2**31)))
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder), dtype)
        decoder = load(open_folder(Path(folder), "float32")).decoder

    for path in (NO_PATH, *AVAILABLE[:1]):
        decoder.use(open_library(path))
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
        assert error.max() <= 1e-4
        assert expected[NUM_PROMPT - 1 : -1].argmax(-1).tolist() == token_ids[NUM_PROMPT:]
        assert_same_bits(logits, whole(decoder, token_ids))
