"""Attention that runs its projections as modules, so that sites can be put there."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExposedAttention(nn.Module):
    """The same numbers as a `torch.nn.MultiheadAttention`, by two linear modules.

    `torch.nn.MultiheadAttention` hands the weights of its projections to a function, so its
    ``out_proj`` never runs and has no input to record. Here ``out_proj`` is given all heads
    side by side, [sample, token, head * dim], and ``in_proj`` returns queries, keys and values
    (where all three are of the same tensor). Parameters are shared, not copied.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = attention.embed_dim
        self.num_heads = attention.num_heads
        self.batch_first = attention.batch_first
        self.dropout = attention.dropout
        # torch.nn.TransformerEncoderLayer asks, and keeps off its fused path, which would go
        # around every module in it.
        self._qkv_same_embed_dim = False
        has_bias = attention.in_proj_bias is not None
        self.in_proj = nn.Linear(self.embed_dim, 3 * self.embed_dim, bias=has_bias, device="meta")
        self.in_proj.weight = attention.in_proj_weight
        self.in_proj.bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.train(attention.training)

    @property
    def in_proj_weight(self) -> Tensor:
        """Return what `torch.nn.MultiheadAttention` has under this name."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Return what `torch.nn.MultiheadAttention` has under this name."""
        return self.in_proj.bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return attended values and, if asked for, the weights, as the original does."""
        parts = self._project(query, key, value)
        # From [sample, token, head * dim] to [sample, head, token, dim].
        q, k, v = (x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in parts)
        mask = self._mask(key_padding_mask, attn_mask, q)
        if mask is None and is_causal and need_weights:
            size = q.shape[2], k.shape[2]
            mask = torch.full(size, -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = F.dropout(weights, p) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            causal = is_causal and mask is None
            mixed = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=causal)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if query.ndim == 2:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key and key is value:
            projected: Tensor = self.in_proj(self._sample_first(query))
            return projected.chunk(3, -1)
        weights = self.in_proj.weight.chunk(3)
        biases = (None,) * 3 if self.in_proj.bias is None else self.in_proj.bias.chunk(3)
        parts = zip((query, key, value), weights, biases, strict=True)
        return tuple(F.linear(self._sample_first(x), w, b) for x, w, b in parts)

    def _sample_first(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Make one mask to add to the scores, [sample or 1, head or 1, query, key]."""
        total = None
        if mask is not None:
            total = _additive(mask, q)
            if mask.ndim == 3:
                total = total.view(-1, self.num_heads, *mask.shape[1:])
        if padding is not None:
            padding = padding if padding.ndim == 2 else padding[None]
            added = _additive(padding, q)[:, None, None, :]
            total = added if total is None else total + added
        return total


def expose_attention(model: nn.Module) -> nn.Module:
    """Make a model equal to another, in which attention runs its projections as modules.

    Every `torch.nn.MultiheadAttention` is replaced by an `ExposedAttention`, so that
    ``"**.out_proj:input@heads"`` finds the attention heads; one with a bias for keys and values,
    or with other sizes of these, stays. Models of torchvision that `load_model` returns are
    exposed already.

    A `torch.nn.TransformerEncoder` runs there as it does with gradients: without nested tensors, so
    that padded positions hold numbers and not zeros. Whoever averages over positions leaves them
    out, in the original too.

    Returns
    -------
    torch.nn.Module
        A copy that shares parameters and buffers. In its ``state_dict``, ``in_proj_weight``
        and ``in_proj_bias`` are ``in_proj.weight`` and ``in_proj.bias``.
    """
    shared: dict[int, Any] = {id(p): p for p in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared)
    if isinstance(model, nn.MultiheadAttention) and can_be_exposed(model):
        return ExposedAttention(model)
    # A module that stands in several places is replaced by one in all of them.
    made: dict[nn.Module, ExposedAttention] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention) and can_be_exposed(child):
                made.setdefault(child, ExposedAttention(child))
                setattr(parent, name, made[child])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            # It would pack padded batches into nested tensors for layers that are fused.
            module.use_nested_tensor = module.enable_nested_tensor = False
    return model


def can_be_exposed(attention: nn.MultiheadAttention) -> bool:
    """Tell whether an attention is of the usual kind: one size, no bias of keys and values."""
    return (
        attention._qkv_same_embed_dim
        and attention.bias_k is None
        and attention.bias_v is None
        and not attention.add_zero_attn
    )


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
