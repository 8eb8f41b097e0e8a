"""Edits written into the weights of a copy of the model, where that is exact."""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError, OptionError, SiteError
from condec.basis.files import write_file, writing
from condec.edits.base import Edit, checked_edits, mask_of, name_of
from condec.edits.context import is_edited
from condec.edits.units import Ablate, Preserve, Scale
from condec.network import Layout, find_sites, original

_CONVS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYOUTS: Final[dict[type[nn.Module], tuple[Layout, bool]]] = {
    nn.Linear: ("features", False),
    nn.LayerNorm: ("features", False),
    nn.Conv1d: ("channels", False),
    nn.BatchNorm1d: ("channels", False),
    nn.GroupNorm: ("channels", False),
    nn.Conv2d: ("channels", True),
    nn.Conv3d: ("channels", True),
    nn.BatchNorm2d: ("channels", True),
    nn.BatchNorm3d: ("channels", True),
}
"""Which axis the weights of a module are along, and whether a site has that layout by default."""


def baked(model: nn.Module, edits: Edit | Iterable[Edit]) -> nn.Module:
    r"""Copy of a model whose weights hold the edits.

    An edit of units is :math:`h_u \leftarrow a_u h_u + c_u`. At the output of a linear map
    :math:`h = W x + b` that is row u of W and entry u of b times :math:`a_u`, plus :math:`c_u` in
    b; so for normalisation with weight and bias. At its input it is column u of W times
    :math:`a_u`, and :math:`W_{\cdot u} c_u` more in b. Zeros and constants are exact to the
    bit at an output; all else is equal but for the order of rounding. Of a module that is
    called more than once, all calls are edited.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is.
    edits : Ablate, Preserve or Scale, or several
        They act in the order given, as under `edited`. Replacements are numbers. Sites are
        outputs of Linear, Conv, BatchNorm, GroupNorm or LayerNorm, or inputs of Linear
        or Conv.

    Returns
    -------
    torch.nn.Module
        Of the same architecture: its ``state_dict`` has the same names and shapes. Of a model
        that `torch.compile` made, a copy of the module underneath.

    Raises
    ------
    OptionError
        Another kind of edit, or activations of other inputs for a replacement.
    SiteError
        There is no such site or unit; the edit would not be exact there: another kind of
        module, other axes, no bias where one is needed, weights that other places share, or
        one call among several.
    ModelError
        The model is under `edited`.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> from condec.control import edited
    >>> model, images = small_resnet(), torch.ones(2, 1, 5, 5)
    >>> edit = Ablate("stem", units=[0, 2], replacement=0.5)
    >>> with edited(model, edit):
    ...     logits = model(images)
    >>> torch.equal(baked(model, edit)(images), logits)
    True
    """
    edits, model = checked_edits("baked", edits), original(model)
    if is_edited(model):
        raise ModelError(
            f"baked: this {type(model).__name__} has edits in force, which a copy would keep for "
            "good; leave the context of edited first, and give baked all edits"
        )
    model = copy.deepcopy(model)
    maps = [_map_of(model, edit) for edit in edits]
    with torch.no_grad():
        for one in maps:
            if one.tap == "output":
                _bake_output(one)
        # What comes last at an input is nearest to the weights.
        for one in reversed(maps):
            if one.tap == "input":
                _bake_input(one)
    return model


def save_baked(model: nn.Module, edits: Edit | Iterable[Edit], file: str | Path) -> None:
    """Write the weights of `baked` as safetensors, with the edits among the metadata.

    Parameters
    ----------
    model, edits
        As for `baked`.
    file : path
        Ends in ``.safetensors``. The weights fit wherever the model's own do:
        ``load_model(name, weights=file)``, or ``load_state_dict``.

    Raises
    ------
    OptionError
        The file is named otherwise; or as in `baked`.
    SiteError
        As in `baked`.
    ModelError
        As in `baked`.
    StoreError
        It cannot be written.
    """
    from safetensors.torch import save

    file = Path(file)
    if file.suffix != ".safetensors":
        raise OptionError(f"save_baked: expected a file name.safetensors; got {file}")
    edits = checked_edits("save_baked", edits)
    state = baked(model, edits).state_dict()
    # A copy each: the format has no tensors that share memory.
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
               for name, tensor in state.items()}  # fmt: skip
    plain = json.dumps([edit.to_dict() for edit in edits])
    with writing(f"save_baked: {file}"):
        write_file(file, save(tensors, metadata={"edits": plain}))


@dataclass(frozen=True, eq=False)
class _UnitMap:
    """An edit as factor and shift of every unit, and the module that is to hold it."""

    edit: Edit
    module: nn.Module
    tap: Literal["output", "input"]
    factor: Tensor
    shift: Tensor


def _map_of(model: nn.Module, edit: Edit) -> _UnitMap:
    if not isinstance(edit, Ablate | Preserve | Scale):
        raise OptionError(
            "baked: only edits that replace or scale units (Ablate, Preserve, Scale) can be held "
            f"by weights; got {edit!r}"
        )
    site = find_sites(model, edit.site)[0]
    module = model.get_submodule(site.name)
    _check_module(edit, module)
    _check_alone(model, edit, module)
    n_units = _n_units(module, site.tap)
    named = mask_of(edit, edit.units, n_units)
    if isinstance(edit, Scale):
        factor = torch.where(named, edit.factor, 1.0)
        return _UnitMap(edit, module, site.tap, factor, torch.zeros(n_units))
    if not isinstance(edit.replacement, float | tuple):
        raise OptionError(
            f"baked: {name_of(edit)}: activations of other inputs differ from sample to sample, "
            "which no weight can hold; take a number, or one for every unit"
        )
    if isinstance(edit.replacement, tuple) and len(edit.replacement) != n_units:
        raise OptionError(
            f"baked: {name_of(edit)}: replacement must be one number, or one for each of the "
            f"site's {n_units} units; got {len(edit.replacement)}"
        )
    values = torch.tensor(edit.replacement, dtype=torch.float64).expand(n_units)
    replaced = named if isinstance(edit, Ablate) else ~named
    shift = torch.where(replaced, values, 0.0)
    return _UnitMap(edit, module, site.tap, (~replaced).double(), shift)


