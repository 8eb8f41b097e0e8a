"""Explanations: the output for one input, as a sum of what modes add and take.

    T(x) - T(x_0) = sum over modes (adds + takes) + what is left over + what the quadrature misses

at a site that cuts the network. Elsewhere the sum of the site's contributions stands on the left,
for what goes past the site is not seen there.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from condec.attribution import Contributions, Method, contribute, method_from_dict
from condec.attribution.baselines import Baseline
from condec.attribution.targets import TargetLike, target_from_dict
from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.records import short_repr
from condec.data import as_batch
from condec.edits import Edit
from condec.explanation.check import PartCheck, check
from condec.explanation.graph import Graph, graph_of
from condec.explanation.input_map import InputMaps, input_maps
from condec.explanation.parts import SiteExplanation, divided
from condec.explanation.turning import Turning, at_baseline, away_by, edits_of
from condec.modes import Modes
from condec.network import PackedInput, Site, find_site
from condec.store.batches import fingerprint
from condec.store.places import real_places

if TYPE_CHECKING:
    import numpy
    import pandas
    from matplotlib.figure import Figure

    from condec.figures.places import Ground

_COLUMNS: Final = [
    "site", "cut", "part", "dictionary", "mode", "loading", "adds", "takes", "net", "share",
]  # fmt: skip
_STILL: Final = 1e-6
"""A target that changes by less, beside the sum of all contributions' sizes, does not change."""


