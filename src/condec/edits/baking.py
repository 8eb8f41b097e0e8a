"""Edits written into the weights of a copy of the model, where that is exact."""

import copy
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

from condec.attribution import prepare_inputs
from condec.basis.errors import ModelError, OptionError, SiteError
from condec.edits.base import Edit, checked_edits, name_of
from condec.edits.context import edited, is_edited
from condec.edits.directions import Project, Steer
from condec.edits.erasure import Erase
from condec.edits.replacement import Donors
from condec.edits.units import Replacing, Scale
from condec.network import alone, find_sites, original, refuse_training, run_model

_CONVS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: Final = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def baked(model: nn.Module, edits: Edit | Iterable[Edit], *, inputs: Tensor) -> nn.Module:
    r"""Return a copy of a model whose weights hold the edits, compared with them on a batch.

    An edit of units is :math:`h_u \leftarrow a_u h_u + c_u`. At the output of a linear map
    :math:`h = W x + b`, or of a normalisation, that is row u of W and entry u of b times
    :math:`a_u`, plus :math:`c_u` in b. At the input of a Linear it is column u of W times
    :math:`a_u`, and :math:`W_{\cdot u} c_u` more in b. An edit of directions,
    :math:`h \leftarrow M h + c`, makes W and b of a linear map M W and M b + c at its output,
    W M and b + W c at its input.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; left as it is.
    edits : Ablate, Preserve, Scale, Project, Erase or Steer(norm="own"), or several
        By numbers, in the order given, as under `edited`. Sites are outputs of Linear, Conv,
        BatchNorm, GroupNorm or LayerNorm, or inputs of Linear; of `Project` and `Erase` no
        normalisation and no grouped Conv.
    inputs : Tensor of shape [sample, ...]
        On these the outputs of the copy and of the edited model may differ by the root of the
        floating type's epsilon, of the largest output.

    Raises
    ------
    OptionError, SiteError, ModelError
        Another kind of edit, replacement or module; no weight, or no bias where one is needed; the
        outputs differ; the model is under `edited`, or in training mode.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> from condec.edits import Ablate
    >>> model, images = small_resnet(), torch.ones(2, 1, 5, 5)
    >>> edit = Ablate("stem", units=[0, 2], replacement=0.5)
    >>> with edited(model, edit):
    ...     logits = model(images)
    >>> torch.equal(baked(model, edit, inputs=images)(images), logits)
    True
    """
    edits, model = checked_edits("baked", edits), original(model)
    if is_edited(model):
        raise ModelError(
            f"baked: this {type(model).__name__} has edits in force, which a copy would keep for "
            "good; leave the context of edited first, and give baked all edits"
        )
    refuse_training(model)
    made = copy.deepcopy(model)
    # At an input, the last edit is nearest to the weights.
    at_inputs = [edit for edit in reversed(edits) if edit.site.tap == "input"]
    for edit in (*(edit for edit in edits if edit.site.tap == "output"), *at_inputs):
        _write(made, edit)
    _check_same(model, edits, made, inputs)
    return made


@torch.no_grad()
def _write(model: nn.Module, edit: Edit) -> None:
    """Write one edit into the weights of its module."""
    site, who = find_sites(model, edit.site)[0], f"baked: {name_of(edit)}"
    module = model.get_submodule(site.name)
    _check_alone(model, module, who)
    rows = site.tap == "output"
    if not isinstance(module, (nn.Linear, *_CONVS, *_NORMS) if rows else nn.Linear):
        raise SiteError(
            f"{who}: the {site.tap} of a {type(module).__name__} cannot be held by weights; "
            "expected the output of Linear, Conv, BatchNorm, GroupNorm or LayerNorm, or the input "
            "of Linear, for example the last normalisation before it"
        )
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or (isinstance(module, nn.LayerNorm) and weight.ndim > 1):
        raise SiteError(
            f"{who}: this {type(module).__name__} has no weight of its own with one entry a unit "
            "(affine=False, several axes, or a weight that is computed from others)"
        )
    n_units = len(weight) if rows else weight.shape[1]
    if isinstance(edit, Project | Erase):
        factor, shift = _mixing(edit, module, n_units)
    else:
        factor, shift = _map_of(edit, who, n_units)
    if bias is None and bool(shift.any()):
        raise SiteError(
            f"{who}: this {type(module).__name__} has no bias to hold the replacement; take "
            "replacement 0, or the normalisation after it"
        )
    factor, shift = factor.to(weight.device), shift.to(weight.device)
    if bias is not None and not rows:
        bias.copy_(bias.double() + weight.double() @ shift)
    elif bias is not None:
        own = factor @ bias.double() if factor.ndim > 1 else bias * factor.to(bias)
        bias.copy_(own + shift.to(own))
    if factor.ndim > 1:
        flat = weight.double().flatten(1)
        weight.copy_((factor @ flat if rows else flat @ factor).view_as(weight))
    else:
        along = (-1, *(1 for _ in weight.shape[1:])) if rows else (1, -1)
        weight.mul_(factor.to(weight).view(along))