def _check_module(edit: Edit, module: nn.Module) -> None:
    """Raise SiteError where the units of the site are not rows or columns of weights."""
    who, site = f"baked: {name_of(edit)}", edit.site
    kind = next((k for k in type(module).__mro__ if k in _LAYOUTS), None)
    what = type(module).__name__
    # A class that goes on otherwise (a norm with an activation in it) is not its parent.
    if kind is not None and type(module).forward is not kind.forward:
        kind, what = None, f"{what} of {type(module).__module__}, which computes in its own way,"
    if kind is None or (site.tap == "input" and kind not in (nn.Linear, *_CONVS)):
        raise SiteError(
            f"{who}: the {site.tap} of a {what} cannot be held by weights "
            "exactly; expected the output of Linear, Conv, BatchNorm, GroupNorm or LayerNorm, or "
            "the input of Linear or Conv, for example the last normalisation before it"
        )
    weight = module._parameters.get("weight")
    if weight is None:
        raise SiteError(
            f"{who}: this {type(module).__name__} has no weight of its own (affine=False, or the "
            "weight is computed from others)"
        )
    if isinstance(module, nn.LayerNorm) and weight.ndim > 1:
        raise SiteError(f"{who}: this LayerNorm is over {weight.ndim} axes; expected the last one")
    layout, by_default = _LAYOUTS[kind]
    given = None if site.units is None else site.units.layout
    some = site.units is not None and site.units.tokens is not None
    if some or (given != layout and not (given is None and by_default)):
        raise SiteError(
            f"{who}: the weights of {type(module).__name__} are along {layout}, of all tokens; "
            f"write {site.name}{':input' if site.tap == 'input' else ''}@{layout} if these are "
            "the units"
        )


def _check_alone(model: nn.Module, edit: Edit, module: nn.Module) -> None:
    """Raise SiteError where the weights serve other places or calls too."""
    who = f"baked: {name_of(edit)}"
    if edit.site.call is not None:
        raise SiteError(f"{who}: weights serve all calls of a module, and cannot hold one call")
    names = [n for n, m in model.named_modules(remove_duplicate=False) if m is module]
    own = {id(parameter) for parameter in module._parameters.values() if parameter is not None}
    names += [
        name
        for name, other in model.named_modules()
        if other is not module and any(id(p) in own for p in other._parameters.values())
    ]
    if len(names) > 1:
        raise SiteError(
            f"{who}: its weights are shared by {', '.join(names)}, so the edit would act there too"
        )


def _n_units(module: nn.Module, tap: str) -> int:
    weight = _weight(module)
    if tap == "output":
        return len(weight)
    return weight.shape[1] * (module.groups if isinstance(module, _CONVS) else 1)


def _bake_output(one: _UnitMap) -> None:
    weight, bias = _weight(one.module), _bias(one)
    _scale(weight, one.factor.view(-1, *(1 for _ in weight.shape[1:])))
    if bias is not None:
        _scale(bias, one.factor)
        bias.add_(one.shift.to(bias))


def _bake_input(one: _UnitMap) -> None:
    weight, bias = _weight(one.module), _bias(one)
    padded = isinstance(one.module, _CONVS) and one.module.padding_mode == "zeros"
    if padded and _is_padded(one.module) and bool(one.shift.any()):
        raise SiteError(
            f"baked: {name_of(one.edit)}: this {type(one.module).__name__} pads with zeros, where "
            "the replacement would stand in weights but not under edited; take replacement 0"
        )
    groups = one.module.groups if isinstance(one.module, _CONVS) else 1
    # Every group of outputs reads its own inputs.
    rows = len(weight) // groups
    laid = (
        values.view(groups, 1, -1).expand(groups, rows, -1).reshape(
            len(weight), -1, *(1 for _ in weight.shape[2:])
        )
        for values in (one.factor, one.shift)
    )  # fmt: skip
    factor, shift = laid
    if bias is not None and bool(one.shift.any()):
        added = (weight.double() * shift.to(weight.device)).flatten(1).sum(1)
        bias.copy_(bias.double() + added)
    _scale(weight, factor)


def _is_padded(module: nn.Module) -> bool:
    padding: Any = module.padding
    return padding == "same" or (padding != "valid" and any(padding))


def _scale(values: Tensor, factor: Tensor) -> None:
    """Multiply in place; untouched to the bit where the factor is 1, and 0 where it is 0."""
    factor = factor.to(device=values.device, dtype=torch.float64)
    scaled = (values.double() * factor).to(values.dtype)
    values.copy_(torch.where(factor == 0, torch.zeros_like(scaled), scaled))


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.get_parameter("weight")
    return weight


def _bias(one: _UnitMap) -> Tensor | None:
    bias: Tensor | None = one.module._parameters.get("bias")
    if bias is None and bool(one.shift.any()):
        raise SiteError(
            f"baked: {name_of(one.edit)}: this {type(one.module).__name__} has no bias to hold the "
            "replacement; take replacement 0, or the normalisation after it"
        )
    return bias
