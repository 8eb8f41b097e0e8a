"""Maps of the leading modes of a site, with the pictures they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from condec.attribution import Method, contribute, method_from_dict
from condec.attribution.targets import Predicted, Target, TargetLike, as_target, target_from_dict
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
KINDS: Final = ("typical", "random", "counter_examples")
"""Inputs that show a mode besides those that use it most: methods of `Modes`."""


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
    others : Tensor of shape [mode, kind, other], or None
        Typical inputs of every mode, drawn ones, and counter-examples, as indices into `pictures`;
        -1 where there are fewer. None in files of earlier versions.
    of_others : Tensor of shape [mode, kind, other, *place], or None
        Their place maps; their total maps, [..., y, x], where `places` is None.
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
    others: Int[Tensor, "mode kind other"] | None = None
    of_others: Tensor | None = None


def site_maps(
    model: nn.Module, inputs: Inputs, modes: Modes, *,
    n_modes: int = 12, n_inputs: int = 6, n_units: int = 3, target: TargetLike | None = None,
    method: Method | None = None, n_others: int = 3, contributes_to: Target | None = None,
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
    contributes_to : Target, optional
        Of the place maps, as `method`; that of the store, where it took nothing from outputs.
    n_others : int
        At most so many typical inputs of every mode, drawn ones, and counter-examples
        (`Modes.typical`, `Modes.random`, `Modes.counter_examples`), each with one map.

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
    slots = {mode: _shown(modes, mode, n_inputs, n_others) for mode in chosen}
    used = sorted({row for several in slots.values() for row in several} - {-1})
    where, numbers = rows_in(inputs, modes, used), {row: n for n, row in enumerate(used)}
    texts = _texts(model, inputs, [where[row] for row in used])
    none = torch.zeros(len(used), 0, 0, 3, dtype=torch.uint8)
    pictures = none if texts else torch.stack([inputs.picture(where[row]) for row in used])
    units = torch.stack([strongest_units(modes, mode)[:n_units] for mode in chosen])
    places = _place_maps(model, inputs, where, modes, slots, method, contributes_to)
    n_mapped = n_inputs + (len(KINDS) * n_others if places is None else 0)
    blank = torch.zeros(len(chosen), n_mapped, *pictures.shape[1:3])
    maps = {part: blank.clone() for part in ("total", "positive", "negative")}
    samples = torch.tensor([[numbers.get(row, -1) for row in slots[mode]] for mode in chosen])
    loadings = torch.zeros(len(chosen), n_inputs)
    for place, mode in enumerate(chosen):
        at = [slot for slot, row in enumerate(slots[mode]) if row >= 0 and slot < n_mapped]
        several = [slots[mode][slot] for slot in at]
        n_top = sum(slot < n_inputs for slot in at)
        loadings[place, :n_top] = modes.loadings[several[:n_top], mode]
        if texts:
            continue
        images, labels = inputs.batch(where[row] for row in several), modes.store.labels[several]
        made = mode_map(model, images, modes.site, units[place], target, labels)
        for part, into in maps.items():
            into[place, at] = getattr(made, part).sum(1).float().cpu()
    store, by_kind = modes.store, (len(KINDS), n_others)
    of_others = (maps["total"] if places is None else places)[:, n_inputs:]
    return SiteMaps(
        site=modes.site.key, target=target.to_dict(), mode_ids=modes.ids[chosen], units=units,
        samples=samples[:, :n_inputs].contiguous(), loadings=loadings,
        ids=tuple(store.sample_ids[row] for row in used), labels=store.labels[used],
        predictions=store.predictions[used], held_out=modes.held_out[used], pictures=pictures,
        places=None if places is None else places[:, :n_inputs].contiguous(), texts=texts,
        others=samples[:, n_inputs:].reshape(len(chosen), *by_kind),
        of_others=of_others.reshape(len(chosen), *by_kind, *of_others.shape[2:]),
        **{part: values[:, :n_inputs].contiguous() for part, values in maps.items()},
    )  # fmt: skip


def _shown(modes: Modes, mode: int, n_inputs: int, n_others: int) -> list[int]:
    """Return rows of the inputs by which a mode is shown, of each kind so many, -1 for none."""
    kinds = {"strongest": _strongest_rows(modes.loadings[:, mode], n_inputs)}
    for kind in KINDS if n_others else ():
        has_any = kind != "counter_examples" or modes.quantity == "contribution"
        kinds[kind] = getattr(modes, kind)(mode, n_others)["row"].tolist() if has_any else []
    sizes = dict.fromkeys(KINDS, n_others) | {"strongest": n_inputs}
    return [row for kind, rows in kinds.items() for row in rows + [-1] * (sizes[kind] - len(rows))]


def _texts(model: nn.Module, inputs: Inputs, rows: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the tokens of inputs, where the model knows them; nothing else."""
    if not isinstance(model, PackedInput):
        return ()
    found = [model.words(inputs.batch([row])) for row in rows]
    return tuple(tuple(words) for words in found if words is not None)


def _place_maps(
    model: nn.Module, inputs: Inputs, where: Mapping[int, int], modes: Modes,
    shown: Mapping[int, Sequence[int]], method: Method | None, target: Target | None,
) -> Tensor | None:  # fmt: skip
    """Return the place maps of modes on rows of the store, -1 for none; None where there are none.

    Every input is attributed once, whatever the number of modes.
    """
    recipe, labels = modes.store.recipe, modes.store.labels
    if modes.encoder is None or recipe["target"]["name"] == "Custom":
        return None
    method = method or method_from_dict(recipe["method"])
    target = target or target_from_dict(recipe["target"])
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
            mine = [mode for mode, rows in shown.items() if row in rows]
            for mode, weights in zip(mine, shares.weights(modes.ids[mine].tolist()), strict=True):
                own = over_places(weights * shares.contribution, whole.units)
                if own.ndim != n_axes:
                    return None
                if made is None:
                    made = torch.zeros(len(shown), len(shown[mode]), *own.shape)
                made[[*shown].index(mode), torch.tensor(shown[mode]) == row] = own.float()
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
