"""Split a network at a site: which way works for a batch, and the suffix that comes of it."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError, OptionError, SiteError
from condec.network.sites import Site
from condec.network.suffix.graph import Graph, follow
from condec.network.suffix.replay import remember
from condec.network.suffix.trace import Trace, trace_around
from condec.network.suffix.versions import Change, Layout, Pass, Place, Watch, Way
from condec.network.tape import frozen_parameters, refuse_training
from condec.network.unwrap import eager, original

Route = Literal["auto", "graph", "replay"]
_ROUTES: Final[dict[Route, tuple[Literal["graph", "replay"], ...]]] = {
    "auto": ("graph", "replay"),
    "graph": ("graph",),
    "replay": ("replay",),
}
_TOLERANCE: Final = 1e-3
_HALF_TOLERANCE: Final = 5e-2


@dataclass(frozen=True, eq=False)
class Suffix:
    """The part of a network after one site, for one batch of inputs. Made by `split_at`.

    Attributes
    ----------
    model : torch.nn.Module
    inputs : Tensor of shape [sample, ...]
    site : Site
    also : tuple of Site
        Later sites whose activation a run may change.
    activation : Tensor of shape [sample, ...]
        What came out at the site.
    output : Tensor of shape [sample, ...]
        The model's output.
    way : Way
        What is kept of the full pass.
    layout : {"views", "copies", "apart"}
        How several versions run: in one pass on shared memory (a single sample, where nothing
        is changed in place), in one pass on copies, or one pass each (where the first axis
        alone does not make versions, as in a recurrent network's state).
    version_bytes : int
        Memory that one version takes in a run without gradients, about: its activation, its
        copies of what is kept, and the tensors of the largest operation.
    """

    model: nn.Module
    inputs: Tensor
    site: Site
    also: tuple[Site, ...]
    activation: Tensor
    output: Tensor
    way: Way
    layout: Layout = "copies"
    version_bytes: int = 0

    @property
    def route(self) -> Literal["graph", "replay"]:
        """Which way runs it."""
        return "graph" if isinstance(self.way, Graph) else "replay"

    def run(self, activation: Tensor, changes: Mapping[Site, Change] | None = None) -> Tensor:
        """Output of the model with another activation at the site; differentiable in it.

        Parameters
        ----------
        activation : Tensor of shape [n * sample, ...]
            One or more versions of the batch, one after the other.
        changes : dict of Site to callable, optional
            What to do to the activation at later sites, each one of `also`: it gets that of all
            versions, and gives another of the same shape without writing to it.

        Returns
        -------
        Tensor of shape [n * sample, ...]

        Raises
        ------
        SiteError
            The activation is not a number of batches of the shape at the site, or a change
            belongs to a site for which the network was not split.
        ModelError
            The model fails on it, or no longer comes to the site.
        """
        n_samples = len(self.inputs)
        n_versions, rest = divmod(len(activation), n_samples)
        if rest or not n_versions or activation.shape[1:] != self.activation.shape[1:]:
            raise SiteError(
                f"{self.site.key}: expected an activation of shape [n * {n_samples}, "
                f"{', '.join(map(str, self.activation.shape[1:]))}]; got {tuple(activation.shape)}"
            )
        known = {Place.of(site) for site in self.also}
        at = {Place.of(site): change for site, change in (changes or {}).items()}
        unknown = [place.name for place in at if place not in known]
        if unknown:
            raise SiteError(
                f"{unknown[0]} cannot be changed in a run from {self.site.key} on: the network "
                "was not split for it; name the site in split_at(..., also=...)"
            )
        if self.layout != "apart":
            return _run(self, Pass(activation, n_samples, n_versions, self.layout, at))
        if n_versions > 1 and at:
            raise SiteError(
                f"{self.site.key}: {type(self.model).__name__} runs one version at a time, so "
                "changes at later sites belong to one; run each version by itself"
            )
        parts = torch.split(activation, n_samples)
        return torch.cat([_run(self, Pass(part, n_samples, 1, "apart", at)) for part in parts])


class Cut:
    """A place where a network is split, for many batches: what works is tried once a shape.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    site : Site
    also : sequence of Site
        Later sites (in order of execution) whose activation runs may change.
    route : {"auto", "graph", "replay"}
        The way to take; ``"auto"`` is the graph where the model traces and gives its own
        output back, else replay.

    Raises
    ------
    SiteError
        The model has no such module.
    OptionError
        There is no such route.
    """

    def __init__(
        self, model: nn.Module, site: Site, *, also: Iterable[Site] = (), route: Route = "auto"
    ) -> None:
        if route not in get_args(Route):
            raise OptionError(
                f"split_at: route must be one of {', '.join(get_args(Route))}; got {route!r}"
            )
        self.model, self.site, self.also = original(model), site, tuple(also)
        self.route: Route = route
        names = dict(self.model.named_modules())
        unknown = [one.name for one in (site, *self.also) if one.name not in names]
        if unknown:
            raise SiteError(f"{type(self.model).__name__} has no module {unknown[0]!r}")
        self._trace: Trace | ModelError | None = None
        self._tried: dict[object, _Tried] = {}

    def at(self, inputs: Tensor) -> Suffix:
        """Run a batch once, and keep what is needed to run what lies after the site again.

        Parameters
        ----------
        inputs : Tensor of shape [sample, ...]

        Raises
        ------
        SiteError
            The site does not run, or ran more than once and does not say which call is meant.
        ModelError
            The model fails on the inputs, or cannot be run in parts (the output comes out
            otherwise when nothing was changed).
        """
        refuse_training(self.model)
        inputs = inputs.detach()
        key = (
            inputs.shape,
            inputs.dtype,
            inputs.device,
            torch.is_autocast_enabled(inputs.device.type),
        )
        if key in self._tried:
            return self._tried[key].of(self._keep(self._tried[key].route, inputs))
        failures = []
        for route in _ROUTES[self.route]:
            try:
                suffix = self._keep(route, inputs)
                self._tried[key] = tried = _try(suffix)
                return tried.of(suffix)
            except ModelError as error:
                failures.append(error)
        raise failures[-1]

    def _keep(self, route: Literal["graph", "replay"], inputs: Tensor) -> Suffix:
        """Run the batch and keep what one way needs."""
        way: Way
        if route == "graph":
            activation, output, way = follow(self._traced(), inputs, self.site)
        else:
            activation, output, way = remember(self.model, inputs, self.site)
        return Suffix(self.model, inputs, self.site, self.also, activation, output, way)

    def _traced(self) -> Trace:
        if self._trace is None:
            places = [Place.of(site) for site in (self.site, *self.also)]
            try:
                self._trace = trace_around(self.model, places)
            except ModelError as error:
                self._trace = error
        if isinstance(self._trace, ModelError):
            raise self._trace
        return self._trace


@dataclass(frozen=True, eq=False)
class _Tried:
    """What trying a suffix showed: how to run it, what it uses of what is kept, its memory."""

    route: Literal["graph", "replay"]
    layout: Layout
    used: frozenset[Hashable] | None
    version_bytes: int

    def of(self, suffix: Suffix) -> Suffix:
        """The suffix of a batch, to be run like this."""
        way = suffix.way if self.used is None else suffix.way.lean(self.used)
        return replace(suffix, way=way, layout=self.layout, version_bytes=self.version_bytes)


def split_at(
    model: nn.Module,
    inputs: Tensor,
    site: Site,
    *,
    also: Iterable[Site] = (),
    route: Route = "auto",
) -> Suffix:
    """Run a batch once, and keep what is needed to run what lies after a site again.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    inputs : Tensor of shape [sample, ...]
    site : Site
    also : sequence of Site
        Later sites (in order of execution) whose activation runs may change.
    route : {"auto", "graph", "replay"}
        ``"graph"`` is faster where much lies around the site that does not depend on it;
        ``"replay"`` works on any model. ``"auto"`` is the graph where the model traces and
        gives its own output back, else replay.

    Returns
    -------
    Suffix

    Raises
    ------
    SiteError
        The site does not run, or ran more than once and does not say which call is meant.
    ModelError
        The model fails on the inputs, or cannot be run in parts (the output comes out
        otherwise when nothing was changed).
    OptionError
        There is no such route.

    Examples
    --------
    >>> from condec.testing.models import small_mlp
    >>> suffix = split_at(small_mlp(), torch.ones(2, 5), Site("1"))
    >>> bool(torch.equal(suffix.run(suffix.activation), suffix.output)), suffix.route
    (True, 'graph')
    """
    return Cut(model, site, also=also, route=route).at(inputs)


def _try(suffix: Suffix) -> _Tried:
    """The cheapest layout that gives the output back."""
    failure = "with nothing changed its output is another"
    layouts: tuple[Layout, ...] = ("copies", "apart")
    for layout in ("views", *layouts) if len(suffix.inputs) == 1 else layouts:
        n_versions = 1 if layout == "apart" else 2
        watch = Watch(suffix.model)
        activation = torch.cat([suffix.activation] * n_versions)
        this = Pass(activation, len(suffix.inputs), n_versions, layout, watch=watch)
        try:
            with torch.inference_mode(False), torch.no_grad(), watch:
                again = _run(suffix, this)
        except ModelError as error:
            failure = str(error)
            continue
        if _same(again, torch.cat([suffix.output] * n_versions)):
            used = None if layout == "views" else frozenset(watch.used)
            needed = watch.most_bytes + watch.held_bytes + 2 * _bytes(activation)
            return _Tried(suffix.route, layout, used, needed // n_versions)
    raise ModelError(
        f"{type(suffix.model).__name__} cannot be run from {suffix.site.key} on: {failure}. "
        "A module before the site keeps a state or draws random numbers, or the model goes on "
        "with a tensor that a module before the site changed in place."
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _same(again: Tensor, output: Tensor) -> bool:
    """Equal up to what another batch size may do to the rounding."""
    device = output.device.type
    half = output.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(device)
    finite = output[output.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    # Matrix products of GPUs have ten bits where TF32 is allowed.
    tolerance = _TOLERANCE if device == "cpu" else 10 * _TOLERANCE
    tolerance = (_HALF_TOLERANCE if half else tolerance) * (scale or 1.0)
    return torch.allclose(again, output, rtol=0, atol=tolerance, equal_nan=True)


def _run(suffix: Suffix, this: Pass) -> Tensor:
    model = suffix.model
    with frozen_parameters(model), eager(model):
        output = suffix.way.run(this)
    if output.shape != (len(this.activation), *suffix.output.shape[1:]):
        raise ModelError(
            f"{type(model).__name__}: expected one output for each of {len(this.activation)} "
            f"samples; got shape {tuple(output.shape)}"
        )
    return output
