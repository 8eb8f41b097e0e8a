"""Maps of the leading modes of a site, with the pictures they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from condec.attribution import Method, contribute, method_from_dict
from condec.attribution.targets import Predicted, TargetLike, as_target, target_from_dict
from condec.basis.checks import at_least
from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.data import Inputs
from condec.explanation.leading import descending, leading_modes, strongest_units
from condec.explanation.mode import mode_map
from condec.explanation.parts import over_places
from condec.explanation.shares import Shares
from condec.modes import Modes
from condec.network import PackedInput, refuse_training

_TOGETHER: Final = 32
"""Inputs of a batch whose place maps are made."""


@short_repr
@dataclass(frozen=True, eq=False, kw_only=True)
class SiteMaps:
    """Maps of the leading modes of one site, with the pictures they belong to.

    Made by `site_maps`; kept in ``analysis/maps/<quoted site>/<name>.npz`` of a run folder.

    Attributes
    ----------
    site : str
        Key of the site.
    target : dict
        The target that the units drive, as from `Target.to_dict`.
    mode_ids : Tensor of shape [mode]
        Original ids, in the order of `leading_modes`.
    units : Tensor of shape [mode, unit]
        The units of every mode whose maps these are: the strongest of its atom.
    samples : Tensor of shape [mode, input]
        The inputs with the highest loadings, highest first, as indices into `pictures`; -1
        where a mode is used for fewer.
    loadings : Tensor of shape [mode, input]
    ids : tuple of str
        Identity of every picture: of the inputs above, and of others that modes are shown by.
    labels, predictions : Tensor of shape [picture]
        -1 where there is none.
    held_out : Tensor of shape [picture]
        Whether the modes were fitted without it.
    pictures : Tensor of shape [picture, y, x, 3]
        uint8; every input once, however many modes it serves.
    total, positive, negative : Tensor of shape [mode, input, y, x]
        As in `ModeMap`, summed over the channels of the input.
    places : Tensor of shape [mode, input, *place], or None
        Place maps, see `Part`: what the mode contributes to the target of the store at every
        position of the site. None where positions have no two axes (of texts: one), and of modes
        without their dictionary.
    texts : tuple of tuple of str
        Of a language model the tokens of every input; pictures and the other maps then have no
        pixels, and `places` a number a token.
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
    places: Tensor | None = None
    texts: tuple[tuple[str, ...], ...] = ()


def site_maps(
    model: nn.Module, inputs: Inputs, modes: Modes, *,
    n_modes: int = 12, n_inputs: int = 6, n_units: int = 3, target: TargetLike | None = None,
    method: Method | None = None, n_others: int = 3,
) -> SiteMaps:  # fmt: skip
    """Map the leading modes of one site, on the inputs for which each is used most.

    The modes are those of `leading_modes`, in its order. A mode is drawn by the `n_units`
    largest entries of its atom, as in Melander et al. 2026, figure 7.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    inputs : Inputs
        Images, or texts of a language model with a tokenizer; holds the samples of
        ``modes.store``, found by their ids.
    modes : Modes
    n_modes, n_inputs, n_units : int
        At most so many modes, inputs of each, and units of each.
    target : Target, or function from the output to Tensor[sample], optional
        As in `mode_map`.
    method : Method, optional
        Of the place maps; that of the store by default, which cannot be read back where its
        baseline is made of samples.
    n_others : int
        Pictures without maps of at most so many typical inputs of every mode, drawn ones, and
        counter-examples (`Modes.typical`, `Modes.random`, `Modes.counter_examples`).

    Raises
    ------
    OptionError
        A number below 1.
    DataError
        There is no mode, the inputs lack a sample of the store, or they are neither images nor
        texts.
    """
    at_least("site_maps", 1, n_modes=n_modes, n_inputs=n_inputs, n_units=n_units)
    refuse_training(model)
    target = as_target(Predicted() if target is None else target)
    chosen = leading_modes(modes, n_modes)
    if not chosen:
        raise DataError(f"site_maps: {modes.site.key}: the dictionary has no mode that is used")
    rows = {mode: _strongest_rows(modes.loadings[:, mode], n_inputs) for mode in chosen}
    others = set() if isinstance(model, PackedInput) else _others(modes, chosen, n_others)
    used = sorted({row for several in rows.values() for row in several} | others)
    where = rows_in(inputs, modes, used)
    texts = _texts(model, inputs, [where[row] for row in used])
    none = torch.zeros(len(used), 0, 0, 3, dtype=torch.uint8)
    pictures = none if texts else torch.stack([inputs.picture(where[row]) for row in used])
    units = torch.stack([strongest_units(modes, mode)[:n_units] for mode in chosen])
    blank = torch.zeros(len(chosen), n_inputs, *pictures.shape[1:3])
    maps = {part: blank.clone() for part in ("total", "positive", "negative")}
    samples, loadings = torch.full(blank.shape[:2], -1), torch.zeros(blank.shape[:2])
    for place, mode in enumerate(chosen):
        several, labels = rows[mode], modes.store.labels[rows[mode]]
        samples[place, : len(several)] = torch.tensor([used.index(row) for row in several])
        loadings[place, : len(several)] = modes.loadings[several, mode]
        if texts:
            continue
        images = inputs.batch(where[row] for row in several)
        made = mode_map(model, images, modes.site, units[place], target, labels)
        for part, into in maps.items():
            into[place, : len(several)] = getattr(made, part).sum(1).float().cpu()
    store = modes.store
    return SiteMaps(
        site=modes.site.key, target=target.to_dict(), mode_ids=modes.ids[chosen], units=units,
        samples=samples, loadings=loadings, ids=tuple(store.sample_ids[row] for row in used),
        labels=store.labels[used], predictions=store.predictions[used],
        held_out=modes.held_out[used], pictures=pictures, **maps,
        places=_place_maps(model, inputs, where, modes, rows, n_inputs, method), texts=texts,
    )  # fmt: skip


