"""Presets: usual sites of known architectures; their numbers of heads, and kinds of tokens.

A preset names sites that are usual for a kind of network, and finds them by the classes of its
blocks, so that it is the same text for torchvision, timm and Hugging Face:

>>> from torch import nn
>>> class BasicBlock(nn.Identity):
...     pass
>>> model = nn.Sequential(nn.Conv2d(1, 2, 3), BasicBlock(), BasicBlock())
>>> presets_of(model)
('resnet_blocks',)
>>> preset_sites(model, "resnet_blocks")
('1', '2')
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from condec.basis.checks import nearest
from condec.basis.errors import OptionError, SiteError
from condec.network.units import Span

KINDS: Final = ("class", "register", "patch")
"""Kinds of tokens."""

_RESNET: Final = (
    "BasicBlock", "Bottleneck", "PreActBasic", "PreActBottleneck", "ResNetBasicLayer",
    "ResNetBottleNeckLayer",
)  # fmt: skip
_VIT: Final = (
    "EncoderBlock", "Block", "ResPostBlock", "EvaBlock", "LayerScaleBlock", "ViTLayer",
    "DeiTLayer", "BeitLayer", "Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer",
)  # fmt: skip
_SWIN: Final = (
    "SwinTransformerBlock", "SwinTransformerBlockV2", "SwinTransformerV2Block", "SwinLayer",
    "Swinv2Layer",
)  # fmt: skip
_CONVNEXT: Final = ("CNBlock", "ConvNeXtBlock", "ConvNextLayer", "ConvNextV2Layer")
_MOBILENET: Final = (
    "InvertedResidual", "DepthwiseSeparableConv", "UniversalInvertedResidual",
    "MobileNetV2InvertedResidual",
)  # fmt: skip
# Also every class whose name ends with "DecoderLayer" and which attends to itself only.
_LANGUAGE: Final = ("GPT2Block", "GPTNeoXLayer", "GPTNeoBlock", "GPTJBlock", "BloomBlock")

# The linear map that reads the hidden units of the MLP, or all heads side by side.
_VIT_MLP: Final = ("mlp.fc2", "mlp.w3", "mlp.3", "mlp.down_proj", "output.dense")
_VIT_ATTENTION: Final = (
    "attn.proj", "self_attention.out_proj", "attention.o_proj", "attention.output.dense",
)  # fmt: skip
_LM_MLP: Final = (
    "mlp.c_proj", "mlp.down_proj", "mlp.fc2", "mlp.dense_4h_to_h", "mlp.fc_out", "fc2",
)  # fmt: skip
_LM_ATTENTION: Final = (
    "attn.c_proj", "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense",
    "attention.dense", "attn.out_proj", "attn.attention.out_proj", "self_attention.dense",
)  # fmt: skip

_CROSS: Final = ("encoder_attn", "multihead_attn", "cross_attn", "crossattention")
_KEY_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "kv_heads")
"""Heads of keys and values, where several heads of queries share one."""
_HEAD_SIZES: Final = (
    "head_dim", "attention_head_size", "key_value_proj_dim", "d_kv", "dim_head", "d_head",
)  # fmt: skip
_WIDTHS: Final = ("embed_dim", "hidden_size", "d_model", "n_embd", "dim")
_HEAD_COUNTS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
_CLASS_TOKENS: Final = (
    "cls_token", "class_token", "class_embedding", "dist_token", "distillation_token",
)  # fmt: skip
_REGISTERS: Final = ("reg_token", "register_tokens", "storage_tokens")
# Their class token joins the patches only in the last blocks.
_LATE_CLASS: Final = ("Cait", "ConVit", "Xcit")


@dataclass(frozen=True, slots=True)
class Preset:
    """Sites (`about`) that are usual for a kind of network, whose `blocks` are of these classes.

    A site is the input of the first module of `inside` that a block has; without any, what the
    block returns. Units are as after ``@``; an empty layout is read off the rank.
    """

    about: str
    blocks: tuple[str, ...]
    inside: tuple[str, ...] = ()
    layout: str = ""


PRESETS: Final[dict[str, Preset]] = {
    "resnet_blocks": Preset("outputs of residual blocks", _RESNET),
    # Some (SAM) hold their tokens as [y, x, feature], which the rank alone would take for channels.
    "vit_blocks": Preset("outputs of transformer blocks", _VIT, layout="features"),
    "vit_mlp_neurons": Preset("hidden units of the MLPs", _VIT, _VIT_MLP, "features"),
    "vit_attention_channels": Preset(
        "channels of the attention, all heads", _VIT, _VIT_ATTENTION, "features"
    ),
    "vit_heads": Preset("attention heads", _VIT, _VIT_ATTENTION, "heads"),
    "swin_blocks": Preset("outputs of Swin blocks", _SWIN, layout="features"),
    "convnext_blocks": Preset("outputs of ConvNeXt blocks", _CONVNEXT),
    "mobilenet_blocks": Preset("outputs of inverted residual blocks", _MOBILENET),
    "lm_blocks": Preset("outputs of a language model's blocks", _LANGUAGE),
    "lm_mlp_neurons": Preset("hidden units of a language model's MLPs", _LANGUAGE, _LM_MLP),
    "lm_heads": Preset("attention heads of a language model", _LANGUAGE, _LM_ATTENTION, "heads"),
}
"""Every preset by its name."""


def presets_of(model: nn.Module) -> tuple[str, ...]:
    """List the presets that fit a model; ``find_sites(model, "preset:NAME")`` takes one."""
    return tuple(name for name, preset in PRESETS.items() if any(_matches(model, preset)))


def preset_sites(model: nn.Module, name: str, layout: str | None = None) -> tuple[str, ...]:
    """List patterns of a preset's sites in a model, in the order of its modules.

    A `layout` replaces the preset's own. OptionError where there is no such preset, SiteError
    where it does not fit the model.
    """
    preset = PRESETS.get(name)
    if preset is None:
        near = nearest(name, PRESETS)[0]
        raise OptionError(
            f"there is no preset {name!r}; expected one of {', '.join(PRESETS)}. Did you mean "
            f"{near!r}?"
        )
    found = tuple(_matches(model, preset))
    if not found:
        fit = presets_of(model)
        others = f"presets that fit: {', '.join(fit)}" if fit else "no preset fits it"
        why = ""
        hidden = any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
        if preset.inside == _VIT_ATTENTION and hidden:
            why = (
                ". Its nn.MultiheadAttention never runs its projections as modules; "
                "condec.expose_attention(model) gives an equal model that does"
            )
        raise SiteError(
            f"preset {name!r} ({preset.about}) does not fit {type(model).__name__}; {others}{why}"
        )
    layout = preset.layout if layout is None else layout
    tap = ":input" if preset.inside else ""
    return tuple(f"{site}{tap}{'@' if layout else ''}{layout}" for site in found)


def heads_above(model: nn.Module, name: str, tap: str) -> int:
    """Read the number of heads off the nearest module around `name`, or raise SiteError.

    What a module makes may hold fewer heads than there are of queries (grouped-query attention),
    which its width tells.
    """
    for module in _outwards(model, name):
        heads = _said(module, _HEAD_COUNTS)
        if heads is not None:
            made = next(_outwards(model, name))
            if tap == "input" and isinstance(made, nn.Linear):
                return heads  # all heads side by side
            return _heads_made(name, made, module, heads)
    raise SiteError(
        f"{name}: no enclosing module says how many heads it has (looked for "
        f"{', '.join(_HEAD_COUNTS)}); write the number, for example '{name}@heads(12)'"
    )


def _heads_made(name: str, made: nn.Module, attention: nn.Module, heads: int) -> int:
    """Count the heads in what a module makes, of an attention with so many heads of queries."""
    width, linears = _width(made), [m for m in attention.modules() if isinstance(m, nn.Linear)]
    size, shared = _said(attention, _HEAD_SIZES), _said(attention, _KEY_HEADS) or heads
    whole = _said(attention, _WIDTHS)
    if size is None and whole is not None:
        size = whole // heads
    is_alone = shared == heads and all(m.out_features == width for m in linears)
    if width is None or (size is None and is_alone):
        return heads
    for count in (heads, shared):
        if size is not None and width == count * size:
            return count
    sizes = "heads of unknown size" if size is None else f"heads of {size}"
    keys = "" if shared == heads else f" (of keys and values {shared})"
    raise SiteError(
        f"{name}: it makes {width} features, and {type(attention).__name__} has {heads}{keys} "
        f"{sizes}, so which features are a head's cannot be told (queries, keys and values side by "
        f"side?); write the number if each head's are together, for example '{name}@heads({heads})'"
    )


def _width(module: nn.Module) -> int | None:
    """Return the size of the last axis of what a linear map or a norm makes."""
    if isinstance(module, nn.Linear):
        return module.out_features
    weight = getattr(module, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 1 else None


def _said(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """Return the first whole number that a module, or its configuration, has under a name."""
    holders = (module, getattr(module, "config", None))
    values = (getattr(holder, name, None) for holder in holders for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)


def tokens_above(model: nn.Module, name: str, kind: str) -> Span:
    """Find the tokens of a kind, from the nearest module around `name` that holds them.

    The order is that of all vision transformers known here: class token (and that of
    distillation), registers, patches. SiteError where no module says, or there is no such token.
    """
    for module in _outwards(model, name):
        if type(module).__name__ in _LATE_CLASS:
            raise SiteError(
                f"{name}: in {type(module).__name__} the class token joins the patches late, so "
                f"tokens are not alike at all sites; write them out, for example '[1:]'"
            )
        counts = _token_counts(module)
        if counts is None:
            continue
        first, registers = counts
        prefix = first + registers
        spans: dict[str, Span] = {
            "class": (0, first), "register": (first, prefix), "patch": (prefix, None),
        }  # fmt: skip
        there = [k for k, (a, b) in spans.items() if a != b]
        if kind not in there:
            raise SiteError(
                f"{name}: {type(module).__name__} has no {kind} token; it has {', '.join(there)}"
            )
        return spans[kind]
    raise SiteError(
        f"{name}: no enclosing module says which tokens are {' or '.join(KINDS)}; write them as a "
        f"slice, for example '{name}@features[1:]' for all but the first"
    )


def _matches(model: nn.Module, preset: Preset) -> Iterator[str]:
    """Yield names of a preset's sites; those that never run as modules are left out."""
    for name, block in _outermost(model, preset):
        if not preset.inside:
            yield name
            continue
        inside = dict(block.named_modules())
        site = next((part for part in preset.inside if part in inside), None)
        if site and not isinstance(inside.get(site.rpartition(".")[0]), nn.MultiheadAttention):
            yield f"{name}.{site}"


