"""S7: fitting a dictionary, against the loops that people write, and a sweep against its parts.

Side by side in one process, in turns: condec's fit; a loop over ``DataLoader(TensorDataset)``
with the same model in plain PyTorch (same initial values, loss, batch size, learning rate and
projection; ``torch.optim.Adam`` as it comes); and, where they are installed, the training loops
of Overcomplete and SAELens with a TopK autoencoder of the same size. A turn is two passes over
as many rows as make ``--steps`` batches; the second is timed (the first warms up). Losses are
those of the same number of steps, in the objective of each, and the error of the reconstruction.
TopK has no AuxK here (Overcomplete's has none, and in so few steps most modes count as dead, which
makes its products whole again); ``--learners topk_aux`` is the worst case with it.

`floor` is what a step cannot go below, from the speed of plain products and copies measured
here: for products of whole matrices, and for those that only go over codes in use.

    python benchmarks/fitting.py [--quick] [--device cuda] [--units 2048] [--modes 6144]
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import synchronize, write

from condec.dictionary import Job, ThresholdSAE, TopKSAE, TrainConfig, fit, fit_many
from condec.dictionary.fitting.descent import GradientLearner, Step, seeded
from condec.models.torchvision import import_torchvision

BATCH = 128
PASSES = 2
CODES = 32
WARMUP = 0.6
FULL = 300 * 391
"""Steps of the paper's fit: 300 passes over 50,000 rows in batches of 128."""


@dataclass(frozen=True)
class Turn:
    """Seconds of the timed pass, its mean loss, and the error of the reconstruction after it."""

    seconds: float
    loss: float
    error: float


