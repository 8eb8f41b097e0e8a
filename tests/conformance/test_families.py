"""Every family of the libraries against plain loops: what works, is refused, or differs.

    make conformance

takes some minutes, and writes what it found into ``results.json`` and ``docs/correctness.md``. It
leaves out the run-time type checks of the other tests, which take several times as long.
Three sites a family; contributions and their sums over positions, the proof of the model,
the table of its modules, an edit and a map.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condec import (
    Ablate,
    Constant,
    IntegratedGradients,
    Logit,
    Site,
    contribute,
    edited,
    inspect_model,
)
from condec.basis.errors import CondecError
from condec.explanation import mode_map
from condec.network import find_sites, presets_of, prove
from families import FAMILIES
from family import Family, scattered
from plain_loop import Place, ablated, contributions, maps, split_by_sign, tensor_of

STEPS = 2
CASES = [(group, name) for group, families in FAMILIES.items() for name in families]

# Libraries warn of their own affairs.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:all contributions are exactly zero"),
]


@pytest.mark.parametrize(("group", "name"), CASES, ids=[f"{g}: {n}" for g, n in CASES])
def test_family(group: str, name: str, record_property) -> None:  # type: ignore[no-untyped-def]
    family = FAMILIES[group][name]
    row: dict[str, Any] = {"group": group, "family": name, "result": "differs", "note": family.note}
    record_property("conformance", row)
    model = family.make().eval()
    if family.refused:
        sites = family.sites or "*"
        with pytest.raises(CondecError, match=family.refused) as refusal:
            contribute(model, torch.rand(2, *family.shape), sites, target=Logit(family.index))
        row |= {"result": "refused", "says": str(refusal.value)}
        return
    x = family.embed(model) if family.embed else torch.randn(2, *family.shape)
    x = x.double()
    model = scattered(model, x)
    table = inspect_model(model, x)
    sites = chosen(model, table, family)
    row["sites"] = [site.key for site in sites]
    assert prove(model, x, sites).holds
    listed = {line.site: line for line in table.itertuples()}
    row["error"] = worst = max(compare(model, x, sites, listed, family).values())
    assert worst < family.tolerance
    row["result"] = "works"


def chosen(model: nn.Module, table: Any, family: Family) -> list[Site]:
    """Choose an early, a middle and a late site: as the row says, of presets, or cuts."""
    if family.sites:
        found = [find_sites(model, family.sites)]
    elif presets := presets_of(model):
        found = [find_sites(model, f"preset:{preset}") for preset in presets]
    else:
        cuts = table[table.cut & (table["shape"] != ())].site
        found = [tuple(map(Site.parse, cuts))[1:-1]]
    first, middle, last = found[0], found[len(found) // 2], found[-1]
    three = first[0], middle[len(middle) // 2], last[-1]
    return list(dict.fromkeys(three))


def compare(
    model: nn.Module, x: Tensor, sites: list[Site], listed: dict[str, Any], family: Family
) -> dict[str, float]:
    """Return the largest difference, relative to the largest value, of all that is compared."""

    def score(output: Any) -> Tensor:
        index = family.index if isinstance(family.index, tuple) else (family.index,)
        return tensor_of(output)[(slice(None), *index)]

    target, method = Logit(family.index), IntegratedGradients(steps=STEPS, baseline=Constant(0.0))
    batch, errors = contribute(model, x, sites, method=method, target=target), {}
    x = x[1:]
    slow = contributions(model, x, list(dict.fromkeys(map(place_of, sites))), score, STEPS)
    for part, reduced in zip(batch.by_site, batch.reduce().by_site, strict=True):
        key, heads = part.site.key, part.units.n_heads
        expected, h = slow[place_of(part.site)]
        errors[f"contribution at {key}"] = off(
            part.contribution[1:].reshape(expected.shape), expected
        )
        errors[f"activation at {key}"] = off(part.activation[1:].reshape(h.shape), h)
        by_unit = split_by_sign(expected, unit_axis(model, part.site, h, family), heads)
        by_unit = by_unit.sum(0, keepdim=True)  # several rows are frames, folded into the batch
        errors[f"units at {key}"] = off(reduced.contribution[1:], by_unit)
        if part.site.tap == "output" and len(h) == 1:
            line = listed[Site(part.site.name, call=part.site.call).key]
            assert line.shape == h.shape[1:]
            assert line.cut == part.cut or part.units.tokens
    middle = batch.by_site[len(batch.by_site) // 2]
    place = place_of(middle.site)
    h = slow[place][1]
    axis, n_heads = unit_axis(model, middle.site, h, family), middle.units.n_heads
    units = list(range(0, n_heads or h.shape[axis], 2))
    mask = laid(units, h, axis, n_heads)
    without = ablated(model, x, place, 1 - mask)
    assert off(ablated(model, x, place, torch.ones_like(h)), without) > 1e-9
    with torch.no_grad(), edited(model, Ablate(middle.site, units=units)):
        errors["edit"] = off(tensor_of(model(x)), without)
    if family.no_map:
        with pytest.raises(CondecError, match=family.no_map):
            mode_map(model, x, middle.site, units, target)
        return errors
    picture = mode_map(model, x, middle.site, units, target)
    upward, downward = maps(model, x, place, mask, score)
    size = torch.maximum(upward.abs(), downward.abs()).max()
    errors["map, positive"] = off(picture.positive, upward, size)
    errors["map, negative"] = off(picture.negative, downward, size)
    return errors


def place_of(site: Site) -> Place:
    return site.name, site.tap, site.call or 0


def off(found: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """Return the largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    assert expected.isfinite().all()
    size = expected.abs().max() if size is None else size
    assert size > 0
    return float((found - expected).abs().max() / size)


def unit_axis(model: nn.Module, site: Site, h: Tensor, family: Family) -> int:
    """Say which axis the units are, by what is known of torch's own modules and of the family."""
    module = model.get_submodule(site.name)
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.BatchNorm1d | nn.BatchNorm2d):
        return 1
    if isinstance(module, nn.AdaptiveAvgPool1d):
        return 1
    return -1 if h.ndim < 4 or family.last else 1


def laid(units: list[int], h: Tensor, axis: int, n_heads: int | None) -> Tensor:
    """One at the entries of some units, of as many axes as the activation."""
    size = h.shape[axis]
    of_unit = torch.arange(size) if n_heads is None else torch.arange(size) // (size // n_heads)
    shape = [1] * h.ndim
    shape[axis] = size
    return torch.isin(of_unit, torch.tensor(units)).to(h).view(shape)
