"""Input-space maps of a mode: receptive field times projective field.

Which part of an input makes the units of a mode move the target? Melander et al. 2026 (their
figure 7) multiply, for every unit c of the mode and every position p, what the input does to
the unit with what the unit does to the target, and weight by the input:

    A_i^(c,p) = (dT / dh_(c,p)) (dh_(c,p) / dx_i),        C_i = x_i sum_(c,p) A_i^(c,p)

Done by the letter this takes one backward pass for every unit and position. The sum over
(c, p), whole or over any subset, is one vector-Jacobian product; and the sign of a single
(c, p), which says in which subset it belongs, is that of (dT / dh) (J_h x), of which one
forward-mode pass gives all J_h x at once. `mode_map` therefore takes one forward pass with
dual numbers and three backward passes, whatever the number of units and positions.
"""

import dataclasses
import json
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from condec.contributions import prepare_inputs
from condec.data import Inputs
from condec.errors import DataError, ModelError, OptionError, SiteError, StoreError
from condec.modes import Modes
from condec.sites import Site, find_sites, units_of
from condec.tape import record, refuse_training, run_model
from condec.targets import Predicted, Target

if TYPE_CHECKING:
    import numpy

_WORDS: Final = ("site", "target", "ids")
"""Fields of `SiteMaps` that are kept as JSON; the others are arrays."""


@dataclass(frozen=True, eq=False)
class ModeMap:
    """Maps of one set of units, each of the input's shape [sample, *input].

    Attributes
    ----------
    total : Tensor
        x * sensitivity; its sum over a sample is the first-order effect of x on the target
        through the chosen units. Unit: that of the target.
    positive : Tensor
        The part of `total` from the (unit, position) pairs whose own sum over the input is
        above zero.
    negative : Tensor
        The part of the other pairs; total = positive + negative.
    sensitivity : Tensor
        sum of A over the chosen units and all positions, without the factor x. Unit: that of
        the target per unit of the input.
    """

    total: Float[Tensor, "sample ..."]
    positive: Float[Tensor, "sample ..."]
    negative: Float[Tensor, "sample ..."]
    sensitivity: Float[Tensor, "sample ..."]


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteMaps:
    """Maps of the leading modes of one site, with the pictures they belong to.

    Made by `site_maps`; kept in ``analysis/maps/<quoted site>/<name>.npz`` of a run folder.

    Attributes
    ----------
    site : str
        Key of the site.
    target : dict
        What the units drive, as from `Target.to_dict`.
    mode_ids : Tensor of shape [mode]
        Original ids, the mode most correlated with a label first.
    units : Tensor of shape [mode, unit]
        The units of every mode whose maps these are: the strongest of its atom.
    samples : Tensor of shape [mode, input]
        The inputs with the highest loadings, highest first, as indices into `pictures`; -1
        where a mode is used for fewer.
    loadings : Tensor of shape [mode, input]
    ids : tuple of str
        Identity of every picture.
    labels, predictions : Tensor of shape [picture]
        -1 where there is none.
    held_out : Tensor of shape [picture]
        Whether the modes were fitted without it.
    pictures : Tensor of shape [picture, y, x, 3]
        uint8; every input once, however many modes it serves.
    total, positive, negative : Tensor of shape [mode, input, y, x]
        As in `ModeMap`, summed over the channels of the input.
    """

    site: str
    target: dict[str, Any]
    mode_ids: Int[Tensor, " mode"]
    units: Int[Tensor, "mode unit"]
    samples: Int[Tensor, "mode input"]
    loadings: Float[Tensor, "mode input"]
    ids: tuple[str, ...]
    labels: Int[Tensor, " picture"]
    predictions: Int[Tensor, " picture"]
    held_out: Bool[Tensor, " picture"]
    pictures: UInt8[Tensor, "picture y x 3"]
    total: Float[Tensor, "mode input y x"]
    positive: Float[Tensor, "mode input y x"]
    negative: Float[Tensor, "mode input y x"]

    def save(self, path: str | Path) -> Path:
        """Write one ``.npz`` file, whole or not at all; the same bytes every time.

        Raises
        ------
        StoreError
            The place cannot be written.
        """
        import numpy

        path = Path(path)
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        words = {name: arrays.pop(name) for name in _WORDS}
        tensors = {name: tensor.numpy() for name, tensor in arrays.items()}
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                numpy.savez_compressed(file, words=json.dumps(words), **tensors)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StoreError(f"{path}: the maps could not be written: {error}") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> "SiteMaps":
        """Read what `save` wrote.

        Raises
        ------
        StoreError
            There is no such file, or it holds no maps.
        """
        import numpy

        path = Path(path)
        try:
            with path.open("rb") as file, numpy.load(file, allow_pickle=False) as opened:
                words: dict[str, Any] = json.loads(str(opened["words"]))
                fields: dict[str, Any] = {
                    name: torch.from_numpy(opened[name]) for name in opened.files if name != "words"
                }
            return cls(**fields, **(words | {"ids": tuple(words["ids"])}))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise StoreError(
                f"{path} holds no maps ({type(error).__name__}: {error}); make them again with "
                "'condec map'"
            ) from error