@short_repr
@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a network gave an output: its change as a sum of modes, at every site. See `explain`.

    Attributes
    ----------
    target, target_baseline : float
        The target at the input and at the baseline (NaN for methods without one).
    prediction : int
        Predicted class; -1 where the output is not a matrix of classes.
    by_site : tuple of SiteExplanation
        In execution order.
    batch : Contributions
        What is explained, as a batch of one.
    method : Method
    """

    target: float
    target_baseline: float
    prediction: int
    by_site: tuple[SiteExplanation, ...]
    batch: Contributions = field(repr=False)
    method: Method

    @property
    def change(self) -> float:
        """Change of the target from the baseline to the input."""
        return self.target - self.target_baseline

    def __getitem__(self, site: Site | str) -> SiteExplanation:
        """Return what is known at one site."""
        units = [one.units for one in self.by_site]
        sites = [one.site for one in self.by_site]
        return self.by_site[sites.index(find_site(sites, site, units))]

    def check(self) -> PartCheck:
        """Remove every part that is shown, and compare what happens, see `PartCheck`."""
        return check(self.batch, self.by_site, self._baseline)

    @property
    def _baseline(self) -> Baseline | None:
        inner = getattr(self.method, "inner", self.method)
        return getattr(inner, "baseline", None)

    def turning(self, site: Site | str) -> Turning:
        """Run the network up to a site, once, so that parts there can be turned, see `turned`."""
        if self.batch.setup is None:
            raise DataError("turned: these contributions do not say what they were made from")
        at = self[site].site
        before = at_baseline(self.batch.setup, [at], self._baseline)
        return Turning.of(self.batch.setup, at, before)

    def turned(
        self, site: Site | str, factors: Mapping[str, float], turning: Turning | None = None
    ) -> Tensor:
        """Return the output with parts of a site turned up or down.

        The part w of the activation h becomes f w: h + sum (f - 1) w (h - h_0), with the activation
        h_0 at the baseline. A factor of 0 takes a part away, as `check` does; 1 leaves it.

        Parameters
        ----------
        site : Site or str
        factors : mapping from the name or number of a part, as in `SiteExplanation.part`, to float
        turning : Turning, optional
            From `turning` of the site, where several are asked for: what lies before the site is
            not run again.

        Returns
        -------
        Tensor of shape [1, ...]
            The output of the model.

        Raises
        ------
        OptionError
            There is no such part, one is named twice, or a factor is not finite.
        ModelError
            The network cannot be run from the site on.
        """
        away = away_by(self[site], factors)
        turning = turning or self.turning(site)
        return turning.without(away.expand(1, *turning.here.shape[1:]))

    def edits(
        self, site: Site | str, factors: Mapping[str, float], turning: Turning | None = None
    ) -> tuple[Edit, ...]:
        """Return what `turned` does to this input as edits of units, which act on any input.

        A unit is scaled towards what it is at the baseline, by the mean of its parts' shares, each
        place as its contribution weighs. That is the same where shares are so at all places;
        elsewhere it is near or not, which `turned` tells. Parameters and errors are those of it.
        """
        at = self[site]
        away = away_by(at, factors)
        return edits_of(at, away, turning or self.turning(site))

    def graph(self, *, n_modes: int | None = None) -> Graph:
        """Work out what flows from the parts of every site to those of the next, see `Graph`.

        Takes one vector-Jacobian product a part and step for the network between two sites.

        Parameters
        ----------
        n_modes : int, optional
            At most so many modes of a site are shown by themselves; by default those of `by_site`.

        Raises
        ------
        OptionError
            One site only, or a method other than ``IntegratedGradients(path="input")``.
        SiteError
            Two sites are one place, or a later one does not depend on the one before.
        """
        at_least("graph", 1, n_modes=1 if n_modes is None else n_modes)
        by_site = self.by_site
        if n_modes is not None:
            by_site = tuple(at.strongest(n_modes) for at in by_site)
        return graph_of(self.batch, by_site, self.method)

    def figure(
        self, *, picture: "Tensor | numpy.ndarray | None" = None,
        text: Sequence[str] | None = None, label_names: Sequence[str] | None = None,
        n_maps: int = 3, masked: bool = False,
    ) -> "Figure":  # fmt: skip
        """Draw the explanation: what was given, and at every site the sum and the largest maps.

        Bars show what every part adds and takes, with its net. Place maps lie over the input in
        colours of one scale (`condec.figures.places`), each with its mode's best label, net and
        strongest units. `condec.figures.save_figure` writes it.

        Parameters
        ----------
        picture : Tensor or array, optional
            The image before preprocessing, as `condec.figures.as_picture` takes it; by default
            the input itself, from its lowest to its highest value.
        text : str or sequence of str, optional
            For sequences: one character or token a position; by default those that a model
            with a tokenizer knows.
        label_names : sequence of str, optional
        n_maps : int
            Maps of a site, at most.
        masked : bool
            Show the picture where maps are large, as the paper does, in place of colours.

        Raises
        ------
        DataError
            Both picture and text, what is no picture, or a text of another length.
        """
        from condec.explanation.drawing import explanation_figure

        at_least("figure", 0, n_maps=n_maps)
        ground = self.ground(picture, text)
        return explanation_figure(self, ground, n_maps=n_maps, names=label_names, masked=masked)

    def ground(
        self, picture: "Tensor | numpy.ndarray | None" = None, text: Sequence[str] | None = None
    ) -> "Ground":
        """Choose what maps are drawn over: what is given, else the input; see `figure`."""
        from condec.explanation.drawing import ground_of

        setup = self.batch.setup
        if setup is None:
            return ground_of(None, picture, text)
        if picture is None and text is None and isinstance(setup.model, PackedInput):
            text = setup.model.words(setup.inputs)
        return ground_of(setup.inputs, picture, text)

    def input_maps(
        self, site: Site | str, parts: Iterable[str] | None = None, *, steps: int | None = None
    ) -> InputMaps:
        """Say where in the input parts come from: complete for every part, see `InputMaps`.

        It costs the passes of the explanation again, and a backward pass before the site for
        every part and point.

        Parameters
        ----------
        site : Site or str
        parts : names of parts, optional
            As in `SiteExplanation.part`; by default all.
        steps : int, optional
            Intervals of the path, in place of the method's own.

        Raises
        ------
        OptionError
            The contributions were not made by `IntegratedGradients` along a path of the input, or
            there is no such part.
        """
        if self.batch.setup is None:
            raise DataError("input_maps: these contributions do not say what they were made from")
        return input_maps(self.batch.setup, self.method, self[site], parts, steps)

    def to_frame(self) -> "pandas.DataFrame":
        """List all parts: one row a part of a site, whose ``net`` add up to the change.

        Columns: site, cut, part, dictionary, mode, loading, adds, takes, net, share. ``share`` is
        net over the change of the target (at a site that does not cut the network: over the sum of
        its contributions); NaN where that is zero.
        """
        import pandas

        rows = []
        for at in self.by_site:
            whole = self.change if at.cut else float(at.contribution.sum())
            whole = whole if abs(whole) > _STILL * float(at.contribution.abs().sum()) else nan
            for part in at.parts:
                kind = "" if part.modes is None else part.modes.name
                values = (part.loading, part.adds, part.takes, part.net, part.net / whole)
                rows.append((at.site.key, at.cut, part.name, kind, part.id, *values))
            if at.misses == at.misses:
                missed = (nan, max(at.misses, 0.0), min(at.misses, 0.0), at.misses)
                name = "quadrature"
                rows.append((at.site.key, at.cut, name, "", -1, *missed, at.misses / whole))
        return pandas.DataFrame(rows, columns=_COLUMNS)


def explain(
    model: nn.Module, input: "Tensor | numpy.ndarray",  # noqa: A002  # the word of the contract
    modes: Modes | Iterable[Modes], *,
    method: Method | None = None, target: TargetLike | None = None, label: int | None = None,
    n_modes: int = 8, prove: bool = True,
) -> Explanation:  # fmt: skip
    r"""Explain one output as a sum of modes.

    At every site of the modes, the contributions of the input are divided among them by
    responsibility: mode m answers for :math:`z_m D_{mu} / \sum_{m'} z_{m'} D_{m'u}` of what unit u
    contributes (see `condec.explanation.shares` for atoms of both signs).

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; it is not changed.
    input : Tensor or array of shape [1, ...]
        One input, preprocessed for the model, as a batch of one.
    modes : Modes, or several of them
        Of one site or several; of one site several, where they describe different signs.
    method : Method, optional
    target : Target, or function from the output to Tensor[sample], optional
        By default both as in the store of the modes.
    label : int, optional
        For targets that need it.
    n_modes : int
        At most so many modes of a site are shown by themselves.
    prove : bool
        As in `contribute`.

    Raises
    ------
    DataError
        Several inputs, no modes, modes of another width or without their dictionary, or the input
        is not one of the model's.
    OptionError
        The stores of the modes have different methods or targets and none is given, or two
        dictionaries of a site describe the same contributions.
    ModelError, SiteError
        As `contribute`; the model has no such site.

    Warns
    -----
    UserWarning
        The modes come from another model; the target does not change from the baseline to the
        input; no mode is used.

    Examples
    --------
    >>> import condec, tempfile
    >>> _ = torch.manual_seed(0)
    >>> from condec.testing.models import small_resnet
    >>> model, images, out = small_resnet(), torch.rand(20, 1, 8, 8), tempfile.mkdtemp()
    >>> store = condec.collect(model, images, "block2", out=f"{out}/store", progress=False)
    >>> fitted = condec.fit(condec.PCA(n_modes=1), store.matrix("block2"))
    >>> modes = condec.Modes.build(fitted.dictionary, store, "block2")
    >>> found = condec.explain(model, images[:1], modes)
    >>> bool(abs(found.to_frame()["net"].sum() - found.change) < 1e-4)
    True
    """
    explained = explainer(model, modes, method, target, n_modes=n_modes, prove=prove)
    return explained(_one(input), label)


def explainer(
    model: nn.Module, modes: Modes | Iterable[Modes], method: Method | None,
    target: TargetLike | None, *, n_modes: int, prove: bool,
) -> Callable[[Tensor, int | None], Explanation]:  # fmt: skip
    """Check what all inputs have in common, once; return what explains one of them, as `explain`.

    That takes a batch of one, and its label or None.
    """
    given = (modes,) if isinstance(modes, Modes) else tuple(modes)
    at_least("explain", 1, n_modes=n_modes)
    _check(given)
    method = (method or method_from_dict(_shared(given, "method"))).for_model(model)
    target = target or target_from_dict(_shared(given, "target"))
    _warn_of_another(model, given)
    sites = list(dict.fromkeys(one.site for one in given))

    def explained(x: Tensor, label: int | None) -> Explanation:
        labels = None if label is None else torch.tensor([label])
        batch = contribute(
            model, x, sites, method=method, target=target, labels=labels, prove=prove
        )
        values = (batch.target, batch.target_baseline, batch.prediction)
        after, before, prediction = (value[0].item() for value in values)
        by_site = tuple(
            divided(
                part, [(one, _real(model, x, one)) for one in given if one.site == part.site],
                after - before, n_modes,
            )
            for part in batch.by_site
        )  # fmt: skip
        _warn_of_nothing(by_site, after - before)
        return Explanation(after, before, int(prediction), by_site, batch, method)

    return explained


def _real(model: nn.Module, x: Tensor, modes: Modes) -> Tensor | None:
    """Mark the positions of modes of places that are no padding, [position]; None for all."""
    found = real_places(model, x, modes.store.info(modes.site))
    return found[0] if found is not None and modes.rows == "positions" else None


def _check(given: tuple[Modes, ...]) -> None:
    if not given:
        raise DataError("explain: no modes are given; fit a dictionary and make some, Modes.build")
    described: dict[tuple[str, str], Modes] = {}
    first: dict[str, Modes] = {}
    for one in given:
        if (other := first.setdefault(one.site.key, one)).quantity != one.quantity:
            raise OptionError(
                f"explain: {one.site.key}: {other.name!r} are modes of {other.quantity}s and "
                f"{one.name!r} of {one.quantity}s: what is positive in one is not in the other, "
                "so that parts would count twice; give modes of one quantity"
            )
        signs = ("positive", "negative") if one.sign in ("sum", "concat") else (one.sign,)
        for sign in signs:
            if (other := described.setdefault((one.site.key, sign), one)) is not one:
                raise OptionError(
                    f"explain: {one.site.key}: {other.name!r} and {one.name!r} both describe "
                    f"{sign} contributions, which would count twice; give one of them, or one of "
                    "each sign"
                )


def _shared(given: tuple[Modes, ...], what: str) -> Mapping[str, object]:
    """Return the method or target that all stores have."""
    found: list[Mapping[str, object]] = [one.store.recipe[what] for one in given]
    if any(one != found[0] for one in found):
        raise OptionError(
            f"explain: the modes come from stores of different {what}s; say which is meant: "
            f"{what}=..."
        )
    return found[0]


def _one(given: "Tensor | numpy.ndarray") -> Tensor:
    x = as_batch("explain", given)
    if x.ndim < 2 or len(x) != 1:
        raise DataError(
            "explain: expected one input as a batch of one, shape [1, ...]; got shape "
            f"{tuple(x.shape)}. Give images[:1], image[None], or inputs.batch([0])"
        )
    return x


def _warn_of_another(model: nn.Module, given: tuple[Modes, ...]) -> None:
    own = fingerprint(model)
    if others := {one.store.recipe["model"] for one in given} - {own}:
        warnings.warn(
            f"explain: the modes come from another model ({sorted(others)[0]}) than the one that "
            f"is explained ({own}): they may mean something else there",
            UserWarning,
            stacklevel=4,
        )


def _warn_of_nothing(by_site: tuple[SiteExplanation, ...], change: float) -> None:
    for at in by_site:
        if not at.modes:
            warnings.warn(
                f"explain: {at.site.key}: no mode answers for anything at this input, all is left "
                "over",
                UserWarning,
                stacklevel=4,
            )
    size = max(float(at.contribution.abs().sum()) for at in by_site)
    if abs(change) <= _STILL * size:  # not so for NaN, of methods without a baseline
        warnings.warn(
            f"explain: the target changes by {change:.3g} from the baseline to the input, while "
            f"contributions have sizes that add up to {size:.3g}: shares of that change are "
            "undefined, sums are not",
            UserWarning,
            stacklevel=4,
        )
