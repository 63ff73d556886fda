"""vLLM on the CPU, by its offline class: all prompts at once, its scheduler decides the rest."""

from __future__ import annotations

import os
from pathlib import Path

from bench.peers.workload import Generate, run

CACHE_GB = 2


def prepare(checkpoint: Path, variant: str, folder: Path) -> None:
    """Nothing."""


def load(checkpoint: Path, variant: str, folder: Path, threads: int) -> Generate:
    """variant: bf16."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(CACHE_GB)
    import vllm

    model = vllm.LLM(
        str(checkpoint), dtype="bfloat16", max_model_len=1024, enable_prefix_caching=False, max_num_seqs=32
    )

    def generate(prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        params = vllm.SamplingParams(temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = model.generate(asked, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


if __name__ == "__main__":
    run(prepare, load)
