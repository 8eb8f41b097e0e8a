"""Random weights: what the same network shows had it never been trained.

Adebayo et al. 2018 ("Sanity checks for saliency maps"): all weights are drawn again, or only those
from one module on, the output first.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from condec.basis.checks import nearest
from condec.basis.errors import DataError, ModelError, OptionError
from condec.network import eager, original


def randomize(
    model: nn.Module,
    *,
    seed: int = 0,
    from_module: str | None = None,
    inputs: Tensor | Iterable[Tensor] | None = None,
) -> nn.Module:
    """Copy a model, with its weights drawn again, all of them or from one module on.

    What is drawn depends on the seed and the module's name alone, so that cascades share their
    last modules. The caller's random numbers and the model stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
    seed : int
    from_module : str, optional
        Name of a module, as in ``model.named_modules()``: it and all that are registered
        after it are drawn again, and weights that they share. None: all.
    inputs : Tensor of shape [sample, ...], or several of them, optional
        As the model takes them: the statistics of batch normalization among the modules drawn
        are the mean over the tensors of each one's. Where not given, means are 0 and variances
        1. An iterator is not drawn on where there are no such statistics.

    Returns
    -------
    torch.nn.Module
        On the same device, every module in the mode it was in; of a compiled model, the one
        underneath.

    Raises
    ------
    OptionError
        `from_module` does not exist.
    ModelError
        A weight has no shape yet, or a normalization's statistics cannot be estimated.
    DataError
        `inputs` hold too few samples for an estimate, or none.

    Notes
    -----
    Every parameter is drawn by its module's own ``reset_parameters``, so biases, and the
    factors of a normalization, are the constants that they were before training. Parameters
    that no such method sets (class tokens, layer scales, those of custom modules) have their
    entries shuffled; where all entries are alike (a temperature), they are multiplied by one
    number between 1/2 and 2 (evenly distributed logarithm). Weights that a parametrization makes
    (`torch.nn.utils.parametrizations`) are drawn as without it and assigned to it. Buffers that
    depend on the weights are worked out again: the vectors of a spectral norm (the largest singular
    value is then 1), the base of an orthogonal map. Other buffers stay, such as a table of
    positions, or the mask of a pruned layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> other = randomize(net, from_module="2")
    >>> torch.equal(other[0].weight, net[0].weight), torch.equal(other[2].weight, net[2].weight)
    (True, False)
    """
    chosen = modules_from(model, from_module)
    model = original(model)
    try:
        fresh = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"random weights: {type(model).__name__} cannot be copied ({error}); give the model as "
            "it was made, without hooks or wrappers that hold tensors"
        ) from error
    drawn = {name: module for name, module in fresh.named_modules() if name in chosen}
    for name, module in drawn.items():
        _check(name, module)
    assigned = set[nn.Module]()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, module in drawn.items():
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            # The generator of the CPU alone: `torch.manual_seed` would reseed every GPU too.
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
            if module in assigned:
                continue
            if parametrize.is_parametrized(module):
                assigned |= _draw_parametrized(name, module)
            else:
                _draw(module)
        for module in drawn.values():
            _renew_spectral_norm(module)
    if inputs is not None:
        batches = [inputs] if isinstance(inputs, Tensor) else inputs
        _estimate(fresh, [m for m in drawn.values() if isinstance(m, _BatchNorm)], batches)
    return fresh


def modules_from(model: nn.Module, from_module: str | None) -> frozenset[str]:
    """Return names of a module and of all that are registered after it; of all for None."""
    model = original(model)
    names = [name for name, _ in model.named_modules()]
    if from_module is None:
        return frozenset(names)
    if from_module not in names or not from_module:
        near = nearest(from_module, names[1:], 5)
        raise OptionError(
            f"random weights from {from_module!r}: {type(model).__name__} has no such module; "
            f"nearest: {', '.join(near) or 'none'}"
        )
    return frozenset(names[names.index(from_module) :])


def _check(name: str, module: nn.Module) -> None:
    """Refuse a module that would keep trained numbers, or has none yet."""
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        raise ModelError(
            f"{name}: its weights have no shape yet (a lazy module); run the model once first"
        )
    kept = {name for name, buffer in module._buffers.items() if buffer is not None}
    if kept & {"running_mean", "running_var"} and not isinstance(module, _BatchNorm):
        raise ModelError(
            f"{name}: {type(module).__name__} holds statistics of its training data that cannot "
            "be estimated again; put torch's BatchNorm in its place, or give a later from_module"
        )


def _draw(module: nn.Module) -> None:
    """Draw the parameters that a module holds itself."""
    before = {
        name: parameter.detach().clone()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_floating_point() or parameter.is_complex()
    }
    reset = _own_reset(module)
    with _on_cpu(module):
        for name in before:
            # What is still NaN afterwards was not reset.
            getattr(module, name).fill_(torch.nan)
        if reset is not None and (before or isinstance(module, _BatchNorm)):
            reset()
        for name, trained in before.items():
            parameter = getattr(module, name)
            if bool(parameter.isnan().any()):
                parameter.copy_(_shuffled(trained.to(parameter.device)))


def _draw_parametrized(name: str, module: nn.Module) -> set[nn.Module]:
    """Draw the weights that parametrizations make, and assign them; return what is drawn by that.

    What a parametrization keeps of the weights (a base, signs) is worked out in the assignment.
    """
    lists = _parametrizations(module)
    # The module as it was before: its own method draws the weights themselves.
    plain: nn.Module = object.__new__(parametrize.type_before_parametrizations(module))
    plain.__dict__ = module.__dict__ | {"_parameters": dict(module._parameters)}
    weights = {weight: getattr(module, weight).detach().clone() for weight in lists}
    plain._parameters |= {weight: nn.Parameter(value) for weight, value in weights.items()}
    _draw(plain)
    done = set[nn.Module]()
    for weight, several in lists.items():
        own = [p for one in several for p in one.parameters()]
        if all(hasattr(one, "right_inverse") for one in several) and not own:
            try:
                setattr(module, weight, getattr(plain, weight).detach())
            except NotImplementedError:  # of torch's orthogonal maps, some: no base, then
                continue
            done |= {*several.modules()}
        elif any(True for one in several for _ in one.buffers()):
            made = ", ".join(type(one).__name__ for one in several)
            raise ModelError(
                f"{name}: its {weight} is made by {made}, which may hold numbers worked out from "
                "the trained weights and cannot be assigned to (right_inverse); give a later "
                "from_module, or remove_parametrizations"
            )
    return done


def _parametrizations(module: nn.Module) -> dict[str, Any]:
    """Return the parametrizations of every weight of a module that has some."""
    found: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    return dict(found.items())


def _renew_spectral_norm(module: nn.Module) -> None:
    """Work out the singular vectors by which a module's weights are normalized, if they are.

    They are those of the trained weights; in evaluation mode nothing else renews them.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):  # torch.nn.utils.spectral_norm
            weight = hook.reshape_weight_to_matrix(getattr(module, f"{hook.name}_orig"))
            vectors = (getattr(module, f"{hook.name}_{part}") for part in "uv")
            _set_singular(weight, *vectors)
    for several in _parametrizations(module).values():
        for one in several:
            if isinstance(one, _SpectralNorm) and several.original.ndim > 1:
                matrix = one._reshape_weight_to_matrix(several.original)
                _set_singular(matrix, one._u, one._v)


