"""llama.cpp, by llama-cpp-python's low-level calls: one batch holds all sequences, each with its own id."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

from bench.peers.gguf_file import write_llama
from bench.peers.workload import Generate, run

FILE = "model.gguf"
BATCH_TOKENS = 2048
STEP_TOKENS = 512  # that are computed at a time
CONTEXT = 32 * 640
FORMATS = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def prepare(checkpoint: Path, variant: str, folder: Path) -> None:
    """A GGUF file in bfloat16, or what llama.cpp itself quantizes that to."""
    if variant == "bf16":
        write_llama(checkpoint, folder / FILE)
        return
    whole = folder / "bf16.gguf"
    write_llama(checkpoint, whole)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FORMATS[variant]
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(folder / FILE).encode(), params):
        raise RuntimeError("llama_model_quantize failed")
    whole.unlink()


def load(checkpoint: Path, variant: str, folder: Path, threads: int) -> Generate:
    """The file and a context for all streams."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(folder / FILE).encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CONTEXT, BATCH_TOKENS, STEP_TOKENS, 32
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def step(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """(token, position, sequence, whether to choose the next) -> those chosen."""
        batch.n_tokens = len(rows)
        for row, (token, position, sequence, is_last) in enumerate(rows):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = is_last
        if status := llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode: {status}")
        return [
            int(np.argmax(_row(llama_cpp.llama_get_logits_ith(context, row), vocab_size)))
            for row, (*_, is_last) in enumerate(rows)
            if is_last
        ]

    def generate(prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        chosen = step(
            [
                (token, position, sequence, position == len(prompt) - 1)
                for sequence, prompt in enumerate(prompts)
                for position, token in enumerate(prompt)
            ]
        )
        answers = [[token] for token in chosen]
        for made in range(1, num_new_tokens):
            rows = [(token, len(prompts[s]) + made - 1, s, True) for s, token in enumerate(chosen)]
            chosen = step(rows)
            for answer, token in zip(answers, chosen, strict=True):
                answer.append(token)
        return answers

    return generate


def _row(pointer: ctypes._Pointer, size: int) -> np.ndarray:
    return np.ctypeslib.as_array(pointer, shape=(size,))


if __name__ == "__main__":
    run(prepare, load)