def mode_map(
    model: nn.Module,
    images: "Tensor | numpy.ndarray",
    site: Site | str,
    units: Sequence[int] | Tensor,
    target: Target | None = None,
    labels: "Tensor | numpy.ndarray | None" = None,
) -> ModeMap:
    """Which part of every input drives these units to drive the target.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; left as it is, and no gradient of a parameter is computed.
    images : Tensor of shape [sample, ...]
        Inputs, preprocessed.
    site : Site or str
        One site; it must lie between input and target.
    units : sequence of int
        Units of the site, for example the strongest of a mode's atom.
    target : Target, optional
        What the units drive; `Predicted()` by default. The paper uses the probability of the
        image's own class, ``Label(probability=True)``.
    labels : Tensor of shape [sample], optional
        For targets that need them.

    Returns
    -------
    ModeMap

    Raises
    ------
    OptionError
        No units, a unit given twice, or one that the site does not have.
    SiteError
        The pattern means several sites, or the site is not on a path from input to target.
    ModelError
        The model is in training mode, fails, or holds an operation without a forward-mode
        derivative.
    DataError
        The images are not finite floating-point numbers, there are none, or labels are
        missing.

    Examples
    --------
    >>> from condec.targets import Logit
    >>> from condec.testing.models import small_resnet
    >>> picture = mode_map(small_resnet(), torch.ones(2, 1, 5, 5), "block1", [0, 3], Logit(1))
    >>> picture.total.shape
    torch.Size([2, 1, 5, 5])
    >>> bool(torch.allclose(picture.total, picture.positive + picture.negative))
    True
    """
    chosen = _one_site(model, site)
    refuse_training(model)
    inputs = prepare_inputs(model, torch.as_tensor(images).detach()).clone()
    target = Predicted() if target is None else target
    labels = None if labels is None else torch.as_tensor(labels).to(inputs.device)
    with record(model, [chosen], hand_on=_primal_copy) as tape, _plain_attention():
        x = inputs.requires_grad_()
        with forward_ad.dual_level():
            # The tangent x makes the forward pass carry J_h x beside every activation h.
            output = _run_dual(model, x)
            hidden = tape.records[chosen.key]
            pushed = _tangent(hidden)
        # Outside the level the tangents are gone, so the backward passes below cost no more
        # than usual.
        value = target.value(output, target.freeze(output.detach(), labels)).sum()
        gradient = _gradient(value, hidden, chosen)
        if pushed is None:
            raise SiteError(f"{chosen.key} does not depend on the input, so no map leads to it")
        driven = gradient * _selection(hidden, chosen, units)
        upward = driven * (driven * pushed > 0)
        positive = _pull_back(hidden, x, upward, chosen, keep=True)
        negative = _pull_back(hidden, x, driven - upward, chosen, keep=False)
    with torch.no_grad():
        x, sensitivity = x.detach(), positive + negative
        return ModeMap(x * sensitivity, x * positive, x * negative, sensitivity)