def _set_singular(weight: Tensor, u: Tensor, v: Tensor) -> None:
    """Set u and v to the first singular vectors of a matrix."""
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float64))
    tall = wide.shape[0] > wide.shape[1]
    wide = wide.mH if tall else wide
    first = torch.linalg.eigh(wide @ wide.mH).eigenvectors[:, -1]
    second = nn.functional.normalize(wide.mH @ first, dim=0)
    u.copy_(second if tall else first)
    v.copy_(first if tall else second)


def _own_reset(module: nn.Module) -> Callable[[], object] | None:
    """Return the method by which a module draws its parameters, if it needs no arguments."""
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(module, name, None)
        if callable(reset):
            needed = inspect.signature(reset).parameters.values()
            return reset if all(one.default is not one.empty for one in needed) else None
    return None


def _shuffled(trained: Tensor) -> Tensor:
    flat = trained.flatten()
    if flat.numel() and bool((flat == flat[0]).all()):
        return trained * 2 ** (2 * torch.rand(()) - 1).to(trained.dtype)
    order = torch.randperm(flat.numel())
    while torch.equal(flat[order], flat):
        order = torch.randperm(flat.numel())
    return flat[order].view_as(trained)


@contextmanager
def _on_cpu(module: nn.Module) -> Iterator[None]:
    """Keep a module's own tensors on the CPU, so that every device draws the same numbers."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    devices = [tensor.device for tensor in own]
    for tensor in own:
        tensor.data = tensor.data.cpu()
    try:
        yield
    finally:
        for tensor, device in zip(own, devices, strict=True):
            tensor.data = tensor.data.to(device)


def _estimate(model: nn.Module, norms: list[_BatchNorm], batches: Iterable[Tensor]) -> None:
    """Set the statistics of batch normalizations to the mean of those of all batches."""
    norms = [norm for norm in norms if norm.running_mean is not None]
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    device, n_batches = next(norms[0].buffers()).device, 0
    model.eval()
    for norm in norms:
        # Not `train()`, which would wake dropout inside a subclass, too.
        norm.training, norm.momentum = True, None
    try:
        with eager(model), torch.no_grad():
            for batch in batches:
                # A copy: a first layer that works in place must not reach the caller's.
                model(batch.detach().clone().to(device))
                n_batches += 1
    except ValueError as error:
        problem = f"statistics of batch normalization need more inputs ({error})"
        advice = "give at least 2 samples in every tensor"
        raise DataError(f"random weights: {problem}; {advice}") from error
    if not n_batches:
        raise DataError("random weights: no inputs to estimate batch normalization on; give some")
    for module, mode in modes.items():
        module.training = mode
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
