"""Batches of a collection: loaded, attributed, reduced; how long and how large they are."""

import copy
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from condec.attribution import (
    ActGrad,
    Compute,
    Contributions,
    IntegratedGradients,
    Method,
    Setup,
    Sites,
    make_setup,
    prepare_inputs,
    run_batch,
)
from condec.attribution.targets import Target, TargetLike, TopK, as_target
from condec.basis.errors import DataError, StoreError
from condec.basis.options import require
from condec.data import Inputs
from condec.network import original, refuse_training, run_model
from condec.store.store import Rows, SiteInfo, Store

# Running totals, two records and two gradients a site, the autograd graph and what the
# convolutions need: measured at 6 to 9 times the recorded activations on CPU.
_MEMORY_FACTOR: Final = 9
# Of an image: a first convolution makes about five times its entries, in and out.
_WIDENED: Final = 2
_LARGEST_BATCH: Final = 1024
_FIT_BATCH: Final = 64


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
class BatchPlan:
    """All that one collection needs, worked out once.

    Attributes
    ----------
    model : torch.nn.Module
    inputs : Inputs
    infos : tuple of SiteInfo
        Sites in execution order.
    method, fitted : Method
        As it was given, and with what it takes from the data.
    target, fitted_target : Target
        As it was given, and with what it takes from the model's outputs to the data.
    compute : Compute
    on_bad : {"raise", "skip"}
    entries : int
        Entries of one sample that decide the memory of a pass: at all sites together, and
        before them.
    fit_on : Inputs, or None
        What method and target take from data, they take from these; None: from `inputs`.
    """

    model: nn.Module
    inputs: Inputs
    infos: tuple[SiteInfo, ...]
    method: Method
    fitted: Method
    target: Target
    fitted_target: Target
    compute: Compute
    on_bad: str
    entries: int
    fit_on: Inputs | None = None

    @staticmethod
    def make(
        model: nn.Module,
        inputs: Inputs,
        sites: Sites,
        method: Method | None,
        target: TargetLike | None,
        compute: Compute | None,
        on_bad: str,
        fit_on: Inputs | None = None,
    ) -> "BatchPlan":
        """Runs one sample, to see the sites' shapes."""
        model = original(model)
        method, target = method or IntegratedGradients(), as_target(target or TopK())
        require("collect", "method", method, Method)
        index, sample = _first_good(inputs, on_bad)
        labels = None if inputs.labels is None else inputs.labels[index : index + 1]
        fitted_target = target
        if not target.is_fitted:
            fitted_target = target.fitted(_outputs(model, fit_on or inputs, on_bad))
        setup = make_setup(model, sample, sites, fitted_target, labels)
        batch = run_batch(setup, ActGrad(), Compute())
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
        # What is recorded, and what runs before the first site: images are widened there.
        recorded = sum(part.activation.numel() for part in batch.by_site)
        entries = recorded + _WIDENED * sample.numel()
        fitted = method.fit(fit_on or inputs)
        return BatchPlan(
            model=model,
            inputs=inputs,
            infos=infos,
            method=method,
            fitted=fitted,
            target=target,
            fitted_target=fitted_target,
            compute=compute or Compute(),
            on_bad=on_bad,
            entries=entries,
            fit_on=fit_on,
        )

    def on(self, device: torch.device) -> "BatchPlan":
        """The same plan for a copy of the model on another device."""
        return replace(self, model=copy.deepcopy(self.model).to(device))

    def recipe(self, batch_size: int) -> dict[str, Any]:
        """Everything that decides the numbers in the store."""
        elsewhere = {} if self.fit_on is None else {"fit_on": self.fit_on.fingerprint}
        return elsewhere | {
            "model": fingerprint(self.model),
            "data": self.inputs.fingerprint,
            "n_samples": len(self.inputs),
            "sites": [info.site.key for info in self.infos],
            "method": self.method.to_dict(),
            "target": self.target.to_dict(),
            "compute": self.compute.to_dict(),
            "reduction": "sum over positions after the sign split",
            "batch_size": batch_size,
            "condec": metadata.version("condec"),
        }

    def estimate(self, batch_size: int, n_samples: int) -> Estimate:
        """Time one pass, and count the rest."""
        n_samples = min(n_samples, len(self.inputs))
        size = min(batch_size, n_samples)
        seconds = self.time_pass(self.example(size)) / size
        units = sum(info.n_units for info in self.infos)
        return Estimate(
            n_samples=n_samples,
            n_sites=len(self.infos),
            n_passes=self.fitted.n_passes,
            seconds=seconds * self.fitted.n_passes * n_samples,
            memory_bytes=self.memory(size),
            disk_bytes=len(self.inputs) * units * 2 * 2 * 4,
        )

    def memory(self, n_samples: int) -> int:
        """Bytes that a batch takes, without the model."""
        return _MEMORY_FACTOR * 4 * self.entries * n_samples

    def example(self, n_samples: int) -> "LoadedBatch":
        """A batch to time: the first sample that can be used, again and again."""
        row, sample = _first_good(self.inputs, self.on_bad)
        labels = self.inputs.labels
        return LoadedBatch(
            (row,) * n_samples,
            sample.expand(n_samples, *sample.shape[1:]).clone(),
            None if labels is None else labels[[row] * n_samples],
            tuple(range(n_samples)),
        )

    def time_pass(self, batch: "LoadedBatch") -> float:
        """Seconds of one forward and backward pass."""
        started = time.perf_counter()
        self._attribute(ActGrad(), batch)
        return time.perf_counter() - started

    def load(self, rows: Sequence[int]) -> "LoadedBatch":
        """Inputs of `rows`, checked; those that cannot be used are left out or refused."""
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
        labels = self.inputs.labels
        chosen = None if labels is None else labels[[rows[place] for place in good]]
        stacked = torch.stack(samples) if samples else torch.empty(0)
        # Page-locked memory is copied to a GPU while the GPU computes.
        on_gpu = any(p.is_cuda for p in self.model.parameters())
        stacked = stacked.pin_memory() if on_gpu and samples else stacked
        return LoadedBatch(tuple(rows), stacked, chosen, tuple(good))

    def run(self, batch: "LoadedBatch") -> Rows:
        """Reduced contributions of one batch.

        Raises
        ------
        DataError
            The target or contributions are not finite; the samples' ids are named.
        """
        given, good = self.inputs.labels, list(batch.good)
        values = self._empty(len(batch.rows))
        label = values["label"] if given is None else given[list(batch.rows)]
        ids = tuple(self.inputs.ids[row] for row in batch.rows)
        if good:
            try:
                reduced = self._attribute(self.fitted, batch).reduce()
            except DataError as error:
                raise _named(error, [ids[place] for place in good]) from error
            values["prediction"][good] = reduced.prediction.cpu()
            values["target"][good] = reduced.target.float().cpu()
            values["target_baseline"][good] = reduced.target_baseline.float().cpu()
            if reduced.steps is not None:
                values["steps"][good] = reduced.steps.cpu()
            for part in reduced.by_site:
                values["contribution"][part.site.key][good] = part.contribution.float().cpu()
                values["activation"][part.site.key][good] = part.activation.float().cpu()
        values["valid"][good] = True
        return Rows(ids=ids, **(values | {"label": label}))

    def _attribute(self, method: Method, batch: "LoadedBatch") -> Contributions:
        inputs = prepare_inputs(self.model, batch.inputs)
        sites = tuple(info.site for info in self.infos)
        setup = Setup(self.model, inputs, sites, self.fitted_target, batch.labels)
        cuts = {info.site.key: info.cut for info in self.infos}
        return run_batch(setup, method, self.compute, cuts)

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
            "steps": torch.full((n_rows,), -1),
            "valid": torch.zeros(n_rows, dtype=torch.bool),
            "contribution": units(),
            "activation": units(),
        }


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """Inputs of some rows, in memory.

    Attributes
    ----------
    rows : tuple of int
        Rows of the data set that were asked for.
    inputs : Tensor of shape [good sample, ...]
    labels : Tensor of shape [good sample], or None
    good : tuple of int
        Places in `rows` of the inputs that could be used.
    """

    rows: tuple[int, ...]
    inputs: Tensor
    labels: Tensor | None
    good: tuple[int, ...]