class PlainTopK(nn.Module):
    """Gao et al. 2024, with AuxK, as one would write it."""

    def __init__(self, learner: TopKSAE, start: dict[str, Tensor], n_rows: int) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Parameter(start["encoder"]), nn.Parameter(start["bias"])
        self.atoms, self.offset = nn.Parameter(start["atoms"]), nn.Parameter(start["offset"])
        self.k, self.aux_weight = learner.k, learner.aux_weight
        self.idle = torch.zeros(learner.n_modes, device=self.atoms.device)
        self.until_dead = min(n_rows, PASSES * n_rows // 10)

    def codes(self, pre: Tensor, k: int) -> Tensor:
        """The k largest of a row."""
        top = pre.topk(k, dim=1)
        return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())

    def forward(self, rows: Tensor) -> Tensor:
        """Rows as the model describes them."""
        pre = (rows - self.offset) @ self.encoder.T + self.bias
        return self.codes(pre, self.k) @ self.atoms + self.offset

    def loss(self, rows: Tensor, step: int) -> Tensor:
        """Squared error and AuxK."""
        del step
        pre = (rows - self.offset) @ self.encoder.T + self.bias
        z = self.codes(pre, self.k)
        error = rows - (z @ self.atoms + self.offset)
        loss = error.square().mean()
        dead = self.idle >= self.until_dead
        if self.aux_weight and dead.any():
            aux = self.codes(pre.masked_fill(~dead, -torch.inf), rows.shape[1] // 2)
            left = (error.detach() - aux @ self.atoms).square().mean()
            loss = loss + self.aux_weight * left / error.detach().square().mean()
        self.idle = torch.where((z != 0).any(0), 0.0, self.idle + len(rows))
        return loss

    @torch.no_grad()
    def project(self) -> None:
        """Atoms of length 1."""
        self.atoms /= self.atoms.norm(dim=1, keepdim=True)


class PlainThreshold(nn.Module):
    """Melander et al. 2026, as one would write it, with condec's rising threshold."""

    def __init__(self, learner: ThresholdSAE, start: dict[str, Tensor], n_steps: int) -> None:
        super().__init__()
        d, width = start["atoms"].shape[1], learner.width or start["atoms"].shape[1]
        drop = learner.dropout
        self.encoder = nn.Sequential(
            nn.Linear(d, width), nn.Dropout(drop), nn.ReLU(), nn.LayerNorm(width),
            nn.Linear(width, width), nn.Dropout(drop), nn.ReLU(), nn.LayerNorm(width),
            nn.Linear(width, learner.n_modes, bias=False), nn.Sigmoid(),
        ).to(start["atoms"].device)  # fmt: skip
        head = "encoder."
        state = {k.removeprefix(head): v for k, v in start.items() if k.startswith(head)}
        self.encoder.load_state_dict(state)
        self.atoms = nn.Parameter(start["atoms"])
        self.first = float(start["first_logit"])
        self.learner, self.n_steps = learner, n_steps
        self.risen = 1.0

    def forward(self, rows: Tensor) -> Tensor:
        """Rows as the model describes them."""
        last = torch.logit(torch.tensor(self.learner.threshold))
        threshold = torch.sigmoid(self.first + (last - self.first) * self.risen).item()
        codes = self.encoder(rows)
        return codes * (codes >= threshold) @ self.atoms

    def loss(self, rows: Tensor, step: int) -> Tensor:
        """Squared error and the size of the atoms."""
        self.risen = min(1.0, step / (WARMUP * self.n_steps))
        penalty = self.learner.atom_l1 * self.atoms.abs().mean()
        return (rows - self(rows)).square().mean() + penalty

    def project(self) -> None:
        """Atoms not negative, where asked for."""
        if self.learner.nonnegative:
            self.atoms.data.clamp_(min=0.0)


PLAIN: dict[type, Any] = {TopKSAE: PlainTopK, ThresholdSAE: PlainThreshold}


class Case:
    """One learner on one matrix, and those it is compared with."""

    def __init__(self, learner: GradientLearner, rows: Tensor, device: str, lr: float) -> None:
        self.learner, self.rows, self.device = learner, rows, device
        self.config = TrainConfig(
            epochs=PASSES,
            batch_size=BATCH,
            lr=lr,
            schedule="constant",
            threshold_warmup=WARMUP,
            device=device,
        )
        self.n_steps = PASSES * -(-len(rows) // BATCH)

    def condec(self) -> Turn:
        """What `fit` spends its time in."""
        marks: list[float] = []

        def mark(epoch: object) -> None:
            synchronize()
            marks.append(time.perf_counter())

        learned = self.learner.learn(self.rows.to(self.device), self.config, mark)
        probe = self.rows[:2048].to(self.device)
        with torch.no_grad():
            codes = self.learner.encode(learned.tensors, probe)
            described = codes @ learned.tensors["atoms"] + learned.tensors.get("offset", 0.0)
        return Turn(marks[1] - marks[0], learned.history[-1], _error(probe, described))

    def plain(self) -> Turn:
        """The loop that people write."""
        start = self._start()
        size = len(self.rows) if isinstance(self.learner, TopKSAE) else self.n_steps
        model = PLAIN[type(self.learner)](self.learner, start, size)
        optimiser = torch.optim.Adam(model.parameters(), lr=self.config.lr or 1e-3)
        step, seconds, total = 0, 0.0, 0.0
        for _ in range(PASSES):
            synchronize()
            started, total = time.perf_counter(), 0.0
            for (batch,) in self._loader():
                rows = batch.to(self.device, non_blocking=True)
                loss = model.loss(rows, step)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                model.project()
                total += loss.item() * len(rows)
                step += 1
            synchronize()
            seconds = time.perf_counter() - started
        model.eval()
        probe = self.rows[:2048].to(self.device)
        with torch.no_grad():
            return Turn(seconds, total / len(self.rows), _error(probe, model(probe)))

    def overcomplete(self) -> Turn:
        """Overcomplete's TopKSAE and its train_sae."""
        from overcomplete import sae

        model = sae.TopKSAE(self.rows.shape[1], self.learner.n_modes, top_k=CODES)
        model = model.to(self.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=self.config.lr or 1e-3)
        seconds, losses = 0.0, [0.0]

        def criterion(x: Tensor, x_hat: Tensor, *rest: Tensor) -> Tensor:
            loss = (x - x_hat).square().mean()
            losses.append(loss.detach())
            return loss

        for _ in range(PASSES):
            losses.clear()
            synchronize()
            started = time.perf_counter()
            sae.train_sae(model, self._loader(), criterion, optimiser, nb_epochs=1, monitoring=0,
                          clip_grad=None, device=self.device)  # fmt: skip
            synchronize()
            seconds = time.perf_counter() - started
        model.eval()
        probe = self.rows[:2048].to(self.device)
        with torch.no_grad():
            return Turn(seconds, float(sum(losses)) / len(losses), _error(probe, model(probe)[2]))

    def saelens(self) -> Turn:
        """SAELens' TopKTrainingSAE and SAETrainer, without logging."""
        from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig

        options = TopKTrainingSAEConfig(
            k=CODES, d_in=self.rows.shape[1], d_sae=self.learner.n_modes, device=self.device
        )
        model = TopKTrainingSAE(options)
        config = SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
            total_training_samples=PASSES * len(self.rows), device=self.device, autocast=False,
            lr=self.config.lr or 1e-3, lr_end=self.config.lr, lr_scheduler_name="constant",
            lr_warm_up_steps=0, adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0,
            n_restart_cycles=1, train_batch_size_samples=BATCH, dead_feature_window=1000,
            feature_sampling_window=2000, logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        marks: list[float] = []

        def forever() -> Iterator[Tensor]:
            while True:
                synchronize()
                marks.append(time.perf_counter())
                for (batch,) in self._loader():
                    yield batch.to(self.device, non_blocking=True)

        with Path(os.devnull).open("w") as quiet, contextlib.redirect_stderr(quiet):
            SAETrainer(config, model, forever()).fit()
        synchronize()
        marks.append(time.perf_counter())
        probe = self.rows[:2048].to(self.device)
        with torch.no_grad():
            error = _error(probe, model(probe))
        return Turn(marks[PASSES] - marks[PASSES - 1], error, error)

    def agree(self) -> float:
        """Relative difference of the losses of the first batch: 0 where the models are the same."""
        start, rows = self._start(), self.rows[:BATCH].to(self.device)
        n = len(self.rows) if isinstance(self.learner, TopKSAE) else self.n_steps
        plain = PLAIN[type(self.learner)](self.learner, start, n)
        torch.manual_seed(0)
        step = Step(0, self.n_steps, warmup=self.config.threshold_warmup)
        ours = self.learner.cost(self._start(), rows, step).loss
        torch.manual_seed(0)
        return abs(1.0 - float(plain.loss(rows, 0).detach()) / float(ours.detach()))

    def _start(self) -> dict[str, Tensor]:
        with seeded(self.config, torch.device(self.device)), torch.no_grad():
            return self.learner.start(self.rows.to(self.device), self.config)

    def _loader(self) -> Any:
        data = torch.utils.data.TensorDataset(self.rows)
        return torch.utils.data.DataLoader(
            data, batch_size=BATCH, shuffle=True, pin_memory=self.device == "cuda"
        )


def main() -> None:
    options = _options()
    n_units, n_modes = options.units, options.modes
    rows = _rows(options.steps * BATCH, n_units)
    learners: dict[str, GradientLearner] = {
        "topk": TopKSAE(n_modes, k=CODES, aux_weight=0.0),
        "topk_aux": TopKSAE(n_modes, k=CODES),
        # The published procedure, which the plain loop follows.
        "threshold": ThresholdSAE(n_modes, atom_rate=1.0, jump=0.0, resample=False),
    }
    record: dict[str, Any] = {
        "units": n_units,
        "modes": n_modes,
        "batch": BATCH,
        "device": options.device,
        "steps_measured_a_turn": options.steps,
        "turns": options.turns,
        "speeds": (speeds := measured_speeds(n_units, n_modes, options.device)),
    }
    for name in options.learners:
        learner = learners[name]
        lr = 1e-4 if name == "threshold" else 3e-4
        record[name] = compared(Case(learner, rows, options.device, lr), options.turns)
        record[name]["floor"] = floor(learner, n_units, speeds)
    if options.sweep:
        record["sweep"] = sweep(options)
    write(options.out, record)


def compared(case: Case, turns: int) -> dict[str, Any]:
    """Every loop in turns; milliseconds a step, losses, and how many times as long as condec."""
    loops: dict[str, Callable[[], Turn]] = {"condec": case.condec, "plain": case.plain}
    missing = {}
    if isinstance(case.learner, TopKSAE):
        for name, loop in (("overcomplete", case.overcomplete), ("saelens", case.saelens)):
            try:
                import_torchvision()  # which Overcomplete asks for, and an older Matplotlib
                matplotlib.cm.get_cmap = matplotlib.colormaps.__getitem__
                __import__("overcomplete" if name == "overcomplete" else "sae_lens")
                loops[name] = loop
            except ImportError as error:
                missing[name] = f"not installed: {error}"
    taken: dict[str, list[Turn]] = {name: [] for name in loops}
    for _ in range(turns):
        for name, loop in loops.items():
            taken[name].append(loop())
            print(name, taken[name][-1], flush=True)
    n = case.n_steps // PASSES
    result: dict[str, Any] = {
        "learner": case.learner.to_dict(),
        "lr": case.config.lr,
        "same_model": case.agree(),
        **missing,
    }
    for name, found in taken.items():
        result[name] = {
            "ms_a_step": [1e3 * turn.seconds / n for turn in found],
            "loss": found[-1].loss,
            "error": found[-1].error,
            "full_fit_minutes_extrapolated": min(t.seconds for t in found) / n * FULL / 60,
            "times_condec": statistics.median(
                a.seconds / b.seconds for a, b in zip(found, taken["condec"], strict=True)
            ),
        }
    return result


def measured_speeds(n_units: int, n_modes: int, device: str) -> dict[str, float]:
    """GFLOP/s of the product of a batch with the weights, and GB/s of a copy."""
    rows = torch.randn(BATCH, n_units, device=device)
    weights = torch.randn(n_modes, n_units, device=device)
    other = torch.empty_like(weights)
    product = _fastest(lambda: rows @ weights.T)
    copy = _fastest(lambda: other.copy_(weights))
    return {
        "product_gflop_s": 2 * BATCH * weights.numel() / product / 1e9,
        "copy_gb_s": 8 * weights.numel() / copy / 1e9,
    }


def floor(learner: GradientLearner, n_units: int, speeds: dict[str, float]) -> dict[str, float]:
    """Milliseconds of a step's products and of Adam's seven passes, if nothing else were done."""
    big = n_units * learner.n_modes
    # The first of the encoder's layers needs no gradient of its input.
    layers = [5 * n_units**2] if isinstance(learner, ThresholdSAE) else []
    dense = sum(layers) + (6 if isinstance(learner, ThresholdSAE) else 5) * big
    in_use = sum(layers) + big
    weights = 2 * big + (2 * n_units**2 if isinstance(learner, ThresholdSAE) else 0)
    adam = 7 * 4 * weights / speeds["copy_gb_s"] / 1e6
    product = 2 * BATCH / speeds["product_gflop_s"] / 1e6
    return {
        "adam_ms": adam,
        "dense_ms": dense * product + adam,
        "codes_in_use_ms": in_use * product + adam,
    }


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """16 sites times 3 seeds: as one list, and one after another."""
    n_sites, n_seeds = (4, 2) if options.quick else (16, 3)
    widths = [(16, 32, 64)[min(2, 3 * i // n_sites)] for i in range(n_sites)]
    sites = [_rows(2000, width, seed=i).to(options.device) for i, width in enumerate(widths)]
    steps = 200 if options.quick else 1000
    jobs = {
        f"{i}.{seed}": Job(
            TopKSAE(3 * site.shape[1], k=4), site, config=TrainConfig(steps=steps, seed=seed)
        )
        for i, site in enumerate(sites)
        for seed in range(n_seeds)
    }
    together, alone, gaps = [], [], []
    for _ in range(1 if options.quick else 2):
        started = time.perf_counter()
        reports = fit_many(jobs)
        synchronize()
        together.append(time.perf_counter() - started)
        started = time.perf_counter()
        single = {
            name: fit(job.learner, job.matrix, config=job.config) for name, job in jobs.items()
        }
        synchronize()
        alone.append(time.perf_counter() - started)
        gaps = [abs(reports[name].r2 - single[name].r2) for name in jobs]
    return {
        "sites": n_sites,
        "seeds": n_seeds,
        "widths": widths,
        "steps": steps,
        "fit_many_seconds": together,
        "one_after_another_seconds": alone,
        "ratio": statistics.median(a / b for a, b in zip(alone, together, strict=True)),
        "largest_difference_of_r2": max(gaps),
    }


def _rows(n_rows: int, n_units: int, seed: int = 0) -> Tensor:
    """Sparse mixtures of random patterns with noise, rectified, of standard deviation 1."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(2 * n_units, n_units, generator=draw).relu()
    rows = 0.1 * torch.randn(n_rows, n_units, generator=draw).abs()
    for part in rows.split(1024):
        use = torch.rand(len(part), len(patterns), generator=draw)
        use = torch.where(use < 8 / len(patterns), 1.0 + use, 0.0)
        part += use @ patterns
    return rows / rows.std()


def _error(rows: Tensor, described: Tensor) -> float:
    return float((rows - described).square().mean())


def _fastest(run: Callable[[], object], repeats: int = 15) -> float:
    seconds = []
    for _ in range(repeats):
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--units", type=int)
    parser.add_argument("--modes", type=int)
    parser.add_argument("--steps", type=int, help="batches in a pass; a turn has two")
    parser.add_argument("--turns", type=int)
    parser.add_argument("--learners", nargs="+", default=["topk", "threshold"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-sweep", dest="sweep", action="store_false")
    parser.add_argument("--out")
    options = parser.parse_args()
    options.units = options.units or (256 if options.quick else 2048)
    options.modes = options.modes or 3 * options.units
    options.steps = options.steps or (20 if options.quick else 100)
    options.turns = options.turns or (2 if options.quick else 3)
    options.out = options.out or ("fitting_quick" if options.quick else "fitting")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    main()
