"""Collecting: contributions of a whole data set, into a store on disk.

Each batch is reduced on the device before anything is copied, and each shard is written
whole, so that a killed run goes on at the first missing shard.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from condec.attribution import ActGrad, IntegratedGradients, Method
from condec.contributions import Sites, assemble, contribute, prepare_inputs
from condec.data import Inputs, as_inputs
from condec.errors import DataError, OptionError
from condec.store import Rows, SiteInfo, Store
from condec.targets import Target, TargetLike, TopK, as_target

# Running totals, two records and two gradients a site, the autograd graph and what the
# convolutions need: measured at 6 to 9 times the recorded activations on CPU.
_MEMORY_FACTOR: Final = 9


def collect(
    model: nn.Module,
    data: Any,
    sites: Sites,
    *,
    out: str | Path,
    method: Method | None = None,
    target: TargetLike | None = None,
    batch_size: int = 64,
    shard_size: int = 1024,
    on_bad: str = "raise",
    progress: bool = True,
    recorded: Mapping[str, Any] | None = None,
) -> Store:
    """Contributions of a whole data set, reduced to units, into a store on disk.

    Each shard is computed and written whole. A run that was interrupted goes on at the
    first missing shard when the same call is made again, and ends with the same bytes.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; data are moved to the device of its parameters.
    data : Inputs, torch Dataset of (input, label) pairs, tensors, or a pair of tensors
    sites : str, Site, or several of them
    out : path
        The store, for example ``"run/contributions.zarr"``.
    method, target : optional
        By default ``IntegratedGradients(steps=10)`` and ``TopK(k=1)``.
    batch_size : int
        Samples in one pass.
    shard_size : int
        Samples in one shard, the unit of work that is written and resumed.
    on_bad : {"raise", "skip"}
        Whether an unreadable or non-finite input ends the run or is left out. Inputs left
        out keep their row, which is marked invalid and which the accessors pass over.
    progress : bool
        Show the estimate and a progress bar on standard error.
    recorded : mapping, optional
        Entries that join those of the recipe, or stand in their place; how `condec.twins`
        says which control a store is.

    Returns
    -------
    Store
        Complete.

    Raises
    ------
    DataError
        No data, an unreadable or non-finite input (named), or labels missing.
    StoreError
        The store at `out` was made by another recipe (the difference is listed), or cannot
        be written; complete shards stay and count.
    """
    _check_options(batch_size, shard_size, on_bad)
    plan = _Plan.make(model, as_inputs(data), sites, method, target, on_bad)
    store = Store.create(
        out,
        recipe=plan.recipe(batch_size) | dict(recorded or {}),
        sites=plan.infos,
        n_samples=len(plan.inputs),
        shard_size=shard_size,
    )
    missing = store.missing()
    if not missing:
        return store
    console = Console(stderr=True, quiet=not progress)
    if progress:
        console.print(str(plan.estimate(batch_size, len(missing) * shard_size)))
    columns = (
        TextColumn("contributions"), BarColumn(), MofNCompleteColumn(), TextColumn("samples"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) if progress else nullcontext() as bar:
        task = bar.add_task("", total=len(plan.inputs)) if bar else None
        for index in range(store.n_shards):
            span = range(index * shard_size, min((index + 1) * shard_size, len(plan.inputs)))
            if index not in missing:
                if bar and task is not None:
                    bar.advance(task, len(span))
                continue
            parts = []
            for first in range(0, len(span), batch_size):
                batch = span[first : first + batch_size]
                parts.append(plan.run(batch))
                if bar and task is not None:
                    bar.advance(task, len(batch))
            store.write_shard(index, _join(parts))
    return Store.open(out)


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a collection will take; times are measured on one pass, the rest is counted.

    Attributes
    ----------
    n_samples, n_sites, n_passes : int
        Samples left to do, sites, and forward and backward passes a batch.
    seconds : float
        Time for the samples left.
    memory_bytes : int
        Memory a batch takes on the model's device, without the model.
    disk_bytes : int
        Size of the whole store before compression.
    """

    n_samples: int
    n_sites: int
    n_passes: int
    seconds: float
    memory_bytes: int
    disk_bytes: int

    def __str__(self) -> str:
        minutes = f"{self.seconds / 60:.1f} min" if self.seconds > 90 else f"{self.seconds:.0f} s"
        return (
            f"{self.n_samples} samples, {self.n_sites} sites, {self.n_passes} passes a batch: "
            f"about {minutes}, {self.memory_bytes / 2**20:.0f} MiB of memory, at most "
            f"{self.disk_bytes / 2**20:.0f} MiB of disk"
        )


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that one collection needs, worked out once."""

    model: nn.Module
    inputs: Inputs
    infos: tuple[SiteInfo, ...]
    method: Method
    target: Target
    on_bad: str
    entries: int
    """Entries of one sample at all sites together."""

    @staticmethod
    def make(
        model: nn.Module,
        inputs: Inputs,
        sites: Sites,
        method: Method | None,
        target: TargetLike | None,
        on_bad: str,
    ) -> "_Plan":
        method, target = method or IntegratedGradients(), as_target(target or TopK())
        index, sample = _first_good(inputs, on_bad)
        labels = None if inputs.labels is None else inputs.labels[index : index + 1]
        batch = contribute(model, sample, sites, method=ActGrad(), target=target, labels=labels)
        infos = tuple(
            SiteInfo(
                site=part.site,
                units=part.units,
                n_units=part.units.count(part.activation.shape),
                n_positions=part.units.positions(part.activation.shape),
                cut=part.cut,
            )
            for part in batch.by_site
        )
        entries = sum(part.activation.numel() for part in batch.by_site)
        return _Plan(model, inputs, infos, method, target, on_bad, entries)

    def recipe(self, batch_size: int) -> dict[str, Any]:
        """Everything that decides the numbers in the store."""
        return {
            "model": fingerprint(self.model),
            "data": self.inputs.fingerprint,
            "n_samples": len(self.inputs),
            "sites": [info.site.key for info in self.infos],
            "method": self.method.to_dict(),
            "target": self.target.to_dict(),
            "reduction": "sum over positions after the sign split",
            "batch_size": batch_size,
            "condec": metadata.version("condec"),
        }

    def estimate(self, batch_size: int, n_samples: int) -> Estimate:
        """Time one pass over the first batch, and count the rest."""
        n_samples = min(n_samples, len(self.inputs))
        rows = range(min(batch_size, n_samples))
        inputs, labels, _ = self.load(rows)
        started = time.perf_counter()
        sites = [info.site for info in self.infos]
        ActGrad().attribute(self.model, inputs, sites, self.target, labels)
        seconds = (time.perf_counter() - started) / len(rows)
        units = sum(info.n_units for info in self.infos)
        return Estimate(
            n_samples=n_samples,
            n_sites=len(self.infos),
            n_passes=self.method.n_passes,
            seconds=seconds * self.method.n_passes * n_samples,
            memory_bytes=_MEMORY_FACTOR * 4 * self.entries * len(rows),
            disk_bytes=len(self.inputs) * units * 2 * 2 * 4,
        )

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None, list[int]]:
        """Inputs of `rows` on the device, their labels, and the places of those left out."""
        good: list[int] = []
        samples: list[Tensor] = []
        for place, row in enumerate(rows):
            try:
                samples.append(self.inputs.load(row))
            except DataError:
                if self.on_bad == "raise":
                    raise
                continue
            good.append(place)
        bad = sorted(set(range(len(rows))) - set(good))
        labels = self.inputs.labels
        chosen = None if labels is None else labels[[rows[place] for place in good]]
        stacked = torch.stack(samples) if samples else torch.empty(0)
        return prepare_inputs(self.model, stacked) if samples else stacked, chosen, bad

    def run(self, rows: Sequence[int]) -> Rows:
        """Reduced contributions of one batch of rows."""
        inputs, labels, bad = self.load(rows)
        good = [place for place in range(len(rows)) if place not in set(bad)]
        given = self.inputs.labels
        values = self._empty(len(rows))
        label = values["label"] if given is None else given[list(rows)]
        if good:
            found = [info.site for info in self.infos]
            result = self.method.attribute(self.model, inputs, found, self.target, labels)
            cuts = {info.site.key: info.cut for info in self.infos}
            batch = assemble(result, found, cuts).reduce()
            values["prediction"][good] = batch.prediction.cpu()
            values["target"][good] = batch.target.float().cpu()
            values["target_baseline"][good] = batch.target_baseline.float().cpu()
            for part in batch.by_site:
                values["contribution"][part.site.key][good] = part.contribution.float().cpu()
                values["activation"][part.site.key][good] = part.activation.float().cpu()
        values["valid"][good] = True
        ids = tuple(self.inputs.ids[row] for row in rows)
        return Rows(ids=ids, **(values | {"label": label}))

    def _empty(self, n_rows: int) -> dict[str, Any]:
        def units() -> dict[str, Tensor]:
            return {
                info.site.key: torch.full((n_rows, 2, info.n_units), torch.nan)
                for info in self.infos
            }

        return {
            "label": torch.full((n_rows,), -1),
            "prediction": torch.full((n_rows,), -1),
            "target": torch.full((n_rows,), torch.nan),
            "target_baseline": torch.full((n_rows,), torch.nan),
            "valid": torch.zeros(n_rows, dtype=torch.bool),
            "contribution": units(),
            "activation": units(),
        }


def fingerprint(model: nn.Module) -> str:
    """Name and SHA-256 of a model's class, parameters and buffers: changes if any of them does."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"