def _named(error: DataError, ids: Sequence[str]) -> DataError:
    """The error with the ids of the samples that it is about."""
    if not error.samples:
        return DataError(f"samples {ids[0]!r} to {ids[-1]!r}: {error}")
    named = [repr(ids[place]) for place in error.samples]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return DataError(f"samples {', '.join(named[:5])}{more}: {error}")


def fingerprint(model: nn.Module) -> str:
    """Name and SHA-256 of a model's class, parameters and buffers: changes if any of them does."""
    model = original(model)
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return f"{type(model).__name__} {digest.hexdigest()[:16]}"


def chosen_batch(plan: BatchPlan, out: str | Path) -> int:
    """Batch size for a collection: that of the store where one is, else by timing passes.

    Sizes are doubled from 1 on, until two in a row are no faster a sample than the best by 5 %,
    or half of the free memory would be taken; the smallest within 5 % of the best is chosen.
    """
    try:
        return int(Store.open(out).recipe["batch_size"])
    except (StoreError, KeyError):
        pass
    seconds: dict[int, float] = {}
    size, room = 1, _free_memory(plan.model) // 2
    while size <= min(_LARGEST_BATCH, 2 * len(plan.inputs)) and plan.memory(size) <= room:
        batch = plan.example(size)
        try:
            seconds[size] = min(plan.time_pass(batch) for _ in range(3)) / size
        except torch.OutOfMemoryError:
            break
        best = min(seconds.values())
        if len(seconds) > 2 and min(list(seconds.values())[:-2]) < 1.05 * best:
            break
        size *= 2
    return min((n for n, each in seconds.items() if each <= 1.05 * best), default=1)


def _free_memory(model: nn.Module) -> int:
    """Bytes free on the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2**32


def _outputs(model: nn.Module, inputs: Inputs, on_bad: str) -> Tensor:
    """The model's outputs to all samples that can be used, on the CPU."""
    refuse_training(model)
    found: list[Tensor] = []
    samples: list[Tensor] = []
    for row in range(len(inputs)):
        try:
            samples.append(inputs.load(row))
        except DataError:
            if on_bad == "raise":
                raise
        if samples and (len(samples) == _FIT_BATCH or row == len(inputs) - 1):
            with torch.no_grad():
                batch = prepare_inputs(model, torch.stack(samples))
                found.append(run_model(model, batch).cpu())
            samples = []
    return torch.cat(found)


def _first_good(inputs: Inputs, on_bad: str) -> tuple[int, Tensor]:
    for row in range(len(inputs)):
        try:
            return row, inputs.load(row)[None]
        except DataError:
            if on_bad == "raise":
                raise
    raise DataError(f"{inputs.name}: none of the {len(inputs)} samples can be used")


def join_rows(parts: Sequence[Rows]) -> Rows:
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
        steps=torch.cat([torch.as_tensor(part.steps) for part in parts]),
    )
