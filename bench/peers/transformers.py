"""Hugging Face transformers, as its users call it: `generate` on a batch of prompts of one length."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from bench.peers.workload import Generate, run


def prepare(checkpoint: Path, variant: str, folder: Path) -> None:
    """Nothing."""


def load(checkpoint: Path, variant: str, folder: Path, threads: int) -> Generate:
    """variant: bf16."""
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def generate(prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new_tokens, do_sample=False
        )
        return out[:, ids.shape[1] :].tolist()

    return generate


if __name__ == "__main__":
    run(prepare, load)