def _others(modes: Modes, chosen: Sequence[int], n: int) -> set[int]:
    """Return rows of inputs that show what modes are on the whole, and what they are not."""
    kinds = [modes.typical, modes.random]
    if modes.quantity == "contribution":
        kinds.append(modes.counter_examples)
    return (
        {row for mode in chosen for kind in kinds for row in kind(mode, n)["row"]} if n else set()
    )


def _texts(model: nn.Module, inputs: Inputs, rows: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the tokens of inputs, where the model knows them; nothing else."""
    if not isinstance(model, PackedInput):
        return ()
    found = [model.words(inputs.batch([row])) for row in rows]
    return tuple(tuple(words) for words in found if words is not None)


def _place_maps(
    model: nn.Module, inputs: Inputs, where: Mapping[int, int], modes: Modes,
    users: Mapping[int, Sequence[int]], n_inputs: int, method: Method | None,
) -> Tensor | None:  # fmt: skip
    """Return the place maps of modes on their inputs, rows of the store; None where there are none.

    Every input is attributed once, whatever the number of modes.
    """
    recipe, labels = modes.store.recipe, modes.store.labels
    if modes.encoder is None or recipe["target"]["name"] == "Custom":
        return None
    method = method or method_from_dict(recipe["method"])
    target = target_from_dict(recipe["target"])
    n_axes = 1 if isinstance(model, PackedInput) else 2
    if target.uses_labels and bool((labels[[*where]] < 0).any()):
        return None
    made = None
    for some in torch.split(torch.tensor([*where]), _TOGETHER):
        given = inputs.batch(where[row] for row in some.tolist())
        batch = contribute(
            model, given, modes.site, method=method, target=target, labels=labels[some],
            prove=False,
        )  # fmt: skip
        whole = batch.by_site[0]
        seen = None
        if isinstance(model, PackedInput) and modes.rows == "positions":
            seen = model.real(given)
        for number, row in enumerate(some.tolist()):
            one = slice(number, number + 1)
            values = {name: getattr(whole, name)[one] for name in ("contribution", "activation")}
            shares = Shares.of(
                modes, replace(whole, **values), None if seen is None else seen[number]
            )
            mine = [mode for mode, rows in users.items() if row in rows]
            for mode, weights in zip(mine, shares.weights(modes.ids[mine].tolist()), strict=True):
                own = over_places(weights * shares.contribution, whole.units)
                if own.ndim != n_axes:
                    return None
                made = torch.zeros(len(users), n_inputs, *own.shape) if made is None else made
                made[[*users].index(mode), users[mode].index(row)] = own.float()
    return made


def _strongest_rows(loadings: Float[Tensor, " sample"], n_inputs: int) -> list[int]:
    """Return the rows with the highest loadings, those only for which the mode is used."""
    order = descending(loadings)[:n_inputs]
    return [row for row in order if loadings[row] > 0] or order[:1]


def rows_in(
    inputs: Inputs, modes: Modes, rows: Sequence[int], who: str = "site_maps"
) -> dict[int, int]:
    """Find the index in the inputs of rows of the store; DataError where one is missing."""
    ids = [modes.store.sample_ids[row] for row in rows]
    found = inputs.indices_of(ids, who=f"{who}: {inputs.name}", of=f"samples of {modes.store.path}")
    return dict(zip(rows, found, strict=True))
