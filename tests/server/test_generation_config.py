"""What is read of a generation_config.json, and what is refused because it would change an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.generation_config import GenerationDefaults, read_generation_defaults


def read(folder: Path, fields: dict[str, Any]) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return read_generation_defaults(folder)


def test_without_a_file_nothing_is_said(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == GenerationDefaults() == read(tmp_path, {})


@pytest.mark.filterwarnings("ignore")  # those of transformers
def test_without_the_file_what_config_json_says_of_it_counts_as_in_transformers(tmp_path: Path) -> None:
    from transformers import GenerationConfig, LlamaConfig

    theirs = {"repetition_penalty": 5.0, "temperature": 0.5, "do_sample": True}
    LlamaConfig(**theirs, eos_token_id=2).save_pretrained(tmp_path)
    built = GenerationConfig.from_model_config(LlamaConfig.from_pretrained(tmp_path))
    read_here = read_generation_defaults(tmp_path)
    assert read_here.sampling == {
        "repetition_penalty": built.repetition_penalty,
        "temperature": built.temperature,
    }
    assert read_here.do_sample is built.do_sample is True
    assert read(tmp_path, {}) == GenerationDefaults(), "the file, if there is one, says all"
    (tmp_path / "generation_config.json").unlink()
    LlamaConfig(no_repeat_ngram_size=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config.json: no_repeat_ngram_size is 2, which is not supported"):
        read_generation_defaults(tmp_path)


def test_what_real_models_say_is_read(tmp_path: Path) -> None:
    qwen = {
        "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_length": 4096,
        "transformers_version": "4.37.0", "_from_model_config": True, "use_cache": False, "min_p": None,
        "max_new_tokens": 2048, "suppress_tokens": None, "length_penalty": 2.0, "chat_format": "chatml",
    }  # fmt: skip
    assert read(tmp_path, qwen) == GenerationDefaults(
        do_sample=True,
        sampling={"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
        max_new_tokens=2048,
    )


def test_what_transformers_writes_by_itself_is_neutral(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    every = GenerationConfig(eos_token_id=2).to_dict()
    assert every["num_beams"] == 1
    defaults = read(tmp_path, every)
    assert defaults.do_sample is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4), ("num_return_sequences", 2), ("guidance_scale", 1.5), ("penalty_alpha", 0.6),
        ("no_repeat_ngram_size", 3), ("min_length", 5), ("bad_words_ids", [[1]]), ("suppress_tokens", [1]),
        ("stop_strings", ["a"]), ("forced_eos_token_id", 1), ("sequence_bias", [[[1], -10.0]]),
        ("exponential_decay_length_penalty", [1, 1.1]), ("max_time", 1.0), ("watermarking_config", {"a": 1}),
        ("token_healing", True), ("epsilon_cutoff", 0.1), ("dola_layers", "low"), ("constraints", [1]),
    ],
)  # fmt: skip
def test_what_would_change_an_answer_is_refused_by_name(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"^cannot load .*generation_config\.json: {name} is .*not supported$"
    ):
        read(tmp_path, {name: value})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1: it must be greater than or equal to 0"),
        ({"temperature": 101}, "temperature is 101: it must be less than or equal to 100"),
        ({"temperature": "0.7"}, 'temperature is "0.7": it must be a valid number'),
        ({"top_p": 0}, "top_p is 0: it must be greater than 0"),
        ({"top_p": float("nan")}, "top_p is NaN: it must be a finite number"),
        ({"top_k": True}, "top_k is true: it must be a valid integer"),
        ({"top_k": 1.5}, "top_k is 1.5: it must be a valid integer"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0: it must be greater than 0"),
        ({"do_sample": 1}, "do_sample is 1: it must be a valid boolean"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be greater than or equal to 1"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample is true and temperature is 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_limit(fields: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot load ") as caught:
        read(tmp_path, fields)
    assert f"generation_config.json: {sentence}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "5", "\x00"])
def test_a_file_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^cannot load .*generation_config\.json: "):
        read_generation_defaults(tmp_path)
