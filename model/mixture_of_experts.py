"""A mixture of experts in the place of a feed-forward network: a router sends each token to a few of many.

Knows nothing of other positions: whom a token shares an expert with changes none of its bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import DecoderConfig, Experts
from model.feed_forward import FeedForward, sigmoid
from model.linear import Linear


class MixtureOfExperts(nn.Module):
    """The sum of the chosen experts' outputs, by the router's weights (Shazeer et al. 2017).

    A shared expert, where there is one, sees every token, behind a gate of its own (Qwen 1.5 MoE).
    """

    def __init__(self, config: DecoderConfig, experts: Experts) -> None:
        super().__init__()
        self.num_chosen = experts.num_chosen
        self.is_renormalized = experts.is_renormalized
        self.router = Linear(config.hidden_size, experts.num_experts, experts.has_router_bias)
        self.experts = nn.ModuleList(
            FeedForward(config, experts.feed_forward_size) for _ in range(experts.num_experts)
        )
        has_shared = experts.shared_size is not None
        self.shared_expert = FeedForward(config, experts.shared_size) if has_shared else None
        self.shared_gate = Linear(config.hidden_size, 1, has_bias=False) if has_shared else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [num_tokens, hidden_size] -> the same shape. Sums in float32, in the order of the experts."""
        chosen, weights = self._route(x)
        out = torch.zeros_like(x, dtype=torch.float32)
        for index in chosen.unique().tolist():
            rows, places = (chosen == index).nonzero(as_tuple=True)
            weight = weights[rows, places].unsqueeze(1)
            out.index_add_(0, rows, self.experts[index](x[rows]).float() * weight)
        if self.shared_expert is not None and self.shared_gate is not None:
            out += sigmoid(self.shared_gate(x).float()) * self.shared_expert(x).float()
        return out.to(x.dtype)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token and their weights, best first, ties by lowest number.

        x: [num_tokens, hidden_size] -> two of [num_tokens, num_chosen], integers and float32.
        """
        scores = self.router(x).float()
        # A softmax written out, like the activations, of operations that keep a row's bits.
        shares = torch.exp(scores - scores.amax(-1, keepdim=True))
        shares = shares / shares.sum(-1, keepdim=True)
        weights, chosen = torch.sort(shares, descending=True, stable=True)
        weights, chosen = weights[:, : self.num_chosen], chosen[:, : self.num_chosen]
        if self.is_renormalized:
            weights = weights / weights.sum(-1, keepdim=True)
        return chosen, weights
