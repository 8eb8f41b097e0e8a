"""Collecting: contributions of a whole data set, into a store on disk.

Each batch is reduced on the device before anything is copied, and each shard is written
whole, so that a killed run goes on at the first missing shard.
"""

import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import torch
from torch import nn

from condec.attribution import Compute, Method, Sites, is_silent, warn_of_silence
from condec.attribution.targets import TargetLike
from condec.basis.checks import one_of
from condec.basis.errors import OptionError, StoreError
from condec.basis.files import store_path
from condec.basis.progress import progress_bar
from condec.basis.read_ahead import ahead
from condec.basis.records import short_repr
from condec.data import as_inputs
from condec.store.batches import BatchPlan, LoadedBatch, chosen_batch, joined
from condec.store.claims import release
from condec.store.places import Rows
from condec.store.shards import QUANTITIES, SiteInfo
from condec.store.store import Store


def collect(
    model: nn.Module, data: Any, sites: Sites, *,
    out: str | Path,
    method: Method | None = None, target: TargetLike | None = None,
    batch_size: int | Literal["auto"] = 64, shard_size: int = 1024, on_bad: str = "raise",
    compute: Compute | None = None, devices: Sequence[str | torch.device] = (),
    progress: bool = True, fit_on: Any | None = None, recorded: Mapping[str, Any] | None = None,
    prove: bool = True, rows: Rows = "samples", keep: int = 16, seed: int = 0,
) -> Store:  # fmt: skip
    """Collect contributions of a whole data set, reduced to units, into a store.

    A run that was interrupted goes on at the first missing shard when the same call is made
    again, and ends with the same bytes. The store that is returned is complete.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; data are moved to the device of its parameters.
    data : as `condec.as_inputs` takes it
    sites : str, Site, or several of them
    out : path
        The store, for example ``"run/contributions.zarr"`` or ``"s3://bucket/run.zarr"``.
    method, target : optional
        By default ``IntegratedGradients(steps=10)`` and ``TopK(k=1)``.
    batch_size : int or "auto"
        Samples in one pass; ``"auto"`` times passes of growing size and takes the smallest
        that is about as fast as the best; a run that is resumed keeps the size of the store.
    shard_size : int
        Samples in one shard, which is written whole: one that was interrupted is begun again.
    on_bad : {"raise", "skip"}
        What an unreadable or non-finite input does: end the run, or keep its row, which is
        marked invalid and which the accessors pass over.
    compute : Compute, optional
        Precision and memory order of the passes; part of the recipe.
    devices : sequence of str or torch.device
        Devices that share the batches, each with a copy of the model; by default the one the
        model is on. The numbers do not depend on it.
    progress : bool
        Show the estimate and a progress bar on standard error.
    fit_on : as `data`, optional
        Training inputs, from which the method and the target take what they take from data
        (the covariance of `Surprisal`, the baseline `Mean`); by default from `data`.
    recorded : mapping, optional
        Entries that join those of the recipe, or stand in their place (of a twin).
    prove : bool
        Try first whether results belong to single samples (`condec.prove`); no part of the recipe.
    rows : {"samples", "positions"}
        With ``"positions"``, the contributions at some positions of every sample are kept as well,
        with their sign: for modes of places (`Store.matrix`, `Modes.build`).
    keep, seed : int
        How many positions of a sample then, at every site; drawn by the seed, the sample's id and
        the site. All of those that count are kept where there are no more.

    Raises
    ------
    ModelError, SiteError
        As `contribute`.
    OptionError
        Options out of range, a device that is not there, or batches too small for the method.
    DataError
        An unreadable or non-finite input (named), labels missing, or contributions that are not
        finite.
    StoreError
        The store at `out` was made by another recipe (listed), or cannot be written; complete
        shards stay and count.
    """
    out = store_path(out, write=True)
    _check_options(batch_size, shard_size, on_bad, keep)
    one_of("collect", "rows", rows, Rows)
    others = None if fit_on is None else as_inputs(fit_on)
    wanted = samples_of(batch_size) if prove else None
    plan = BatchPlan.make(
        model, as_inputs(data), sites, method, target, compute, on_bad, others, wanted,
        keep if rows == "positions" else None, seed,
    )  # fmt: skip
    return Collecting(plan, out, batch_size, shard_size, tuple(devices), recorded or {}).collect(
        progress=progress
    )