def _check_options(batch_size: int, shard_size: int, on_bad: str) -> None:
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        if value < 1:
            raise OptionError(f"collect: {name} must be at least 1; got {value}")
    if on_bad not in ("raise", "skip"):
        raise OptionError(f"collect: on_bad must be 'raise' or 'skip'; got {on_bad!r}")


def _first_good(inputs: Inputs, on_bad: str) -> tuple[int, Tensor]:
    for row in range(len(inputs)):
        try:
            return row, inputs.load(row)[None]
        except DataError:
            if on_bad == "raise":
                raise
    raise DataError(f"{inputs.name}: none of the {len(inputs)} samples can be used")


def _join(parts: Sequence[Rows]) -> Rows:
    """Rows of several batches, one after the other."""

    def units(quantity: str) -> dict[str, Tensor]:
        keys = getattr(parts[0], quantity)
        return {key: torch.cat([getattr(part, quantity)[key] for part in parts]) for key in keys}

    return Rows(
        ids=tuple(i for part in parts for i in part.ids),
        label=torch.cat([part.label for part in parts]),
        prediction=torch.cat([part.prediction for part in parts]),
        target=torch.cat([part.target for part in parts]),
        target_baseline=torch.cat([part.target_baseline for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        contribution=units("contribution"),
        activation=units("activation"),
    )