def _mixing(edit: Project | Erase, module: nn.Module, n_units: int) -> tuple[Tensor, Tensor]:
    """Return the matrix and the shift of an edit of directions, float64."""
    if isinstance(module, _NORMS) or getattr(module, "groups", 1) > 1:
        raise SiteError(
            f"baked: {name_of(edit)}: the weights of a {type(module).__name__} (of several groups) "
            "act on each unit, or group of units, alone and cannot mix them; take the output of "
            "Linear or Conv without groups, or the input of Linear"
        )
    matrix, shift = edit.map()
    if len(shift) != n_units:
        raise OptionError(
            f"baked: {name_of(edit)}: directions must have one entry for each of the module's "
            f"{n_units} units; got {len(shift)}"
        )
    return matrix, shift


def _check_alone(model: nn.Module, module: nn.Module, who: str) -> None:
    """Raise SiteError where the weights serve other places too, which a batch may not show."""
    own = {id(part) for part in module._parameters.values() if part is not None}
    names = [
        name
        for name, other in model.named_modules(remove_duplicate=False)
        if other is module or any(id(part) in own for part in other._parameters.values())
    ]
    if len(names) > 1:
        raise SiteError(
            f"{who}: its weights are shared by {', '.join(names)}, so the edit would act there too"
        )


def _map_of(edit: Edit, who: str, n_units: int) -> tuple[Tensor, Tensor]:
    """Return the factor and the shift of every unit, float64."""
    if isinstance(edit, Scale):
        return edit.factors(n_units), torch.zeros(n_units).double()
    if isinstance(edit, Steer) and edit.norm == "own":
        shift = edit.strength * torch.tensor(edit.direction, dtype=torch.float64)
        if len(shift) != n_units:
            raise OptionError(
                f"{who}: the direction must have one entry for each of the module's {n_units} "
                f"units; got {len(shift)}"
            )
        return torch.ones(n_units).double(), shift
    if not isinstance(edit, Replacing):
        raise OptionError(
            "baked: only Ablate, Preserve, Scale, Project, Erase and Steer with norm='own' can be "
            f"held by weights; got "
            f"{edit!r}"
        )
    if isinstance(edit.replacement, Donors):
        raise OptionError(
            f"{who}: activations of other inputs differ from sample to sample, which no weight "
            "can hold; take a number, or one for every unit"
        )
    replaced = edit.replaced(n_units)
    return (~replaced).double(), torch.where(replaced, edit.numbers(n_units), 0.0)


@torch.no_grad()
def _check_same(model: nn.Module, edits: tuple[Edit, ...], made: nn.Module, inputs: Tensor) -> None:
    """Raise ModelError where the outputs of a baked model are not those under the edits."""
    inputs = prepare_inputs(model, inputs)
    with alone(model), edited(model, edits):
        expected = run_model(model, inputs)
    found, largest = run_model(made, inputs), float(expected.abs().max())
    apart = float((found - expected).abs().max())
    if not apart <= torch.finfo(expected.dtype).eps ** 0.5 * largest:
        raise ModelError(
            f"baked: the weights of {type(model).__name__} do not hold the edits: on these inputs "
            f"the output is off by {apart:.3g}, where the largest is {largest:.3g}. Weights hold "
            "all calls of a module, for units along their own axis (@features of Linear and "
            "LayerNorm, @channels of the others), and not where the model changes, shares or reads "
            "them elsewhere; use edited there"
        )