@short_repr
@dataclass(frozen=True, eq=False)
class Collecting:
    """A collection, as `collect` does it: a plan of its batches, and the store that is filled."""

    plan: BatchPlan
    out: Path
    batch_size: int | Literal["auto"] = 64
    shard_size: int = 1024
    devices: Sequence[str | torch.device] = ()
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def size(self) -> int:
        """Samples of a batch."""
        automatic = self.batch_size == "auto"
        return chosen_batch(self.plan, self.out) if automatic else int(self.batch_size)

    def begin(self) -> Store:
        """Make the store, or find it again; raises as `collect` does."""
        check_batches(self.plan, self.size, self.shard_size)
        recipe = self.plan.recipe(self.size) | dict(self.recorded)
        sizes = {"n_samples": len(self.plan.inputs), "shard_size": self.shard_size}
        return Store.create(self.out, recipe=recipe, sites=self.plan.infos, **sizes)

    def collect(
        self, *, progress: bool,
        elsewhere: Callable[[Store, Sequence[int]], Container[str]] | None = None,
    ) -> Store:  # fmt: skip
        """Compute and write all shards that are missing, and return the whole store.

        Those that are done `elsewhere`, ahead of this process, are not; that returns the sites
        which were silent in all of them.
        """
        for device in self.devices if whole_store(self.out) is None else ():
            usable_device(device)  # a whole one needs none
        store, total = self.begin(), len(self.plan.inputs)
        release(self.out)  # of parts that were killed
        missing = all_missing = store.missing()
        if not missing:
            return store
        if progress:
            estimate = self.plan.estimate(
                self.size, len(missing) * self.shard_size, self.shard_size
            )
            sys.stderr.write(f"{estimate}\n")
        silent: Container[str] = {info.site.key for info in self.plan.infos}
        if elsewhere is not None:
            silent = elsewhere(store, missing)
            missing = store.missing()
        done = total - sum(len(store.shard_rows(index)) for index in missing)
        with progress_bar(
            "contributions", total, done=done, unit="samples", shown=progress
        ) as move:
            here = self.write(store, missing, lambda n: move(advance=n))
        keys = [key for key in here if key in silent]
        warn_of_silence(keys, sum(len(store.shard_rows(index)) for index in all_missing))
        return Store.open(self.out)

    def write(
        self, store: Store, indices: Sequence[int], advance: Callable[[int], None]
    ) -> list[str]:
        """Compute and write shards; return the sites that are silent in all of them.

        The next batch is read, and the last shard written, meanwhile.
        """
        silent = [info.site.key for info in self.plan.infos]

        def finish(shard: tuple[int, list[dict[str, Any]]]) -> None:
            rows = joined(shard[1])
            silent[:] = [key for key in self.silent(rows) if key in silent]
            store.write_shard(shard[0], rows)

        for _ in ahead(finish, self.computed(store, indices, advance)):
            pass
        return silent

    def computed(
        self, store: Store, indices: Sequence[int], advance: Callable[[int], None]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield shards with the results of their batches; the next batch is read meanwhile."""
        spans = {index: store.shard_rows(index) for index in indices}
        batches = {
            index: [span[start : start + self.size] for start in range(0, len(span), self.size)]
            for index, span in spans.items()
        }
        every = list(chain.from_iterable(batches.values()))
        results = _results(self.plan, every, self.devices)
        for index, of_shard in batches.items():
            parts = []
            for batch in of_shard:
                parts.append(next(results))
                advance(len(batch))
            yield index, parts

    def silent(self, rows: dict[str, Any]) -> list[str]:
        """Return the sites that are silent in a shard."""
        return [info.site.key for info in self.plan.infos if _is_silent(rows, info)]


def _is_silent(rows: dict[str, Any], info: SiteInfo) -> bool:
    valid = rows["inputs/valid"]
    contribution, activation = (rows[f"{info.folder}/{name}"][valid] for name in QUANTITIES)
    return is_silent(contribution, activation)


def _results(
    plan: BatchPlan, batches: Sequence[range], devices: Sequence[str | torch.device]
) -> Iterator[dict[str, Any]]:
    """Yield the results of all batches, in their order, each from one of the devices."""
    loaded = ahead(plan.load, batches)
    if len(devices) < 2:
        plan = plan.on(torch.device(devices[0])) if devices else plan
        yield from map(plan.run, loaded)
        return
    free: SimpleQueue[BatchPlan] = SimpleQueue()
    for device in devices:
        free.put(plan.on(torch.device(device)))

    def run(batch: LoadedBatch) -> dict[str, Any]:
        mine = free.get()
        try:
            return mine.run(batch)
        finally:
            free.put(mine)

    yield from ahead(run, loaded, n_workers=len(devices))


def samples_of(batch_size: int | Literal["auto"]) -> int:
    """Return the samples of a batch; of those that timing will choose, about."""
    return 64 if batch_size == "auto" else batch_size


def whole_store(path: str | Path) -> Store | None:
    """Open a store of which no shard is missing; None where there is no such store."""
    with suppress(StoreError):
        store = Store.open(path)
        return store if store.is_complete else None
    return None


def usable_device(name: str | torch.device) -> torch.device:
    """Return a device that holds numbers; OptionError, with those that there are, otherwise."""
    try:
        float(torch.zeros(1, device=name))  # a meta tensor has no value
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        problem = str(error).partition("\n")[0]
        hint = f"there is {', '.join(there)}: {problem}"
        raise OptionError(f"device {str(name)!r} cannot be used, {hint}") from error


def check_batches(plan: BatchPlan, batch_size: int, shard_size: int) -> None:
    """Refuse batches that are too small for the method, before anything is computed."""
    needed, n_samples = plan.method.least_samples, len(plan.inputs)
    spans = {min(shard_size, n_samples), n_samples % shard_size} - {0}
    smallest = min(min(span % batch_size or batch_size, span) for span in spans)
    if smallest < needed:
        raise OptionError(
            f"collect: {type(plan.method).__name__} with these options needs at least {needed} "
            f"samples in every batch, and batch_size={batch_size} leaves a batch of {smallest} (of "
            f"{n_samples} samples in shards of {shard_size}); choose sizes that leave no such rest"
        )


def _check_options(batch_size: int | str, shard_size: int, on_bad: str, keep: int) -> None:
    sizes = {"batch_size": batch_size, "shard_size": shard_size, "keep": keep}
    for name, value in sizes.items():
        automatic = value == "auto" and name == "batch_size"
        if not automatic and (not isinstance(value, int) or value < 1):
            raise OptionError(f"collect: {name} must be at least 1; got {value!r}")
    one_of("collect", "on_bad", on_bad, ("raise", "skip"))
