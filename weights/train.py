"""The recipe of the embedded model: the server's own decoder, trained on public-domain stories.

    python weights/train.py --data DIR --out DIR [--steps N] [--start MODEL_DIR]

DIR/stories.train.jsonl.xz and DIR/stories.valid.jsonl.xz hold one document a line, `{"text": ...}`.
A run that is stopped goes on from its last checkpoint when the same command is given again.
The model folder (bfloat16), the log and a picture of the loss are written to --out.

What made the difference on two CPU cores, and where it comes from:
- Muon (Jordan et al. 2024) on the layers' matrices: momentum, orthogonalized by Newton-Schulz steps;
  AdamW on embeddings, biases and norms. AdamW alone stayed on the unigram plateau.
- the cross-entropy in chunks of rows with its gradient by hand: the [4096, 4096] logits never exist whole.
- a rate that falls to zero over most of the run, and an exponential average of the weights at its end.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.autograd.function import FunctionCtx
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model.attention import WholeSequences
from model.decoder import Decoder
from model.families.verbatim import decoder_config

Ids = np.ndarray[Any, np.dtype[np.uint16]]
CONTEXT = 512  # tokens in a window; the decoder's max_positions
BATCH = 8  # windows in a step, unless it is said otherwise
END = "<|end|>"  # id 0: put after each document
CONFIG: dict[str, Any] = {
    "architectures": ["VerbatimDecoder"],
    "model_type": "verbatim",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_layers": 8,
    "num_heads": 4,
    "feed_forward_size": 1024,
    "max_positions": CONTEXT,
    "positions": "sinusoidal",
    "embedding_scale": 16.0,  # sqrt(hidden_size)
    "norm": "layer_norm",
    "norm_placement": "post",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "attention_bias": True,
    "feed_forward_bias": True,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "eos_token_id": 0,
}


# ---- data -------------------------------------------------------------------------------------------------


def read_documents(path: Path) -> Iterator[str]:
    """The texts of a `.jsonl.xz`, in file order."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def train_tokenizer(documents: Iterator[str]) -> Tokenizer:
    """A byte-level BPE: any text can be encoded, and decoding gives the same bytes back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, path: Path, cache: Path) -> tuple[Ids, int]:
    """All documents of a file as one row of ids, each followed by END, and their bytes of text."""
    if not cache.exists():
        documents = list(read_documents(path))
        end = tokenizer.token_to_id(END)
        ids = [np.array([*e.ids, end], np.uint16) for e in tokenizer.encode_batch(documents)]
        np.savez(cache, ids=np.concatenate(ids), num_bytes=sum(len(d.encode()) for d in documents))
    held = np.load(cache)
    return held["ids"], int(held["num_bytes"])


class Data:
    """The documents as ids, made once and kept beside the checkpoints."""

    def __init__(self, folder: Path, start: Path | None, out: Path) -> None:
        path = (start or out) / "tokenizer.json"
        if not path.exists():
            train_tokenizer(read_documents(folder / "stories.train.jsonl.xz")).save(str(path))
        self.tokenizer = Tokenizer.from_file(str(path))
        self.train_ids, _ = encode(self.tokenizer, folder / "stories.train.jsonl.xz", out / "train.npz")
        self.valid_ids, self.valid_bytes = encode(
            self.tokenizer, folder / "stories.valid.jsonl.xz", out / "valid.npz"
        )


def windows_of(ids: Ids, epoch: int) -> Tensor:
    """Every token once, in windows of CONTEXT + 1, cut at another offset and shuffled anew each epoch."""
    random = np.random.default_rng(epoch)
    cut = ids[random.integers(CONTEXT) :]
    rows = (len(cut) - 1) // CONTEXT
    starts = random.permutation(rows) * CONTEXT
    return torch.from_numpy(np.stack([cut[s : s + CONTEXT + 1] for s in starts]).astype(np.int64))


# ---- loss -------------------------------------------------------------------------------------------------


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `x @ weight.T`, 1,024 rows at a time; the gradient is made on the way forward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """x: [rows, hidden], weight: [vocab, hidden], targets: [rows] -> a scalar."""
        narrow = weight.bfloat16()
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        loss = x.new_zeros(())
        for start in range(0, len(x), 1024):
            rows = slice(start, start + 1024)
            part, target = x[rows].bfloat16(), targets[rows, None]
            log_p = torch.log_softmax((part @ narrow.T).float(), -1)
            loss -= log_p.gather(1, target).sum()
            grad = log_p.exp_()
            grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            grad = (grad / len(x)).bfloat16()
            grad_x[rows] = (grad @ narrow).float()
            grad_weight += (grad.T @ part).float()
        ctx.save_for_backward(grad_x, grad_weight)
        return loss / len(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """The saved gradients, times the incoming one."""
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grads[0], grad_weight * grads[0], None


def loss_of(decoder: Decoder, windows: Tensor) -> Tensor:
    """Mean nats a token over [num_windows, CONTEXT + 1] windows, in bfloat16 autocast."""
    inputs, targets = windows[:, :-1].reshape(-1), windows[:, 1:].reshape(-1)
    positions = torch.arange(CONTEXT, device=inputs.device).repeat(len(windows))
    with torch.autocast(inputs.device.type, torch.bfloat16):
        x = decoder.hidden(inputs, positions, WholeSequences(len(windows), CONTEXT, inputs.device))
    loss: Tensor = ChunkedCrossEntropy.apply(decoder.final_norm(x.float()), decoder.output.weight, targets)
    return loss


@torch.no_grad()
def bits_per_byte(decoder: Decoder, ids: Ids, num_bytes: int) -> float:
    """Over all windows of the held-out documents, none seeing further back than its own start."""
    rows = (len(ids) - 1) // CONTEXT
    starts = range(0, rows * CONTEXT, CONTEXT)
    windows = torch.from_numpy(np.stack([ids[s : s + CONTEXT + 1] for s in starts]).astype(np.int64))
    device = decoder.output.weight.device
    nats = sum(float(loss_of(decoder, part.to(device))) * len(part) for part in windows.split(BATCH)) / rows
    return nats * len(ids) / num_bytes / math.log(2)


# ---- optimizers -------------------------------------------------------------------------------------------


def orthogonalize(stack: Tensor) -> Tensor:
    """Five Newton-Schulz steps towards the nearest matrix with singular values of one. [n, rows, cols]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack.bfloat16() if stack.is_cuda else stack  # a CPU may have no such products
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized. Matrices of one shape are stepped as one stack."""

    def __init__(self, matrices: list[Tensor], lr: float) -> None:
        groups = [
            {"params": [m for m in matrices if m.shape == shape]}
            for shape in sorted({m.shape for m in matrices})
        ]
        super().__init__(groups, {"lr": lr, "momentum": 0.95, "decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            params, updates = group["params"], []
            for param in params:
                momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
                momentum.lerp_(param.grad, 1 - group["momentum"])
                updates.append(torch.lerp(param.grad, momentum, group["momentum"]))
            rows, cols = params[0].shape
            scale = group["lr"] * math.sqrt(max(1.0, rows / cols))
            for param, update in zip(params, orthogonalize(torch.stack(updates)), strict=True):
                param.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-scale)


def rate_at(step: int, steps: int) -> float:
    """The fraction of the peak rate: 100 steps up, constant to 30 % of the run, then in a line to zero."""
    return min(1.0, (step + 1) / 100, max(0.0, (1 - step / steps) / 0.7))


# ---- the run ----------------------------------------------------------------------------------------------


def new_decoder(start: Path | None, device: torch.device) -> Decoder:
    """A decoder with the start's weights, or with fresh ones."""
    decoder = Decoder(decoder_config(CONFIG))
    if start:
        held = load_file(start / "model.safetensors")
        held["output.weight"] = held["embedding.weight"]
        decoder.load_state_dict(held)
    else:
        torch.manual_seed(0)
        for name, param in decoder.named_parameters():
            if param.dim() == 2:
                torch.nn.init.normal_(param, std=param.shape[1] ** -0.5)
            else:
                torch.nn.init.constant_(param, 1.0 if name.endswith("norm.weight") else 0.0)
    return decoder.to(device)


