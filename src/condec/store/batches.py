"""Batches of a collection: loaded, attributed, reduced; how long and how large they are."""

import copy
import hashlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from condec.attribution import (
    ActGrad,
    Compute,
    Contributions,
    Method,
    Setup,
    Sites,
    by_position,
    make_setup,
    prepare_inputs,
    run_batch,
)
from condec.attribution.targets import Target, TargetLike, TopK, as_target
from condec.attribution.texts import as_method
from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.progress import duration
from condec.data import Inputs
from condec.network import BatchSizes, original, refuse_training, run_model
from condec.store.places import chosen_places, real_places
from condec.store.shards import AT_PLACES, N_PLACES, POSITION, QUANTITIES, SiteInfo, arrays_of
from condec.store.store import Store

# Running totals, two records and two gradients a site, the autograd graph and what the
# convolutions need: measured at 6 to 9 times the recorded activations on CPU.
_MEMORY_FACTOR: Final = 9
# Of an image: a first convolution makes about five times its entries, in and out.
_WIDENED: Final = 2
_LARGEST_BATCH: Final = 1024
_FIT_BATCH: Final = 64


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """Inputs of some rows of the data, in memory: of those at the places `good` in `rows`."""

    rows: tuple[int, ...]
    good: tuple[int, ...]
    inputs: Tensor

    def halves(self) -> "tuple[LoadedBatch, LoadedBatch]":
        """Divide a batch."""
        middle = len(self.rows) // 2
        n_good = sum(place < middle for place in self.good)
        second = tuple(place - middle for place in self.good[n_good:])
        return (
            LoadedBatch(self.rows[:middle], self.good[:n_good], self.inputs[:n_good]),
            LoadedBatch(self.rows[middle:], second, self.inputs[n_good:]),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchPlan:
    """All that one collection needs, worked out once; options as in `condec.collect`."""

    model: nn.Module
    inputs: Inputs
    infos: tuple[SiteInfo, ...]  # in execution order
    method: Method  # with what it takes from the data
    target: Target  # with what it takes from the model's outputs to the data
    compute: Compute
    on_bad: str
    entries: int  # of one sample, that decide the memory of a pass: at all sites, and before
    decides: Mapping[str, Any]  # the numbers, see `recipe_of`
    seed: int = 0  # of the positions that are kept
    sizes: BatchSizes = field(default_factory=BatchSizes)

    @staticmethod
    def make(
        model: nn.Module, inputs: Inputs, sites: Sites, method: Method | None,
        target: TargetLike | None, compute: Compute | None, on_bad: str, fit_on: Inputs | None,
        proven_for: int | None = None, keep: int | None = None, seed: int = 0,
    ) -> "BatchPlan":  # fmt: skip
        """Run one sample, to see the sites' shapes; prove the model for batches of a size.

        Of every sample, `keep` positions are kept, if any are.
        """
        model, compute = original(model), compute or Compute()
        method, target = as_method("collect", method, model), as_target(target or TopK())
        index, sample = first_good(inputs, on_bad)
        labels = None if inputs.labels is None else inputs.labels[index : index + 1]
        fitted = target
        if not target.is_fitted:
            fitted = target.fitted(_outputs(model, fit_on or inputs, on_bad))
        sizes = None
        if proven_for is not None:
            some, size = _some_good(inputs, on_bad), proven_for
            try:
                sizes = make_setup(model, some, sites, fitted, prove=compute, batch_size=size).sizes
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OptionError(
                    f"collect: a batch of {size} samples does not fit in memory, even without "
                    f"gradients ({str(error)[:200]}); choose a smaller batch_size"
                ) from error
        setup = make_setup(model, sample, sites, fitted, labels, sizes=sizes)
        batch = run_batch(setup, ActGrad(), Compute())
        if fitted.uses_labels and batch.output.ndim == 2:
            inputs.check_outputs(batch.output.shape[1])
        infos = tuple(
            SiteInfo(
                site=part.site, units=part.units, cut=part.cut,
                n_units=part.units.count(part.activation.shape),
                n_positions=part.units.positions(part.activation.shape),
            )
            for part in batch.by_site
        )  # fmt: skip
        if keep is not None:
            laid = (by_position(part.activation, part.units) for part in batch.by_site)
            n_places = [each.shape[1] for each in laid]
            infos = tuple(
                replace(info, n_places=number, n_kept=min(keep, number))
                for info, number in zip(infos, n_places, strict=True)
            )
        # What is recorded, and what runs before the first site: images are widened there.
        recorded = sum(part.activation.numel() for part in batch.by_site)
        keys = [info.site.key for info in infos]
        return BatchPlan(
            model=model, inputs=inputs, infos=infos, compute=compute, on_bad=on_bad,
            method=method.fit(fit_on or inputs), target=setup.target, sizes=setup.sizes,
            entries=recorded + _WIDENED * sample.numel(),
            decides=recipe_of(model, inputs, keys, method, target, compute, fit_on)
            | ({} if keep is None else {"rows": "positions", "keep": keep, "seed": seed}),
            seed=seed,
        )  # fmt: skip

    def on(self, device: torch.device) -> "BatchPlan":
        """Return the same plan for a copy of the model on another device."""
        return replace(self, model=copy.deepcopy(self.model).to(device))

    def recipe(self, batch_size: int) -> dict[str, Any]:
        """Return everything that decides the numbers in the store."""
        return {
            **self.decides,
            "reduction": "sum over positions after the sign split",
            "batch_size": batch_size,
            "condec": metadata.version("condec"),
        }

    def estimate(self, batch_size: int, n_samples: int, shard_size: int = 0) -> str:
        """Say what `n_samples` will take: one pass is timed, the rest is counted."""
        n_samples, n_passes = min(n_samples, len(self.inputs)), self.method.n_passes
        size = min(batch_size, n_samples)
        seconds = self.time_input(size) * n_samples
        return (
            f"{n_samples} samples, {len(self.infos)} sites, {n_passes} passes a batch: about "
            f"{duration(seconds)}, "
            f"{self.memory(size, shard_size) / 2**20:.0f} MiB of memory, at most "
            f"{self.disk() / 2**20:.0f} MiB of disk"
        )

    def disk(self) -> int:
        """Return the bytes that the store takes at most."""
        return len(self.inputs) * sum(info.n_bytes for info in self.infos)

    def memory(self, n_samples: int, shard_size: int = 0) -> int:
        """Estimate the bytes that a batch takes, without the model.

        And the rows of two shards, of which one is written while the next is made.
        """
        waiting = 2 * min(shard_size, len(self.inputs)) * sum(i.n_bytes for i in self.infos)
        recorded = sum(info.n_units * info.n_positions for info in self.infos)
        kept = 2 * self.method.n_kept * recorded
        return 4 * (_MEMORY_FACTOR * self.entries + kept) * n_samples + waiting

    def time_input(self, size: int) -> float:
        """Measure the seconds of an input in batches of a `size`: of its passes, or its reading.

        Inputs are read while others are computed: what takes longer counts.
        """
        started = time.perf_counter()
        self.load(range(size))
        reading = (time.perf_counter() - started) / size
        return max(reading, self.time_pass(size, again=1) / size * self.method.n_passes)

    def time_pass(self, n_samples: int, *, again: int = 0) -> float:
        """Measure the seconds of one forward and backward pass, the least of 1 + `again` tries."""
        row, sample = first_good(self.inputs, self.on_bad)
        samples = sample.expand(n_samples, *sample.shape[1:]).clone()
        batch, seconds = LoadedBatch((row,) * n_samples, tuple(range(n_samples)), samples), []
        for _ in range(1 + again):
            started = time.perf_counter()
            self._attribute(ActGrad(), batch)
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    def load(self, rows: Sequence[int]) -> LoadedBatch:
        """Load the inputs of `rows`, checked; those that cannot be used are left out or refused."""
        good = dict(usable(self.inputs, rows, self.on_bad))
        samples = torch.stack(list(good.values())) if good else torch.empty(0)
        # Page-locked memory is copied to a GPU while the GPU computes.
        on_gpu = any(p.is_cuda for p in self.model.parameters())
        samples = samples.pin_memory() if on_gpu and good else samples
        return LoadedBatch(tuple(rows), tuple(good), samples)

    def run(self, batch: LoadedBatch) -> dict[str, Any]:
        """Compute what `Store.write_shard` takes of one batch; DataError names samples by id.

        A batch that memory does not hold is done in halves, with a warning: the last bits may be
        others than those of whole batches, which the recipe tells.
        """
        size = len(batch.rows)
        try:
            return self._run(batch)
        except (MemoryError, RuntimeError) as error:
            alone = self.method.least_samples == self.sizes.least == 1 and not self.sizes.only
            if not (is_out_of_memory(error) and alone and size > 1):
                raise
            problem = str(error).partition("\n")[0]
        # Here nothing holds what that pass has recorded.
        warnings.warn(
            f"a batch of {size} samples does not fit in memory ({problem}); done in halves, whose "
            "last bits may differ: a smaller batch_size makes the same numbers everywhere",
            stacklevel=2,
        )
        return joined([self.run(half) for half in batch.halves()])

    def _run(self, batch: LoadedBatch) -> dict[str, Any]:
        rows, good, arrays = list(batch.rows), list(batch.good), arrays_of(self.infos)
        ids = tuple(self.inputs.ids[row] for row in rows)
        found: dict[str, Any] = {"inputs/id": ids}
        values = self._values(batch, [ids[place] for place in good]) if good else {}
        for name, array in arrays.items():
            if name == "inputs/id":
                continue
            dtype, value = getattr(torch, array.dtype), values.get(name)
            if value is not None and len(good) == len(rows):
                found[name] = value.cpu().to(dtype)
                continue
            found[name] = torch.full((len(rows), *array.tail), array.fill, dtype=dtype)
            if value is not None:
                found[name][good] = value.cpu().to(dtype)
        if self.inputs.labels is not None:
            found["inputs/label"] = self.inputs.labels[rows]
        return found

    def _values(self, batch: LoadedBatch, ids: Sequence[str]) -> dict[str, Tensor | None]:
        """Compute the arrays of the samples of a batch that can be used, which have these `ids`."""
        try:
            whole = self._attribute(self.method, batch)
        except DataError as error:
            raise _named(error, ids) from error
        reduced = whole.reduce()
        of_sample = ("prediction", "target", "target_baseline", "steps")
        values = {f"inputs/{name}": getattr(reduced, name) for name in of_sample}
        values["inputs/valid"] = torch.ones(len(ids), dtype=torch.bool)
        for info in self.infos:
            part = reduced[info.site]
            values |= {f"{info.folder}/{name}": getattr(part, name) for name in QUANTITIES}
            if info.n_kept:
                here = whole[info.site].contribution
                values |= self._at_places(info, here, batch.inputs, ids)
        return values

    def _at_places(
        self, info: SiteInfo, contribution: Tensor, inputs: Tensor, ids: Sequence[str]
    ) -> dict[str, Tensor]:
        """Choose positions of every sample, and return the arrays of a site of which some stay."""
        real = real_places(self.model, inputs, info)
        chosen, n_places = chosen_places(info, ids, self.seed, real)
        laid = by_position(contribution, info.units)
        index = chosen.clamp(min=0).long().to(laid.device)
        kept = laid[torch.arange(len(laid), device=laid.device)[:, None], index].cpu()
        kept[chosen < 0] = torch.nan
        values = {AT_PLACES: kept, POSITION: chosen, N_PLACES: n_places}
        return {f"{info.folder}/{name}": value for name, value in values.items()}

    def _attribute(self, method: Method, batch: LoadedBatch) -> Contributions:
        inputs, labels = prepare_inputs(self.model, batch.inputs), self.inputs.labels
        labels = None if labels is None else labels[[batch.rows[place] for place in batch.good]]
        sites = tuple(info.site for info in self.infos)
        units = {info.site.key: info.units for info in self.infos}
        setup = Setup(self.model, inputs, sites, self.target, labels, units, self.sizes)
        cuts = {info.site.key: info.cut for info in self.infos}
        return run_batch(setup, method, self.compute, cuts)


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join what `BatchPlan.run` has given of batches, in their order."""
    return {
        name: tuple(chain.from_iterable(part[name] for part in parts))
        if name == "inputs/id"
        else torch.cat([part[name] for part in parts])
        for name in parts[0]
    }


def recipe_of(
    model: nn.Module, inputs: Inputs, sites: Sequence[str], method: Method, target: Target,
    compute: Compute, fit_on: Inputs | None,
) -> dict[str, Any]:  # fmt: skip
    """Return what decides the numbers in a store, but for the size of its batches."""
    return ({} if fit_on is None else {"fit_on": fit_on.fingerprint}) | {
        "model": fingerprint(model),
        "data": inputs.fingerprint,
        "n_samples": len(inputs),
        "sites": list(sites),
        "method": method.to_dict(),
        "target": target.to_dict(),
        "compute": compute.to_dict(),
    }


def fingerprint(model: nn.Module) -> str:
    """Hash a model's class, parameters and buffers: changes if any of them does."""
    model = original(model)
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"


def chosen_batch(plan: BatchPlan, out: str | Path) -> int:
    """Choose the batch size of a collection: that of the store where one is, else by timing.

    Sizes are doubled from 1 on, until two in a row are no faster a sample than the best by 5 %,
    or half of the free memory would be taken; the smallest within 5 % of the best is chosen.
    """
    with suppress(StoreError, KeyError):
        return int(Store.open(out).recipe["batch_size"])
    seconds: dict[int, float] = {}
    size, room = 1, _free_memory(plan.model) // 2
    while size <= min(_LARGEST_BATCH, 2 * len(plan.inputs)) and plan.memory(size) <= room:
        try:
            seconds[size] = plan.time_pass(size, again=2) / size
        except torch.OutOfMemoryError:
            break
        best = min(seconds.values())
        if len(seconds) > 2 and min(list(seconds.values())[:-2]) < 1.05 * best:
            break
        size *= 2
    return min((n for n, each in seconds.items() if each <= 1.05 * best), default=1)


def usable(inputs: Inputs, rows: Sequence[int], on_bad: str) -> Iterator[tuple[int, Tensor]]:
    """Load rows: place in `rows` and sample of each; what cannot be used is skipped, or raises."""
    for place, row in enumerate(rows):
        try:
            sample = inputs.load(row)
        except DataError as error:
            if on_bad == "raise":
                raise DataError(f"{error} (on_bad='skip' leaves such inputs out)") from error
            continue
        yield place, sample


def first_good(inputs: Inputs, on_bad: str) -> tuple[int, Tensor]:
    """Load the first sample that can be used: its row, and a batch of it."""
    for row, sample in usable(inputs, range(len(inputs)), on_bad):
        return row, sample[None]
    raise DataError(f"{inputs.name}: none of the {len(inputs)} samples can be used")


def _some_good(inputs: Inputs, on_bad: str) -> Tensor:
    """Load the first two samples that can be used; one, if there is no other."""
    good = usable(inputs, range(len(inputs)), on_bad)
    return torch.stack([sample for _, sample in islice(good, 2)])


def _outputs(model: nn.Module, inputs: Inputs, on_bad: str) -> Tensor:
    """Return the model's outputs to all samples that can be used, on the CPU."""
    refuse_training(model)
    samples = (sample for _, sample in usable(inputs, range(len(inputs)), on_bad))
    found: list[Tensor] = []
    while some := list(islice(samples, _FIT_BATCH)):
        with torch.no_grad():
            found.append(run_model(model, prepare_inputs(model, torch.stack(some))).cpu())
    return torch.cat(found)


def _named(error: DataError, ids: Sequence[str]) -> DataError:
    """Return the error with the ids of the samples that it is about."""
    if not error.samples:
        return DataError(f"samples {ids[0]!r} to {ids[-1]!r}: {error}")
    named = [repr(ids[place]) for place in error.samples]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return DataError(f"samples {', '.join(named[:5])}{more}: {error}")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was short; on a CPU torch says so in words alone."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error)


def _free_memory(model: nn.Module) -> int:
    """Return the bytes that are free on the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2**32
