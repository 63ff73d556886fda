"""OpenVINO GenAI, with its continuous batching; converted and quantized by optimum-intel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.peers.workload import Generate, run

MAX_TOKENS = 2048  # of one step
CACHE_GB = 2


def prepare(checkpoint: Path, variant: str, folder: Path) -> None:
    """What `optimum-cli export openvino` makes of it. variant: int8 or int4."""
    command = Path(sys.executable).with_name("optimum-cli")
    options = ["--task", "text-generation-with-past", "--weight-format", variant]
    subprocess.run([command, "export", "openvino", "--model", checkpoint, *options, folder], check=True)


def load(checkpoint: Path, variant: str, folder: Path, threads: int) -> Generate:
    """The folder that was exported."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduling = openvino_genai.SchedulerConfig()
    scheduling.cache_size, scheduling.max_num_batched_tokens = CACHE_GB, MAX_TOKENS
    scheduling.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": threads}
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduling, "CPU", properties)

    def generate(prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_new_tokens, True, False
        tensors = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        results = pipeline.generate(tensors, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]

    return generate


if __name__ == "__main__":
    run(prepare, load)
