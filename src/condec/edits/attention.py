"""Edges of attention, cut before the softmax."""

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from condec.basis.errors import OptionError, SiteError
from condec.edits.base import Edit, checked_units, name_of, set_fields, set_site
from condec.network import Site

Edge = tuple[int, int]
"""From which token (the key), to which token (the query)."""

_SOFTMAX: Final = (F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax)
_ATTENTION_AXES: Final = (3, 4)
"""Axes of attention scores: [sample, query, key], or [sample, head, query, key]."""


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class CutAttention(Edit):
    r"""Cut edges of attention: the token ``to`` no longer reads from the token ``from``.

    With queries q, keys k and values v, and C the keys that are cut for query i,

    .. math:: o_i = \frac{\sum_{j \notin C_i} \exp(q_i^T k_j / \sqrt{d}) \, v_j}
                         {\sum_{j \notin C_i} \exp(q_i^T k_j / \sqrt{d})}

    Masks of the model stay in force.

    Parameters
    ----------
    site : Site, or its text
        The module that computes attention, once a call, by a function of torch or a softmax over
        the last axis of its scores, as in timm, torch.nn and Hugging Face.
    edges : sequence of (from, to)
        Numbers of tokens, from 0, as that call counts them: class and register tokens too.
    heads : sequence of int, optional
        By default all.

    Raises
    ------
    OptionError, SiteError
        Bad edges or heads; a site with ``:input`` or a layout; at the first forward pass, a token
        or head that is not there, a query of which all keys are cut, or not one attention a call.

    Examples
    --------
    >>> from condec.edits import edited
    >>> attention = torch.nn.MultiheadAttention(4, 1, batch_first=True).eval()
    >>> x = torch.ones(1, 3, 4)
    >>> with edited(attention, CutAttention(Site(""), edges=[(0, 1)])):
    ...     attention(x, x, x)[1][0, 1].tolist()
    [0.0, 0.5, 0.5]
    """

    within: ClassVar[bool] = True

    site: Site
    edges: tuple[Edge, ...]
    heads: tuple[int, ...] | None

    def __init__(
        self,
        site: Site | str,
        *,
        edges: Sequence[Sequence[int]],
        heads: Sequence[int] | None = None,
    ) -> None:
        who = set_site(self, site)
        if self.site.tap == "input" or self.site.units is not None:
            raise OptionError(
                f"{who}: expected the module that computes attention, without :input and layout, "
                f"for example {self.site.name!r}; heads are named by heads=[...]"
            )
        heads = None if heads is None else checked_units(f"{who}, heads", heads)
        set_fields(self, edges=_checked_edges(who, edges), heads=heads)

    def apply(self, activation: Tensor) -> Tensor:
        """Raise SiteError: edges are cut while the module runs."""
        raise SiteError(
            f"{name_of(self)} acts within the module and has no activation to change; run the "
            "model inside edited(model, ...)"
        )

    @contextmanager
    def during(self) -> Iterator[None]:
        """Cut the edges of the attention that is computed inside."""
        cut = _Cut(self)
        with cut:
            yield
        if cut.n_attentions != 1:
            raise SiteError(
                f"{name_of(self)}: expected a module that computes attention once; it did so "
                f"{cut.n_attentions} times. Name the attention itself, for example "
                "'blocks.3.attn'; attention in kernels of other libraries cannot be cut "
                "(Hugging Face: attn_implementation='sdpa' or 'eager')"
            )