def site_maps(
    model: nn.Module,
    inputs: Inputs,
    modes: Modes,
    *,
    n_modes: int = 12,
    n_inputs: int = 6,
    n_units: int = 3,
    target: Target | None = None,
) -> SiteMaps:
    """Maps of the leading modes of one site, on the inputs for which each is used most.

    The best mode of every label comes first, the most correlated before the others, then the
    remaining modes by correlation; without labels, modes by their mean loading. Correlations
    are those of training rows. A mode is drawn by the `n_units` largest entries of its atom,
    as in Melander et al. 2026, figure 7.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    inputs : Inputs
        Images; holds the samples of ``modes.store``, found by their ids.
    modes : Modes
    n_modes, n_inputs, n_units : int
        At most so many modes, inputs of each, and units of each.
    target : Target, optional
        As in `mode_map`.

    Returns
    -------
    SiteMaps

    Raises
    ------
    OptionError
        A number below 1.
    DataError
        There is no mode, the inputs lack a sample of the store, or they are no images.
    """
    for what, number in (("n_modes", n_modes), ("n_inputs", n_inputs), ("n_units", n_units)):
        if number < 1:
            raise OptionError(f"site_maps: {what} must be at least 1; got {number}")
    refuse_training(model)
    target = Predicted() if target is None else target
    chosen = leading_modes(modes)[:n_modes]
    if not chosen:
        raise DataError(f"site_maps: {modes.site.key}: the dictionary has no mode that is used")
    rows = {mode: _strongest_rows(modes.loadings[:, mode], n_inputs) for mode in chosen}
    used = sorted({row for several in rows.values() for row in several})
    where = _where(inputs, modes, used)
    pictures = torch.stack([inputs.picture(where[row]) for row in used])
    units = torch.stack([strongest_units(modes, mode)[:n_units] for mode in chosen])
    blank = torch.zeros(len(chosen), n_inputs, *pictures.shape[1:3])
    maps = {part: blank.clone() for part in ("total", "positive", "negative")}
    samples = torch.full((len(chosen), n_inputs), -1)
    loadings = torch.zeros(len(chosen), n_inputs)
    for place, mode in enumerate(chosen):
        several, labels = rows[mode], modes.store.labels[rows[mode]]
        images = inputs.batch(where[row] for row in several)
        made = mode_map(model, images, modes.site, units[place], target, labels)
        samples[place, : len(several)] = torch.tensor([used.index(row) for row in several])
        loadings[place, : len(several)] = modes.loadings[several, mode]
        for part, into in maps.items():
            into[place, : len(several)] = getattr(made, part).sum(1).float().cpu()
    return SiteMaps(
        site=modes.site.key,
        target=target.to_dict(),
        mode_ids=modes.ids[chosen],
        units=units,
        samples=samples,
        loadings=loadings,
        ids=tuple(modes.store.sample_ids[row] for row in used),
        labels=modes.store.labels[used],
        predictions=modes.store.predictions[used],
        held_out=modes.held_out[used],
        pictures=pictures,
        **maps,
    )


def leading_modes(modes: Modes) -> list[int]:
    """Modes in the order in which they are shown, as rows of ``modes.atoms``.

    The best mode of every label, the most correlated first, then all others by correlation
    with their best label, on training rows; without labels, by mean loading.
    """
    labels = modes.store.labels
    if not bool((labels >= 0).any()):
        return _order(modes.loadings.mean(0))
    top, label = modes.correlation(labels, split="train").nan_to_num(-1.0).max(1)
    order = _order(top)
    first: dict[int, int] = {}
    for mode in order:
        first.setdefault(int(label[mode]), mode)
    leading = list(first.values())
    return leading + [mode for mode in order if mode not in set(leading)]


def _strongest_rows(loadings: Float[Tensor, " sample"], n_inputs: int) -> list[int]:
    """Rows with the highest loadings, those only for which the mode is used."""
    order = _order(loadings)[:n_inputs]
    return [row for row in order if loadings[row] > 0] or order[:1]


def strongest_units(modes: Modes, mode: int) -> Int[Tensor, " unit"]:
    """Units of a mode's atom, those that move the target most first, shape [unit]."""
    n_units = modes.store.info(modes.site).n_units
    # The two halves of an atom of concatenated parts are one unit's adding and taking, and
    # what a negative part holds most of has the lowest value.
    atom = modes.atoms[mode].view(-1, n_units).sum(0)
    return torch.tensor(_order(-atom if modes.sign == "negative" else atom))


