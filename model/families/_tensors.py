"""From the tensors of a checkpoint to ours: new names, and parts where several are stored as one.

Everything here is a view: it works on tensors without memory, and costs none. A tensor whose shape cannot be
cut into its parts is torch's `RuntimeError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

from model.config import DecoderConfig

Parts = Iterable[tuple[str, Tensor]]  # (module, the part of the stored tensor that is its)
# Where a stored module's tensors go: a module of ours, several, or nowhere, if the name is empty.
Place = str | Callable[[Tensor, DecoderConfig], Parts]

# Constants that older writers stored beside the weights.
_BUFFERS = (".rotary_emb.inv_freq", ".masked_bias")

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")

LLAMA: Mapping[str, Place] = {
    "embed_tokens": "embedding",
    "layers.*.input_layernorm": "layers.*.attention_norm",
    "layers.*.self_attn.q_proj": "layers.*.attention.wq",
    "layers.*.self_attn.k_proj": "layers.*.attention.wk",
    "layers.*.self_attn.v_proj": "layers.*.attention.wv",
    "layers.*.self_attn.o_proj": "layers.*.attention.wo",
    "layers.*.post_attention_layernorm": "layers.*.feed_forward_norm",
    "layers.*.mlp.gate_proj": "layers.*.feed_forward.w1",
    "layers.*.mlp.up_proj": "layers.*.feed_forward.w3",
    "layers.*.mlp.down_proj": "layers.*.feed_forward.w2",
    "norm": "final_norm",
    "lm_head": "output",
}
EXPERTS: Mapping[str, Place] = {
    "layers.*.mlp.gate": "layers.*.feed_forward.router",
    "layers.*.mlp.experts.*.gate_proj": "layers.*.feed_forward.experts.*.w1",
    "layers.*.mlp.experts.*.up_proj": "layers.*.feed_forward.experts.*.w3",
    "layers.*.mlp.experts.*.down_proj": "layers.*.feed_forward.experts.*.w2",
    "layers.*.mlp.shared_expert.gate_proj": "layers.*.feed_forward.shared_expert.w1",
    "layers.*.mlp.shared_expert.up_proj": "layers.*.feed_forward.shared_expert.w3",
    "layers.*.mlp.shared_expert.down_proj": "layers.*.feed_forward.shared_expert.w2",
    "layers.*.mlp.shared_expert_gate": "layers.*.feed_forward.shared_gate",
}
HEAD_NORMS: Mapping[str, Place] = {
    "layers.*.self_attn.q_norm": "layers.*.attention.q_norm",
    "layers.*.self_attn.k_norm": "layers.*.attention.k_norm",
}


def translated(
    table: Mapping[str, Place], prefix: str, stored_name: str, tensor: Tensor, config: DecoderConfig
) -> Iterator[tuple[str, Tensor]]:
    """The parameters that one stored tensor becomes.

    table: module, or tensor -> place; `*` stands for a number, the same on both sides. prefix: what may
    stand before every name. A name that is not in the table comes out empty, as no parameter is called.
    """
    if stored_name.endswith(_BUFFERS):
        return
    name = stored_name.removeprefix(prefix)
    numbers = _NUMBER.findall(name)
    pattern = _NUMBER.sub("*", name)
    module, dot, leaf = pattern.rpartition(".")
    place = table.get(pattern)
    ending = ""
    if place is None:
        place, ending = table.get(module), dot + leaf
    if place is None:
        yield "", tensor
    elif place:
        for ours, part in [(place, tensor)] if isinstance(place, str) else place(tensor, config):
            found = _numbered(ours, numbers) + ending
            if found == "output.weight" and config.is_output_tied:
                continue  # some store it although it is the embedding's
            yield found, part


def _numbered(ours: str, numbers: list[str]) -> str:
    for number in numbers:
        ours = ours.replace("*", number, 1)
    return ours


def transposed(place: Place) -> Place:
    """Of a linear layer whose weight is stored as [in, out] (GPT-2's Conv1D)."""

    def parts(tensor: Tensor, config: DecoderConfig) -> Parts:
        turned = tensor.t() if tensor.dim() == 2 else tensor
        return [(place, turned)] if isinstance(place, str) else place(turned, config)

    return parts


def queries_keys_values(tensor: Tensor, config: DecoderConfig) -> Parts:
    """All queries' rows, then all keys', then all values'."""
    key_rows = config.num_kv_heads * config.head_dim
    sizes = (config.num_heads * config.head_dim, key_rows, key_rows)
    return zip(_QKV, tensor.split(sizes), strict=True)


def queries_keys_values_by_group(tensor: Tensor, config: DecoderConfig) -> Parts:
    """For each key head: the rows of its query heads, of the key, of the value (GPT-NeoX, BLOOM, Falcon)."""
    group, rest = config.num_heads // config.num_kv_heads, tensor.shape[1:]
    grouped = tensor.view(config.num_kv_heads, group + 2, config.head_dim, *rest)
    parts = (part.reshape(-1, *rest) for part in grouped.split((group, 1, 1), 1))
    return zip(_QKV, parts, strict=True)


def each_head(module: str) -> Place:
    """The rows of all heads, one for each: [num_heads, head_dim]."""
    return lambda tensor, config: ((f"{module}.norms.{head}", row) for head, row in enumerate(tensor))


def gate_and_up(tensor: Tensor, config: DecoderConfig) -> Parts:
    """The rows of W1, then those of W3."""
    return zip(("layers.*.feed_forward.w1", "layers.*.feed_forward.w3"), tensor.chunk(2), strict=True)


_QKV = ("layers.*.attention.wq", "layers.*.attention.wk", "layers.*.attention.wv")
