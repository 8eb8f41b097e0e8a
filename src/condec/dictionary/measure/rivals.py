"""Rivals of a dictionary: others that should do worse, if what was learned is what counts."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import correlation_matrix, l0
from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import Dictionary, Learner, as_matrix
from condec.dictionary.fitting.train import DeadModesWarning, FitReport, fit
from condec.dictionary.learners.classical import NMF, PCA
from condec.dictionary.measure.quality import quality_of
from condec.dictionary.records import Freeze, TrainConfig, complement

if TYPE_CHECKING:
    import pandas

Rival = Literal["frozen_decoder", "frozen_encoder", "shuffled_units", "activations", "pca", "nmf"]
RIVALS: Final[tuple[Rival, ...]] = get_args(Rival)
_NAMES: Final = {
    "frozen_decoder": "a dictionary of random atoms, of which only the encoder was trained",
    "frozen_encoder": "a dictionary with a random encoder, of which only the atoms were trained",
    "shuffled_units": "a dictionary of the same matrix with each unit's values shuffled over rows",
    "activations": "a dictionary of activations at equal L0",
    "pca": "PCA at equal L0",
    "nmf": "NMF at equal L0",
}
_CLASSICAL: Final[dict[Rival, type[Learner]]] = {"pca": PCA, "nmf": NMF}
_FROZEN: Final[dict[str, Freeze]] = {"frozen_decoder": "decoder", "frozen_encoder": "encoder"}
_FIGURES: Final = ("r2", "r2_grand", "cosine", "l0", "n_alive")
_MEASURES: Final = {"r2": "R2", "label_correlation": "label correlation"}
_NMF_PASSES: Final = 300
"""Passes of the rival NMF: the last ones take long and change little."""


def fit_rivals(
    learner: Learner, matrix: UnitMatrix | np.ndarray, *,
    activations: Float[torch.Tensor, "sample other"] | np.ndarray | None = None,
    indicators: Shaped[torch.Tensor, "sample label"] | None = None,
    rivals: Sequence[Rival] | None = None, config: TrainConfig | None = None,
    held_out_rows: Int[torch.Tensor, " held_out"] | None = None, fitted: Dictionary | None = None,
) -> "pandas.DataFrame":  # fmt: skip
    """Fit a dictionary and its rivals to the same rows, and measure all on the same others.

    - ``"frozen_decoder"``, ``"frozen_encoder"``: half of a learner by gradient descent stays
      random (`TrainConfig.freeze`).
    - ``"shuffled_units"``: each column of the matrix permuted by itself, within either split.
    - ``"activations"``: the same learner on `activations`.
    - ``"pca"``, ``"nmf"``: as many modes, as far as rows and units allow; the learner itself is
      no rival of its own.

    The last three are measured at equal L0: of each row, as many loadings are kept as the
    dictionary has on it, those that move the reconstruction most (loading times length of the
    atom); the others are 0, and those kept are not worked out again.

    The table has one row for ``"dictionary"`` and each rival: `rival`, and on held-out rows `r2`,
    `r2_grand`, `cosine`, `l0`, `n_alive`, and `label_correlation`: of every label's best mode,
    chosen on training rows, the mean over labels (NaN without indicators).

    A rival that is unknown, or that the learner or the data do not allow, is an OptionError;
    activations, indicators or `fitted` of other samples, and no rows held out, a DataError.

    Parameters
    ----------
    activations, indicators : Tensor of shape [sample, other unit], [sample, label]; optional
        Of the same samples; their membership in labels, for `label_correlation`.
    rivals : sequence of str, optional
        By default all that can be fitted: ``"activations"`` if they are given, frozen halves if
        the learner trains by gradient descent, NMF if nothing is negative; not the learner itself.
    fitted : Dictionary, optional
        Result of `fit` with this learner, matrix and config, if at hand: it is not fitted again,
        and the rivals hold out the rows that it records.
    """
    import pandas as pd

    config = config or TrainConfig()
    rows = as_matrix(matrix, "fit_rivals")
    others = None if activations is None else as_matrix(activations, "fit_rivals")
    for name, given in (("activations", others), ("indicators", indicators)):
        if given is not None and len(given) != len(rows):
            raise DataError(
                f"fit_rivals: {name} of {len(given)} samples cannot be compared with a matrix "
                f"of {len(rows)} rows; take the same samples"
            )
    chosen = _chosen(rivals, learner, rows, others)
    with warnings.catch_warnings():
        # The table has the number of alive modes; a rival need not be at its very best.
        warnings.simplefilter("ignore", DeadModesWarning)
        warnings.filterwarnings("ignore", message="fit: all|NMF: not at its end")
        if fitted is None:
            base = fit(learner, rows, config=config, held_out_rows=held_out_rows)
        else:
            base = known_report(fitted, len(rows), "fit_rivals")
        if not len(base.held_out_rows):
            raise DataError("fit_rivals: no rows are held out; take TrainConfig(held_out=0.2)")
        used = l0(base.dictionary.encode(rows))
        lines = [{"rival": "dictionary"} | _measured(base, rows, None, indicators)]
        for rival in chosen:
            data = rows
            if rival == "activations" and others is not None:
                data = others
            elif rival == "shuffled_units":
                data = _shuffled(rows, base.held_out_rows, config.seed)
            report = _fitted(rival, learner, data, config, base)
            keep = used if rival in ("activations", "pca", "nmf") else None
            lines.append({"rival": rival} | _measured(report, data, keep, indicators))
    return pd.DataFrame(lines)


def rival_words(table: "pandas.DataFrame", *, margin: float = 0.05) -> tuple[str, ...]:
    """Write one sentence for each rival of `rivals_as_good`."""
    figures = {str(line["rival"]): line for line in table.to_dict("records")}
    own, said = figures["dictionary"], []
    for rival, columns in rivals_as_good(table, margin=margin).items():
        equal = ", ".join(
            f"{_MEASURES[c]} {figures[rival][c]:.2f} against {own[c]:.2f}" for c in columns
        )
        name = _NAMES.get(rival, rival)
        said.append(
            f"{name[0].upper()}{name[1:]} does as well on held-out rows: {equal} "
            f"(within {margin:g})."
        )
    return tuple(said)


def rivals_as_good(
    table: "pandas.DataFrame", *, margin: float = 0.05
) -> dict[str, tuple[str, ...]]:
    """Name the rivals that do as well as the dictionary, and the columns in which they do.

    As well means: a held-out R2 or label correlation not more than `margin` below the
    dictionary's. R2 of a rival of other data (activations, shuffled units) counts as well:
    it says how easily such data are described. `table` is that of `fit_rivals`.
    """
    if not 0.0 <= margin < math.inf:
        raise OptionError(f"rivals: margin must be finite and not negative; got {margin}")
    figures = {str(line["rival"]): line for line in table.to_dict("records")}
    own = figures.pop("dictionary")
    found = {
        rival: tuple(c for c in _MEASURES if line[c] >= own[c] - margin)
        for rival, line in figures.items()
    }
    return {rival: columns for rival, columns in found.items() if columns}


def strongest_loadings(
    dictionary: Dictionary, loadings: Loadings, keep: Int[torch.Tensor, " sample"]
) -> Loadings:
    """Keep `keep` loadings of each row, those that move its reconstruction most; others are 0."""
    lengths = torch.linalg.vector_norm(dictionary.atoms, dim=1).to(loadings.device)
    order = (loadings.abs() * lengths).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(loadings.shape[1], device=order.device).expand_as(order))
    return torch.where(rank < keep.to(order.device)[:, None], loadings, 0.0)


def known_report(fitted: Dictionary, n_rows: int, who: str) -> FitReport:
    """Return the report of a dictionary that is at hand, if it was fitted to so many rows."""
    training = fitted.training
    if training is None or training.n_rows != n_rows:
        rows = "no rows at all" if training is None else f"{training.n_rows} rows"
        raise DataError(
            f"{who}: fitted records {rows}, the matrix has {n_rows}; give the dictionary that fit "
            "made of this matrix"
        )
    return FitReport.of(fitted, 0.0)


def _fitted(
    rival: Rival, learner: Learner, data: Tensor, config: TrainConfig, base: FitReport
) -> FitReport:
    n_classical = min(learner.n_modes, len(base.train_rows), data.shape[1])
    if rival == "pca":
        learner = PCA(n_classical)
    elif rival == "nmf":
        learner = NMF(n_classical, max_iter=_NMF_PASSES)
    elif rival in _FROZEN:
        config = dataclasses.replace(config, freeze=_FROZEN[rival])
    return fit(learner, data, config=config, held_out_rows=base.held_out_rows)


def _measured(
    report: FitReport, rows: Tensor, keep: Tensor | None, indicators: Tensor | None
) -> dict[str, Any]:
    """Measure on the held-out rows, at equal L0 where `keep` says how many loadings."""
    dictionary, held_out = report.dictionary, report.held_out_rows.to(rows.device)
    loadings = dictionary.encode(rows)
    if keep is not None:
        loadings = strongest_loadings(dictionary, loadings, keep)
    found = quality_of(dictionary, rows[held_out], loadings[held_out])
    figures = {name: getattr(found, name) for name in _FIGURES} | {"label_correlation": math.nan}
    if indicators is not None:
        indicators, train = indicators.to(rows.device), report.train_rows.to(rows.device)
        best = correlation_matrix(loadings[train], indicators[train]).argmax(0, keepdim=True)
        apart = correlation_matrix(loadings[held_out], indicators[held_out])
        figures["label_correlation"] = float(apart.gather(0, best).double().mean())
    return figures


def _chosen(
    rivals: Sequence[Rival] | None, learner: Learner, rows: Tensor, activations: Tensor | None
) -> tuple[Rival, ...]:
    refused: dict[Rival, str] = {}
    if activations is None:
        refused["activations"] = "no activations are given"
    if not learner.freezes:
        half = f"{type(learner).__name__} has no half that could stay random"
        refused |= {"frozen_decoder": half, "frozen_encoder": half}
    for rival, kind in _CLASSICAL.items():
        if isinstance(learner, kind):
            refused[rival] = f"{kind.__name__} is the learner itself"
    if bool((rows < 0).any()):
        refused["nmf"] = "the matrix has negative entries"
    if rivals is None:
        return tuple(rival for rival in RIVALS if rival not in refused)
    for rival in rivals:
        if rival not in RIVALS:
            known = ", ".join(RIVALS)
            raise OptionError(f"fit_rivals: expected rivals among {known}; got {rival!r}")
        if rival in refused:
            raise OptionError(f"fit_rivals: {rival} cannot be fitted: {refused[rival]}")
    return tuple(rivals)


def _shuffled(rows: Tensor, held_out: Tensor, seed: int) -> Tensor:
    """Permute each column by itself, within either split, so that they share no value."""
    generator, shuffled = torch.Generator().manual_seed(seed), rows.clone()
    for part in (held_out, complement(held_out, len(rows))):
        index = part.to(rows.device)
        order = torch.rand(len(index), rows.shape[1], generator=generator).argsort(0)
        shuffled[index] = rows[index].gather(0, order.to(rows.device))
    return shuffled