class Run:
    """A decoder in training, the running average of its weights, and its optimizers: a checkpoint."""

    def __init__(self, decoder: Decoder, rate: float) -> None:
        named = list(decoder.named_parameters())
        matrices = [p for n, p in named if p.dim() == 2 and n.startswith("layers.")]
        others = [p for n, p in named if p.dim() == 1 or not n.startswith("layers.")]
        self.decoder = decoder
        self.average = {n: p.detach().clone() for n, p in named}
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, rate),
            torch.optim.AdamW(others, 0.15 * rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.step_num = 0

    def step(self, windows: Tensor, rate: float) -> float:
        """One update at this fraction of the peak rate; returns the loss in nats a token."""
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        loss = loss_of(self.decoder, windows)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for name, param in self.decoder.named_parameters():
                self.average[name].lerp_(param, 0.005)
        self.step_num += 1
        return loss.item()

    def averaged(self) -> Decoder:
        """A decoder with the average of the weights of the last few hundred steps."""
        decoder = Decoder(self.decoder.config).to(self.decoder.output.weight.device)
        with torch.no_grad():
            for name, param in decoder.named_parameters():
                param.copy_(self.average[name])
        return decoder

    def save(self, folder: Path) -> None:
        """Write a checkpoint; a run that is killed while writing has the one before."""
        folder.mkdir(exist_ok=True)
        tensors = {f"weights.{n}": p.detach() for n, p in self.decoder.named_parameters()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{n}": t for n, t in state.items()}
        save_file(tensors, folder / "next", metadata={"step": str(self.step_num)})
        os.replace(folder / "next", folder / "state.safetensors")

    def resume(self, folder: Path) -> None:
        """Go on from the checkpoint, if there is one."""
        path = folder / "state.safetensors"
        if not path.exists():
            return
        device = str(self.decoder.output.weight.device)
        with safe_open(path, "pt", device=device) as file:
            self.step_num = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.no_grad():
            for name, param in self.decoder.named_parameters():
                param.copy_(tensors[f"weights.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
        for i, optimizer in enumerate(self.optimizers):
            held = optimizer.state_dict()
            for name, value in tensors.items():
                if name.startswith(f"optimizer.{i}."):
                    _, _, j, key = name.split(".")
                    held["state"].setdefault(int(j), {})[key] = value
            optimizer.load_state_dict(held)


def save_model(decoder: Decoder, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model folder that the server serves."""
    tensors = {name: param.detach().bfloat16() for name, param in decoder.named_parameters()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}, indent=2) + "\n")


def train(run: Run, data: Data, steps: int, batch: int, out: Path) -> None:
    """Train to the last step; log every 20, keep a checkpoint and the model folder every 500."""
    per_epoch = (len(data.train_ids) - 1) // CONTEXT // batch - 1
    device = run.decoder.output.weight.device
    windows, epoch, first, began = torch.empty(0), -1, run.step_num, time.monotonic()
    with (out / "log.jsonl").open("a") as log:
        for step in (bar := tqdm(range(first, steps), initial=first, total=steps, unit="step")):
            if epoch != step // per_epoch:
                epoch = step // per_epoch
                windows = windows_of(data.train_ids, epoch)
            at = step % per_epoch * batch
            nats = run.step(windows[at : at + batch].to(device), rate_at(step, steps))
            is_last = run.step_num == steps
            if run.step_num % 20 and not is_last:
                continue
            speed = (run.step_num - first) * batch * CONTEXT / (time.monotonic() - began)
            record = {"step": run.step_num, "nats": round(nats, 4), "tokens_per_s": round(speed)}
            if run.step_num % 500 == 0 or is_last:
                run.save(out / "checkpoint")
                averaged = run.averaged()
                record["bits_per_byte"] = round(bits_per_byte(averaged, data.valid_ids, data.valid_bytes), 4)
                save_model(averaged, data.tokenizer, out)
            bar.set_postfix(record)
            print(json.dumps(record), file=log, flush=True)


def draw_curve(log: Path, batch: int, picture: Path) -> None:
    """Draw the loss over the tokens seen, and the held-out bits a byte where they were measured."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    tokens = [record["step"] * batch * CONTEXT / 1e6 for record in records]
    nats = [record["nats"] for record in records]
    smooth = [float(np.mean(nats[max(0, i - 12) : i + 13])) for i in range(len(nats))]
    held_out = [(t, r["bits_per_byte"]) for t, r in zip(tokens, records, strict=True) if "bits_per_byte" in r]
    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axis.plot(tokens, nats, color="tab:blue", alpha=0.2, linewidth=0.7)
    axis.plot(tokens, smooth, color="tab:blue", label="training, nats a token")
    axis.set(xlabel="million tokens seen", ylabel="nats a token")
    other = axis.twinx()
    other.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", ms=3, label="held out, bits a byte")
    other.set_ylabel("bits a byte")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Prepare, train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a model folder to go on from (weights and tokenizer)")
    parser.add_argument("--steps", type=int, default=12_000, help="of --batch windows each")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"windows of {CONTEXT} tokens in a step")
    parser.add_argument("--rate", type=float, default=0.02, help="Muon's peak rate; AdamW's is 0.15 of it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = Data(args.data, args.start, args.out)
    run = Run(new_decoder(args.start, torch.device(args.device)), args.rate)
    run.resume(args.out / "checkpoint")
    train(run, data, args.steps, args.batch, args.out)
    draw_curve(args.out / "log.jsonl", args.batch, args.out / "loss.png")


if __name__ == "__main__":
    main()
