"""Cuts: sites that all flow from the input to the output passes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError
from condec.network.axes import Followed, followed
from condec.network.folds import FoldedUnits, count_folds
from condec.network.layouts import Seen
from condec.network.module_io import describe_explained
from condec.network.packed import hold
from condec.network.proof import changed, check_order, prove
from condec.network.sites import Site, units_of
from condec.network.tape import Call, checked_output, record, run_model, run_whole
from condec.network.trial import Tolerance
from condec.network.units import Units
from condec.network.unwrap import original

if TYPE_CHECKING:
    import pandas


def find_cuts(model: nn.Module, inputs: Tensor, sites: Sequence[Site]) -> dict[str, bool]:
    """Find out which sites cut the network: all flow from input to output passes them.

    At a cut the contributions of all units add up to the change of the target between the
    baseline and the input; elsewhere (inside a residual branch, say) they do not. Where autograd
    cannot follow the input to the output (past a lookup of embeddings, rounding, `detach`), a site
    is a cut if another input gives the same output as long as the site holds what it held.

    Parameters
    ----------
    model : torch.nn.Module
    inputs : Tensor of shape [sample, ...]
        A single sample suffices; where autograd can follow, its values do not matter.
    sites : sequence of Site

    Returns
    -------
    dict of site key to bool

    Raises
    ------
    ModelError
        Other inputs give the same output.
    """
    return _seen(model, inputs, sites)[0]


@dataclass(frozen=True, eq=False)
class Survey:
    """What one sample shows of sites, by their keys: whether they are cuts, and their units."""

    cuts: dict[str, bool]
    units: dict[str, Units]


def survey_sites(model: nn.Module, inputs: Tensor, sites: Sequence[Site]) -> Survey:
    """Find out which sites cut the network, and which axes of [sample, ...] are units there.

    SiteError where the samples cannot be told apart (`condec.network.folds`).
    """
    cuts, records = _seen(model, inputs, sites)
    n_folds = count_folds(records, len(inputs), allowed=records)
    check_order(model, inputs, [site for site in sites if n_folds[site.key] > 1])
    units = {site.key: units_of(site, records[site.key]) for site in sites}
    folded = {key: FoldedUnits.of(units[key]) for key, n in n_folds.items() if n > 1}
    return Survey(cuts, units | folded)


def _seen(
    model: nn.Module, inputs: Tensor, sites: Sequence[Site]
) -> tuple[dict[str, bool], dict[str, Tensor]]:
    """Return which sites are cuts, and their records."""
    with record(model, sites) as tape:
        inputs = inputs.detach().clone().requires_grad_()
        output, records = run_model(model, inputs), tape.records
        count_folds(records, len(inputs), allowed=records)
    cuts = _cuts(model, inputs, output, {site: records[site.key] for site in sites})
    # What flows through the other tokens is not counted at a site of some tokens.
    some = {site for site in sites if site.units is not None and site.units.tokens}
    found = {site.key: cut and site not in some for site, cut in cuts.items()}
    return found, {key: h.detach() for key, h in records.items()}


def inspect_model(model: nn.Module, inputs: Tensor) -> "pandas.DataFrame":
    """List every call of every module in one forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    inputs : Tensor of shape [sample, ...]

    Returns
    -------
    pandas.DataFrame
        In execution order of the calls' ends, with columns ``site`` (a site key), ``type``,
        ``shape`` (of the output, without the sample axis; empty if it is no tensor), ``units``
        (what a site that names no layout counts there; a question mark where it has to name one),
        ``parameters`` (number, own and below), ``cut`` (see `find_cuts`), ``proof`` (what makes
        contributions there wrong; empty where nothing was found). ``attrs["explained"]`` says which
        tensor of the model's output targets get, ``attrs["proof"]`` is the whole `Proof`.
    """
    import pandas

    model = original(model)
    modules = {name: module for name, module in model.named_modules() if name}
    everywhere = [Site(name) for name in modules]
    proof = prove(model, inputs, everywhere)
    with record(model, everywhere) as tape:
        inputs = proof.sizes.few(inputs).detach().clone().requires_grad_()
        with followed(model.parameters()) as axes:
            whole = run_whole(model, inputs)
        output = checked_output(model, whole)
    found = {
        Site(name, call=None if len(calls) == 1 else number): call
        for (name, _), calls in tape.calls.items()
        for number, call in enumerate(calls)
    }
    tensors = {site: call.tensor for site, call in found.items() if isinstance(call, Call)}
    cuts = _cuts(model, inputs, output, tensors)
    rows: list[dict[str, object]] = []
    for site, call in found.items():
        module = modules[site.name]
        rows.append({
            "order": call.order if isinstance(call, Call) else float("inf"),
            "site": site.key,
            "type": type(module).__name__,
            "shape": _shape_of(tensors.get(site), len(inputs)),
            "units": _units_text(module, call, axes),
            "parameters": sum(p.numel() for p in module.parameters()),
            "cut": cuts.get(site, False),
            "proof": proof.places.get(site.key.removesuffix("#0"), ""),
        })  # fmt: skip
    columns = ["order", "site", "type", "shape", "units", "parameters", "cut", "proof"]
    table = pandas.DataFrame(rows, columns=columns).sort_values("order", kind="stable")
    table = table.drop(columns="order").reset_index(drop=True)
    table.attrs |= {"proof": proof, "explained": describe_explained(whole)}
    return table


def _shape_of(tensor: Tensor | None, n_samples: int) -> tuple[int, ...]:
    """Return the shape of a record of one sample."""
    if tensor is None or not tensor.ndim:
        return ()
    n_folds, rest = divmod(len(tensor), n_samples)
    shape = tuple(tensor.shape[1:])
    return shape if rest or n_folds < 2 else (n_folds, *shape)


def _units_text(module: nn.Module, call: object, axes: Followed) -> str:
    return Seen.of(module, call.tensor, axes).text if isinstance(call, Call) else ""


def _cuts(
    model: nn.Module, inputs: Tensor, output: Tensor, records: Mapping[Site, Tensor]
) -> dict[Site, bool]:
    """Find out by the autograd graph of one pass; where it does not lead back, by holding sites."""
    on_every_path = _path_counter(output, inputs)
    if on_every_path is not None:
        return {site: on_every_path(h) for site, h in records.items()}
    inputs = inputs.detach()
    tolerance = Tolerance.of(inputs, {("", "output", -1): output.detach()})

    def is_as_before(others: Tensor) -> bool:
        return tolerance.off(run_model(model, others).detach(), output.detach()) <= tolerance.again

    tries = (hold(model, inputs, x) for x in (changed(inputs), torch.zeros_like(inputs)))
    other = next((x for x in tries if not is_as_before(x)), None)
    if other is None:
        raise ModelError(
            f"{type(model).__name__}: the output does not depend on the input, it is the same for "
            "others, so no site can carry its contributions"
        )
    found = {}
    for site, h in records.items():

        def held(_: Tensor, h: Tensor = h) -> Tensor:
            return h.detach().clone()

        with record(model, [site], hand_on=held):
            found[site] = is_as_before(other)
    return found


def _path_counter(output: Tensor, inputs: Tensor) -> Callable[[Tensor], bool] | None:
    """Return a function that says whether every path from `inputs` to `output` passes a tensor.

    In the autograd graph from the output to the input, a node lies on every path if
    (paths above it) x (paths below it) equals the number of all paths. None if there is no path.
    """
    order = _topological(output.grad_fn)
    above: Counter[Any] = Counter(order[:1])
    below: Counter[Any] = Counter()
    for node in order:
        for child in _children(node):
            above[child] += above[node]
    for node in reversed(order):
        is_input = getattr(node, "variable", None) is inputs
        below[node] = 1 if is_input else sum(below[child] for child in _children(node))
    total = below[order[0]] if order else 0
    if not total:
        return None

    def on_every_path(tensor: Tensor) -> bool:
        return above[tensor.grad_fn] * below[tensor.grad_fn] == total

    return on_every_path


def _children(node: Any) -> list[Any]:
    return [child for child, _ in node.next_functions if child is not None]


def _topological(root: Any) -> list[Any]:
    """List the nodes of the autograd graph, every node before the ones it leads to."""
    leads_to: dict[Any, list[Any]] = {}
    found = [] if root is None else [root]
    while found:
        node = found.pop()
        if node not in leads_to:
            leads_to[node] = _children(node)
            found += leads_to[node]
    return [*TopologicalSorter(leads_to).static_order()][::-1]