def _order(values: Float[Tensor, " _"]) -> list[int]:
    return [int(place) for place in values.argsort(descending=True, stable=True)]


def _where(inputs: Inputs, modes: Modes, rows: Sequence[int]) -> dict[int, int]:
    """Index in the inputs of every row of the store."""
    index = {sample_id: place for place, sample_id in enumerate(inputs.ids)}
    ids = modes.store.sample_ids
    missing = [ids[row] for row in rows if ids[row] not in index]
    if missing:
        raise DataError(
            f"site_maps: {inputs.name} lacks {len(missing)} samples of {modes.store.path}; the "
            f"first are {missing[:3]}. Give the data that were collected."
        )
    return {row: index[ids[row]] for row in rows}


def _one_site(model: nn.Module, site: Site | str) -> Site:
    sites = find_sites(model, site)
    if len(sites) > 1:
        raise SiteError(
            f"a map belongs to one site; {str(site)!r} means {len(sites)}: "
            f"{', '.join(s.key for s in sites[:5])}"
        )
    return sites[0]


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Fused attention kernels have no forward-mode derivative; the plain one does."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _run_dual(model: nn.Module, x: Tensor) -> Tensor:
    """Output of the forward pass that carries the tangent x; the output's own is dropped."""
    with warnings.catch_warnings():
        # On first use torch compiles derivatives with a helper that it has deprecated itself.
        warnings.filterwarnings("ignore", "`?torch.jit", DeprecationWarning)
        dual = forward_ad.make_dual(x, x.detach().clone())  # type: ignore[no-untyped-call]
    try:
        output = run_model(model, dual)
    except ModelError as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise ModelError(
                f"{type(model).__name__} holds an operation without a forward-mode derivative, "
                f"which maps need: {error.__cause__}. Replace it by plain tensor operations."
            ) from error
        raise
    return _primal(output)


def _primal(tensor: Tensor) -> Tensor:
    primal: Tensor = forward_ad.unpack_dual(tensor).primal  # type: ignore[no-untyped-call]
    return primal


def _primal_copy(tensor: Tensor) -> Tensor:
    """Beyond the site nobody reads the tangent, so it is not carried on."""
    return _primal(tensor).clone()


def _tangent(hidden: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(hidden).tangent  # type: ignore[no-untyped-call]
    return None if tangent is None else tangent.detach().clone()


def _gradient(value: Tensor, hidden: Tensor, site: Site) -> Tensor:
    gradient = None
    if value.requires_grad:
        gradient = torch.autograd.grad(value, hidden, retain_graph=True, allow_unused=True)[0]
    if gradient is None:
        raise SiteError(
            f"the target does not depend on {site.key}; choose a site between input and target"
        )
    return gradient


def _selection(hidden: Tensor, site: Site, units: Sequence[int] | Tensor) -> Tensor:
    """One where a unit is chosen, zero elsewhere, ready to multiply with the activation."""
    layout = units_of(site, hidden)
    count = layout.count(hidden.shape)
    wanted = [int(unit) for unit in units]
    wrong = [unit for unit in wanted if not 0 <= unit < count]
    if not wanted or wrong or len(set(wanted)) < len(wanted):
        raise OptionError(
            f"units: expected different numbers from 0 to {count - 1} (the units of {site.key}), "
            f"at least one; got {wanted}"
        )
    chosen = torch.zeros(count, dtype=hidden.dtype, device=hidden.device)
    chosen[wanted] = 1
    return layout.broadcast(chosen, hidden.shape)


def _pull_back(hidden: Tensor, x: Tensor, vector: Tensor, site: Site, *, keep: bool) -> Tensor:
    """vector^T J_h."""
    (pulled,) = torch.autograd.grad(hidden, x, vector, retain_graph=keep, allow_unused=True)
    if pulled is None:
        raise SiteError(f"{site.key} does not depend on the input, so no map leads to it")
    return pulled
