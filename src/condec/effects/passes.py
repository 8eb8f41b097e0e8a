"""Outputs of a batch under many edits, in few and short passes.

Sets of edits are grouped by their earliest place in the network. What lies before it runs once a
batch (`condec.network.split_at`), what lies after it on versions of the batch, one for every set,
stacked along the sample axis.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError, SiteError
from condec.edits import Edit, edited
from condec.edits.base import with_site
from condec.network import (
    AfterSite,
    Place,
    Site,
    Splitter,
    TensorMap,
    alone,
    fold,
    record,
    run_model,
    settle_sites,
    unfold,
)

Edits = tuple[Edit, ...]
"""Edits that act together; an empty tuple is the network as it is."""

_FEWEST: Final = 3
"""Sets of edits for which splitting the network pays: it costs a whole pass, and is tried."""
_MOST_VERSIONS: Final = 256
"""Of tiny networks; more are no faster."""
_GIB: Final = {"cpu": 1 / 16, "cuda": 2.0}
"""Memory for stacked versions. Measured on 2 cores: beyond 1/16 passes get slower."""


@dataclass
class _Group:
    """Sets of edits that begin at one place: their numbers, and the places of later edits."""

    site: Site
    numbers: list[int] = field(default_factory=list)
    later: dict[Place, Site] = field(default_factory=dict)
    splitter: Splitter | None = None


class Passes:
    """Runs batches under each of several sets of edits."""

    def __init__(self, model: nn.Module, edits: Sequence[Edits]) -> None:
        self.model, self.edits = model, list(edits)
        self._groups: list[_Group] | None = None
        self._whole: list[int] = []

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of every set of edits and the batch's output under it, in any order."""
        if self._groups is None:
            self._settle(inputs)
            self._groups = self._grouped(inputs[:1])
        plain = None
        for group in list(self._groups):
            try:
                if group.splitter is None:
                    also = group.later.values()
                    group.splitter = Splitter(self.model, group.site, also=also)
                after = group.splitter.at(inputs)
            except (ModelError, SiteError):  # cannot be run in parts
                self._groups.remove(group)
                self._whole += group.numbers
                continue
            plain = self._checked(after.output, len(inputs))
            yield from self._stacked(group, after)
        for number in self._whole:
            if not self.edits[number] and plain is not None:
                yield number, plain
                continue
            with alone(self.model), edited(self.model, self.edits[number]):
                output = run_model(self.model, inputs)
            yield number, self._checked(output, len(inputs))

    def _settle(self, inputs: Tensor) -> None:
        """Find out which axes are units at sites that leave it open."""
        every = (edit for some in self.edits for edit in some if not edit.within)
        open_ = tuple(dict.fromkeys(edit.site for edit in every))
        there = dict(zip(open_, settle_sites(self.model, open_, inputs), strict=True))
        self.edits = [
            tuple(with_site(edit, there.get(edit.site, edit.site)) for edit in some)
            for some in self.edits
        ]

    def _grouped(self, one: Tensor) -> list[_Group]:
        """Group sets of edits by where they begin; those that want whole passes are put aside."""
        groups: dict[Place, _Group] = {}
        orders: dict[frozenset[Site], list[Site]] = {}
        for number, some in enumerate(self.edits):
            if not some or any(edit.within for edit in some):
                self._whole.append(number)
                continue
            sites = frozenset(Site(e.site.name, e.site.tap, None, e.site.call) for e in some)
            try:
                if sites not in orders:
                    orders[sites] = self._in_order(sites, one)
            except (SiteError, ModelError):
                self._whole.append(number)  # which says what is wrong, or knows better
                continue
            first, *later = orders[sites]
            group = groups.setdefault(first.place, _Group(first))
            group.numbers.append(number)
            group.later |= {site.place: site for site in later}
        for place, group in groups.items():
            group.later.pop(place, None)
            if len(group.numbers) < _FEWEST:
                self._whole += group.numbers
        return [group for group in groups.values() if len(group.numbers) >= _FEWEST]

    def _in_order(self, sites: frozenset[Site], one: Tensor) -> list[Site]:
        """Return sites in order of execution."""
        if len(sites) == 1:
            return list(sites)
        with record(self.model, sites) as tape, torch.no_grad():
            run_model(self.model, one)
        by_key = {site.key: site for site in sites}
        return [by_key[key] for key in tape.records]

    def _stacked(self, group: _Group, after: AfterSite) -> Iterator[tuple[int, Tensor]]:
        """Yield outputs of a group, several sets of edits in one pass."""
        n_folds, n_samples = after.n_folds, len(after.output)
        h = fold(after.activation) if n_folds > 1 else after.activation
        fit = int(_GIB.get(h.device.type, _GIB["cpu"]) * 2**30 // max(1, after.version_bytes))
        most = 1 if not after.stacks else max(1, min(fit, _MOST_VERSIONS))
        for start in range(0, len(group.numbers), most):
            numbers = group.numbers[start : start + most]
            versions = self._changed([h] * len(numbers), numbers, group.site.place)

            def change(stacked: Tensor, numbers: Sequence[int], place: Place) -> Tensor:
                return self._changed(stacked.chunk(len(numbers)), numbers, place)

            changes: dict[Site, TensorMap] = {
                site: partial(change, numbers=numbers, place=place)
                for place, site in group.later.items()
            }
            output = self._checked(
                after.run(unfold(versions, n_folds), changes), len(numbers) * n_samples
            )
            yield from zip(numbers, torch.split(output, n_samples), strict=True)

    def _changed(self, parts: Sequence[Tensor], numbers: Sequence[int], place: Place) -> Tensor:
        """Return versions of the activation at a place, each under its set of edits, stacked."""
        changed = []
        for part, number in zip(parts, numbers, strict=True):
            for edit in self.edits[number]:
                part = edit.apply(part) if edit.site.place == place else part
            changed.append(part)
        return torch.cat(changed)

    def _checked(self, output: Tensor, n_samples: int) -> Tensor:
        if output.ndim != 2 or len(output) != n_samples:
            raise ModelError(
                f"effects of edits need an output of shape [sample, label]; "
                f"{type(self.model).__name__} gave {tuple(output.shape)} for {n_samples} samples"
            )
        return output
