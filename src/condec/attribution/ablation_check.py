"""Check contributions against ablation: their rank correlation with the exact effects of units."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from condec.attribution.ablation import UnitAblation, unit_effects
from condec.attribution.contributions import Contributions, UnitContributions
from condec.attribution.reduce import merge_signs
from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import pearson
from condec.basis.shapes import UnitMatrix

if TYPE_CHECKING:
    import pandas


def faithfulness(
    batch: Contributions | UnitContributions,
    *,
    ablation: UnitAblation | None = None,
    max_units: int | None = 512,
    top: float = 0.1,
    seed: int = 0,
) -> "pandas.DataFrame":
    """Compare contributions with the effect of ablating every unit, site by site.

    The contribution of a unit is summed over its positions, both signs together; the effect is
    the exact change of the target when the unit is replaced (`UnitAblation`), target and
    inputs being those of the contributions. Correlations are taken over the units of each
    sample: 1 means that contributions order the units as ablating them one by one does, 0 that
    they tell nothing about it. Effects of single units miss what units do together.

    Parameters
    ----------
    batch : Contributions or UnitContributions
        From `contribute`.
    ablation : UnitAblation, optional
        By default units are set to zero. ``"mean"`` and ``"resample"`` stay nearer to the data.
    max_units : int, optional
        Of larger sites so many units are drawn at random and tested; None tests all.
    top : float
        Share of the units that `top_overlap` compares.
    seed : int

    Returns
    -------
    pandas.DataFrame
        One row a site: ``site``, ``units`` (how many), ``units_tested``, and statistics over the
        samples (``n_samples``, ``n_defined`` of which have units that differ in both quantities):
        ``spearman_median``, ``spearman_q25``, ``spearman_q75`` and ``pearson_median`` of the
        correlations over units; ``spearman_pooled``, over all pairs of sample and unit; and
        ``top_overlap``, the mean share of the ``top_k`` largest units (by size) of one quantity
        that are among those of the other; by chance it is ``top_k`` over the units.

    Raises
    ------
    DataError
        The batch does not say what it was made from.
    OptionError
        `max_units` below 2, or `top` outside 0 to 1.

    Examples
    --------
    >>> from condec.attribution import ActGrad, contribute
    >>> from condec.testing.models import small_mlp
    >>> batch = contribute(small_mlp(), torch.eye(5), "3", method=ActGrad())
    >>> print(faithfulness(batch)["spearman_median"].round(3)[0])      # linear from there on
    1.0
    """
    import pandas

    if batch.setup is None:
        raise DataError(
            "faithfulness: these contributions do not say which model and inputs they were made "
            "from; use what condec.contribute returns"
        )
    if max_units is not None and max_units < 2:
        raise OptionError(f"faithfulness: max_units must be at least 2, or None; got {max_units}")
    setup, rows = batch.setup, []
    for part in (batch.reduce() if isinstance(batch, Contributions) else batch).by_site:
        contribution = merge_signs(part.contribution)
        chosen = _chosen(contribution.shape[1], max_units, seed)
        effects = unit_effects(
            setup.model, setup.inputs, part.site, setup.target, setup.labels,
            method=ablation, units=chosen,
        )  # fmt: skip
        found = agreement(contribution[:, chosen.to(contribution.device)], effects, top=top)
        known = {"site": part.site.key, "units": contribution.shape[1], "units_tested": len(chosen)}
        rows.append(known | found)
    return pandas.DataFrame(rows)


def agreement(first: UnitMatrix, second: UnitMatrix, *, top: float = 0.1) -> dict[str, int | float]:
    """Compare two quantities of the same samples and units, both [sample, unit].

    The numbers are those of `faithfulness`, from ``n_samples`` on. At least one unit, and the share
    `top` of them, counts as the largest; OptionError unless it is above 0 and at most 1.

    >>> values = torch.tensor([[1.0, 2.0, 5.0], [3.0, 2.0, 1.0]])
    >>> round(agreement(values, -values)["spearman_median"], 6)
    -1.0
    """
    if not 0 < top <= 1:
        raise OptionError(f"top: expected a share above 0 and at most 1; got {top}")
    a, b = first.detach().double().cpu(), second.detach().double().cpu()
    top_k = max(1, round(top * a.shape[1]))
    largest = [x.abs().topk(top_k, dim=1).indices for x in (a, b)]
    shared = (largest[0][:, :, None] == largest[1][:, None, :]).any(2)
    ranked = _correlation(_ranks(a), _ranks(b))
    median, low, high = ranked.nanquantile(ranked.new_tensor([0.5, 0.25, 0.75])).tolist()
    pooled = _correlation(_ranks(a.reshape(1, -1)), _ranks(b.reshape(1, -1)))
    return {
        "n_samples": len(ranked), "n_defined": int((~ranked.isnan()).sum()),
        "spearman_median": median, "spearman_q25": low, "spearman_q75": high,
        "spearman_pooled": float(pooled),
        "pearson_median": float(_correlation(a, b).nanquantile(0.5)),
        "top_k": top_k, "top_overlap": float(shared.double().mean(1).mean()),
    }  # fmt: skip


def _chosen(n_units: int, max_units: int | None, seed: int) -> Tensor:
    if max_units is None or n_units <= max_units:
        return torch.arange(n_units)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n_units, generator=generator)[:max_units].sort().values


def _ranks(values: Tensor) -> Tensor:
    """Ranks along each row, equal values sharing their mean rank."""
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.numpy(), axis=1)).double()


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    constant = (a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)
    return pearson(a, b, 1).masked_fill(constant, torch.nan)
