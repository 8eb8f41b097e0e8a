"""Records of a fit: its options, the outcome of a learner, and how good it is on each split."""

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.records import short_repr
from condec.basis.shapes import SampleIndex

Schedule = Literal["cosine", "plateau", "constant"]
Scaling = Literal["global", "unit", "none"]
Freeze = Literal["encoder", "decoder"]
Precision = Literal["float32", "bfloat16"]

_RULES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "count": (lambda v: operator.index(v) >= 1, "a whole number of at least 1"),
    "seed": (lambda v: 0 <= operator.index(v) < 2**32, "from 0 to 2**32 - 1"),
    "positive": (lambda v: 0.0 < v < math.inf, "above 0 and finite"),
    "size": (lambda v: 0.0 <= v < math.inf, "finite and not negative"),
    "share": (lambda v: 0.0 <= v < 1.0, "from 0 to below 1"),
}


def check_fields(option: Any, **rules: str | tuple[str, ...]) -> None:
    """Refuse fields of an option that break a rule of `_RULES`, or are not one of some words.

    None passes where the field's type has it.
    """
    kinds = {field.name: get_args(field.type) for field in dataclasses.fields(option)}
    for name, rule in rules.items():
        value, optional = getattr(option, name), type(None) in kinds[name]
        if value is None and optional:
            continue
        if isinstance(rule, tuple):
            good, words = value in rule, f"one of {', '.join(rule)}{', or None' * optional}"
        else:
            holds, words = _RULES[rule]
            try:
                good = holds(value)
            except TypeError:
                good = False
        if not good:
            raise OptionError(f"{type(option).__name__}: {name} must be {words}; got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    r"""Options of fitting a dictionary: the split, the seeds, the scale, the optimisation.

    The sum of the learning rates decides how far a fit goes (Adam moves every weight by about
    that much). The default fixes the number of steps and that sum, for any number of rows; give
    `epochs` or `lr` to set them by hand. `lr`, `schedule`, `clip`, `precision`, `patience` and
    `freeze` are of learners by gradient descent. A number outside its range, an unknown word or
    device is an OptionError.

    Parameters
    ----------
    epochs, steps
        Passes over the training rows; by default as many as make about `steps` steps.
    lr
        Learning rate of Adam at its highest. By default chosen by the learner for the number
        of steps and units; `FitReport.config` says which.
    schedule
        Cosine decay to 0; halved after 10 epochs without a better training loss; constant.
    threshold_warmup
        Share of the steps in which the threshold of the codes rises to its value, from where
        about 64 codes of a row pass it. With 0, most or all modes are dead on small data.
    held_out, split_seed
        Share of the rows split off before anything is fitted, and the seed of the split: fits of
        several seeds share their rows.
    seed
        Of initial values, order of the batches and dropout.
    device
        Where to fit; by default where the matrix is.
    clip
        Longest gradient, over all weights at once.
    scaling, centre
        Divisor of the rows: the standard deviation of all entries, that of every unit, none. Take
        the mean of every unit out: rows are then partly negative, not for `NMF`. Decoding undoes
        both.
    precision
        Of products; weights, gradients, the optimiser and later encoding stay in float32.
    patience
        Stop after so many epochs in which the training loss did not fall by a thousandth;
        epochs in which the threshold rises do not count.
    memory_gib
        Memory for rows. A stored matrix (`Store.rows`) that needs more, with the copies that
        fitting makes, is read in blocks, pass by pass.
    freeze
        Half of a dictionary that stays as it was drawn (`fit_rivals`).
    """

    epochs: int | None = None
    steps: int = 3000
    batch_size: int = 128
    lr: float | None = None
    schedule: Schedule = "cosine"
    threshold_warmup: float = 0.6
    held_out: float = 0.2
    seed: int = 0
    split_seed: int = 0
    device: str | None = None
    clip: float | None = None
    scaling: Scaling = "global"
    centre: bool = False
    precision: Precision = "float32"
    patience: int | None = None
    memory_gib: float = 4.0
    freeze: Freeze | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            **dict.fromkeys(("epochs", "steps", "batch_size", "patience"), "count"),
            **dict.fromkeys(("lr", "clip", "memory_gib"), "positive"),
            **dict.fromkeys(("threshold_warmup", "held_out"), "share"),
            **dict.fromkeys(("seed", "split_seed"), "seed"),
            schedule=get_args(Schedule), scaling=get_args(Scaling),
            precision=get_args(Precision), freeze=get_args(Freeze),
        )  # fmt: skip
        try:
            torch.device(self.device or "cpu")
        except RuntimeError as error:
            raise OptionError(
                f"TrainConfig: device {self.device!r} is not one of torch, such as 'cpu' or "
                f"'cuda:0' ({error})"
            ) from error

    @classmethod
    def paper(cls, **changes: Any) -> "TrainConfig":
        """Return the optimisation of Melander et al. 2026: Adam at 5e-5, plateau, 300 epochs.

        Made for 50,000 rows; with few it is far from converged. `changes` override fields.

        >>> TrainConfig.paper(seed=1).lr
        5e-05
        """
        recipe: dict[str, Any] = {"epochs": 300, "batch_size": 128, "lr": 5e-5}
        return cls(**recipe | {"schedule": "plateau", "threshold_warmup": 0.0} | changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "TrainConfig":
        """Invert `to_dict`; an unknown field is an OptionError."""
        try:
            return cls(**record)
        except TypeError as error:
            raise OptionError(f"TrainConfig: {error}") from error


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows, as handed to ``fit(..., on_epoch=...)``.

    `index` counts from 0; `loss` is the mean training loss of the prepared rows, `lr` the
    learning rate of the last step.
    """

    index: int
    n_epochs: int
    loss: float
    lr: float


OnEpoch = Callable[[Epoch], None]


@short_repr
@dataclass(frozen=True, eq=False)
class Learned:
    """Outcome of a learner, on any device.

    `tensors` are ``"atoms"`` [mode, unit], where there is one ``"offset"`` [unit], and all else
    that encoding needs, for prepared data; `config` and `history` are as in `Training`.
    """

    tensors: dict[str, Tensor]
    config: TrainConfig
    history: tuple[float, ...] = ()


@short_repr
@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of a dictionary on some rows; docs/how-to/believe.md has the formulas.

    `r2` is against the mean of every unit, `r2_grand` against one mean for all entries (the
    paper's); `cosine`, `shrinkage`, `l0` and `loading_hoyer` are means over rows; `n_alive` modes
    have a loading above 0 in at least one row, `dead_share` is the share of the others. Numbers of
    atoms (`atom_hoyer`, `coherence`, the largest, `mean_coherence`, `effective_rank`) are over
    alive modes: the others are as they were drawn. None where a number is not defined, and in
    dictionaries saved before it was measured.
    """

    n_rows: int
    r2: float
    r2_grand: float
    cosine: float
    l0: float
    n_alive: int
    dead_share: float | None = None
    shrinkage: float | None = None
    atom_hoyer: float | None = None
    loading_hoyer: float | None = None
    coherence: float | None = None
    mean_coherence: float | None = None
    effective_rank: float | None = None


@short_repr
@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """Record of a fit, and of the dictionary's quality on either split; saved with it.

    `config` has all that was left open filled in; `n_rows` counts the rows of both splits, of which
    `held_out_rows` [sample], ascending, took no part. `metrics` is by split: ``"train"`` and, where
    rows were held out, ``"held_out"``. `n_alive` modes have a loading above 0 in any row of either
    split (those that `Modes` keeps). `history` is the training loss by epoch; empty without epochs.
    `origin` is a digest of which samples the rows are, of a store; else empty.
    """

    config: TrainConfig
    n_rows: int
    held_out_rows: SampleIndex
    metrics: dict[str, Quality]
    n_alive: int
    history: tuple[float, ...] = ()
    origin: str = ""

    @property
    def train_rows(self) -> SampleIndex:
        """Rows of the matrix that were fitted, ascending."""
        return complement(self.held_out_rows, self.n_rows)

    @property
    def held_out(self) -> Quality:
        """Metrics of the held-out rows; DataError where there are none."""
        if "held_out" not in self.metrics:
            raise DataError(
                f"{type(self).__name__}: no rows were held out, so there is no held-out figure; "
                "take metrics['train'], or fit with TrainConfig(held_out=0.2)"
            )
        return self.metrics["held_out"]

    @property
    def r2(self) -> float:
        """R2 on the held-out rows."""
        return self.held_out.r2

    @property
    def r2_grand(self) -> float:
        """The paper's R2 on the held-out rows."""
        return self.held_out.r2_grand

    @property
    def cosine(self) -> float:
        """Mean cosine on the held-out rows."""
        return self.held_out.cosine

    @property
    def l0(self) -> float:
        """Mean L0 on the held-out rows."""
        return self.held_out.l0

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form, but for `held_out_rows`."""
        metrics = {k: dataclasses.asdict(v) for k, v in self.metrics.items()}
        return {
            "config": self.config.to_dict(), "n_rows": self.n_rows, "metrics": metrics,
            "n_alive": self.n_alive, "history": list(self.history),
            **({"origin": self.origin} if self.origin else {}),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], held_out_rows: SampleIndex) -> "Training":
        """Invert `to_dict`."""
        return cls(
            config=TrainConfig.from_dict(record["config"]), n_rows=record["n_rows"],
            held_out_rows=held_out_rows,
            metrics={k: Quality(**v) for k, v in record["metrics"].items()},
            n_alive=record["n_alive"], history=tuple(record["history"]),
            origin=record.get("origin", ""),
        )  # fmt: skip


def complement(rows: SampleIndex, n_rows: int) -> Int[torch.Tensor, " other"]:
    """Return the rows out of `n_rows` that are not among `rows`, ascending."""
    rest = torch.ones(n_rows, dtype=torch.bool)
    rest[rows] = False
    return rest.nonzero().flatten()