class _Cut(TorchFunctionMode):
    """Cuts edges in each function of torch that computes attention, while it is on."""

    def __init__(self, edit: CutAttention) -> None:
        super().__init__()
        self.edit = edit
        self.n_attentions = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._whole(*args, **kwargs)
        if func in _SOFTMAX:
            return self._softmax(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **options: Any,
    ) -> Tensor:  # fmt: skip
        size = query.shape[-2], key.shape[-2]
        cut = self._edges(*size, query.shape[-3] if query.ndim > 3 else None, query.device)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # True takes part here, and is masked everywhere else
        mask = _additive(attn_mask, query, size if is_causal else None)
        self._check_open(_is_shut(mask), cut)
        cut_mask = torch.where(cut, -torch.inf, mask)
        return F.scaled_dot_product_attention(query, key, value, cut_mask, dropout_p, **options)

    def _whole(self, *args: Any, **kwargs: Any) -> Any:
        """`torch.nn.MultiheadAttention`: queries are [token, sample, feature], or unbatched."""
        given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
        given.apply_defaults()
        named = given.arguments
        query, n_heads = named["query"], named["num_heads"]
        size = query.shape[0], named["key"].shape[0]
        cut = self._edges(*size, n_heads, query.device)
        mask = _additive(named["attn_mask"], query, size if named["is_causal"] else None)
        if mask.ndim == 3:  # samples and heads are on one axis
            mask = mask.view(-1, n_heads, *size)
        shut, padding = _is_shut(mask), named["key_padding_mask"]
        if padding is not None:
            padding = _additive(padding, query)
            shut = shut | _is_shut(padding).view(-1, 1, 1, size[1])
        self._check_open(shut, cut)
        mask = torch.where(cut, -torch.inf, mask)
        if mask.ndim > 2:
            n_samples = query.shape[1] if query.ndim == 3 else 1
            mask = mask.expand(n_samples, n_heads, -1, -1).flatten(0, 1)
        # With is_causal the function would drop the mask.
        named |= {"attn_mask": mask, "key_padding_mask": padding, "is_causal": False}
        return F.multi_head_attention_forward(*given.args, **given.kwargs)

    def _softmax(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        scores = args[0] if args else kwargs.pop("input")
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if scores.ndim not in _ATTENTION_AXES or dim not in (-1, scores.ndim - 1):
            return func(scores, *args[1:], **kwargs)
        n_heads = scores.shape[1] if scores.ndim > 3 else None
        cut = self._edges(scores.shape[-2], scores.shape[-1], n_heads, scores.device)
        self._check_open(_is_shut(scores), cut)
        return func(scores.masked_fill(cut, -torch.inf), *args[1:], **kwargs)

    def _edges(
        self, n_queries: int, n_keys: int, n_heads: int | None, device: torch.device
    ) -> Tensor:
        """Return a mask of the cut edges, [query, key], or [head, query, key] for named heads."""
        self.n_attentions += 1
        who, edit = name_of(self.edit), self.edit
        for number, (key, query) in enumerate(edit.edges):
            if key >= n_keys or query >= n_queries:
                raise SiteError(
                    f"{who}: edges[{number}] goes from token {key} to token {query}, but there "
                    f"are tokens 0 to {n_keys - 1} to read from, 0 to {n_queries - 1} that read"
                )
        cut = torch.zeros(n_queries, n_keys, dtype=torch.bool)
        keys, queries = torch.tensor(edit.edges).T
        cut[queries, keys] = True
        if edit.heads is None:
            return cut.to(device)
        if n_heads is None:
            raise SiteError(
                f"{who}: this module computes attention with samples and heads on one axis, so "
                "heads cannot be told apart; leave heads out"
            )
        if edit.heads[-1] >= n_heads:
            raise SiteError(
                f"{who}: the module has {n_heads} heads, 0 to {n_heads - 1}; there is no head "
                f"{edit.heads[-1]}"
            )
        chosen = torch.zeros(n_heads, 1, 1, dtype=torch.bool)
        chosen[list(edit.heads)] = True
        return (chosen & cut).to(device)

    def _check_open(self, shut: Tensor, cut: Tensor) -> None:
        """Raise SiteError where a query that could read something now can read nothing."""
        lost = (shut | cut).all(-1) & ~(shut | torch.zeros_like(cut)).all(-1)
        queries = lost.flatten(0, -2).any(0) if lost.ndim > 1 else lost
        if bool(queries.any()):
            raise SiteError(
                f"{name_of(self.edit)}: all keys that token {int(queries.nonzero()[0])} may read "
                "are cut, so there is nothing to normalise over; leave it one, such as itself"
            )


def _is_shut(scores: Tensor) -> Tensor:
    """Return where a mask, or masked scores, let nothing pass; some models add a finite number."""
    return scores <= torch.finfo(scores.dtype).min / 2


def _additive(mask: Tensor | None, like: Tensor, causal: tuple[int, int] | None = None) -> Tensor:
    """Return a mask as numbers to add; without one that of causal attention, or 0."""
    if mask is None and causal:
        mask = torch.ones(causal, dtype=torch.bool, device=like.device).triu(1)
    if mask is None:
        return like.new_zeros(())
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def _checked_edges(who: str, edges: Sequence[Sequence[int]]) -> tuple[Edge, ...]:
    found: dict[Edge, None] = {}
    for edge in edges:
        try:
            key, query = (operator.index(token) for token in edge)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"{who}: edges must be pairs of tokens (from, to), for example [(0, 3)]; got "
                f"{edge!r}"
            ) from error
        if key < 0 or query < 0:
            raise OptionError(f"{who}: tokens count from 0; got the edge ({key}, {query})")
        found[key, query] = None
    if not found:
        raise OptionError(f"{who}: edges is empty; name at least one, or leave the edit out")
    return tuple(sorted(found))