def _outermost(model: nn.Module, preset: Preset) -> Iterator[tuple[str, nn.Module]]:
    """Yield blocks of a preset that lie in no other one; the model itself is none."""
    last = None
    for name, module in model.named_modules():
        if last is not None and name.startswith(f"{last}."):
            continue
        if name and _is_block(module, preset):
            last = name
            yield name, module


def _is_block(module: nn.Module, preset: Preset) -> bool:
    kind = type(module).__name__
    if preset.blocks is _LANGUAGE and kind.endswith("DecoderLayer"):
        # OPT and XGLM hold the two layers of their MLP themselves.
        has_mlp = hasattr(module, "mlp") or (hasattr(module, "fc1") and hasattr(module, "fc2"))
        return has_mlp and not any(hasattr(module, cross) for cross in _CROSS)
    if kind == "Block":
        # As many networks call theirs: those of timm's vision transformers hold these two, and
        # their features lie last (Visformer has convolutions).
        inside = dict(module.named_modules())
        is_conv = isinstance(inside.get("attn.proj"), nn.modules.conv._ConvNd)
        return kind in preset.blocks and {"attn.proj", "mlp"} <= inside.keys() and not is_conv
    return kind in preset.blocks


def _token_counts(module: nn.Module) -> tuple[int, int] | None:
    """Count class tokens (and of distillation), and of registers, if a module knows."""
    for holder in (module, *module.children()):
        tokens = dict(holder.named_parameters(recurse=False))
        first, registers = _count(tokens, _CLASS_TOKENS), _count(tokens, _REGISTERS)
        if first or registers:
            return first, registers
    prefix = getattr(module, "num_prefix_tokens", None)
    # Attention modules of timm know a number of tokens as well, and not which they are.
    return (prefix, 0) if isinstance(prefix, int) and hasattr(module, "patch_embed") else None


def _count(tokens: dict[str, nn.Parameter], names: tuple[str, ...]) -> int:
    return sum(math.prod(tokens[name].shape[:-1]) for name in names if name in tokens)


def _outwards(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the module of that name and those around it, the nearest first."""
    chain = itertools.accumulate(name.split(".") if name else [], getattr, initial=model)
    yield from reversed([*chain])  # `get_submodule` knows no scripted ones
