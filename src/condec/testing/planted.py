"""Data from known modes: sparse, not negative, some of them rare, some in pairs that go together.

>>> Planted.small()
Planted
  matrix    Tensor[600, 24] float32
  atoms     Tensor[8, 24] float32
  loadings  Tensor[600, 8] float32
  rare      Tensor[8] bool
  partner   Tensor[8] int64
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from condec.basis.checks import at_least
from condec.basis.errors import OptionError
from condec.basis.records import short_repr
from condec.basis.shapes import Atoms, Loadings, UnitMatrix

_RARE: Final = 0.2  # how often a rare mode is drawn, relative to a common one
_TOGETHER: Final = 0.5  # probability that a mode comes with its partner
_SUPPORT: Final = 0.06  # share of the units that an atom has


@short_repr
@dataclass(frozen=True, eq=False)
class Planted:
    """Planted modes, and the rows made from them: ``clamp(loadings @ atoms + noise, min=0)``.

    Atoms [mode, unit] are not negative and of length 1; `rare` [mode] marks those drawn a fifth
    as often as others, `partner` [mode] the mode that one goes together with, -1 for none.
    """

    matrix: UnitMatrix
    atoms: Atoms
    loadings: Loadings
    rare: Tensor
    partner: Tensor

    @classmethod
    def standard(cls, seed: int = 0) -> "Planted":
        """Make the instance of the benchmarks: 200 modes, 256 units, 5 active, 20,000 rows.

        Noise of a tenth of the signal, a tenth of the modes in pairs, a twentieth rare.
        """
        return planted(200, 256, 5, 20_000, 0.1, correlated=0.1, rare=0.05, seed=seed)

    @classmethod
    def small(cls, seed: int = 0) -> "Planted":
        """Make an instance that is fitted in a second: 8 modes, 24 units, 2 active, 600 rows."""
        return planted(8, 24, 2, 600, 0.1, correlated=0.25, rare=0.125, seed=seed)

    @classmethod
    def synthetic(cls, model: Any, n_rows: int, seed: int = 0) -> "Planted":
        """Take the ground truth of a ``sae_lens.synthetic.SyntheticModel``, less its bias.

        Its features may form a hierarchy or correlate. Atoms and rows have both signs; `rare` are
        features that fire less than a fifth as often as the median one, `partner` is the parent of
        one in a hierarchy, without which it does not fire.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            rows, loadings = model.sample_with_features(n_rows)
        loadings = loadings.to_dense() if loadings.is_sparse else loadings
        atoms, bias = (getattr(model.feature_dict, n).detach() for n in ("feature_vectors", "bias"))
        often = (loadings > 0).float().mean(0)
        partner = torch.full((len(atoms),), -1)
        waiting = [] if model.hierarchy is None else list(model.hierarchy.roots)
        for node in waiting:  # grows as it goes down
            for child in node.children:
                if None not in (child.feature_index, node.feature_index):
                    partner[child.feature_index] = node.feature_index
            waiting += node.children
        return cls(rows - bias, atoms, loadings, often < _RARE * often.median(), partner)


def planted(
    n_modes: int, n_units: int, n_active: int, n_rows: int, noise: float, *,
    correlated: float = 0.0, rare: float = 0.0, seed: int = 0,
) -> Planted:  # fmt: skip
    """Make rows from known modes; the same for the same arguments.

    An atom has six of every hundred units (3 at least), with entries drawn evenly from 0.5 to
    1.5, scaled to length 1. A row has `n_active` different modes with loadings drawn evenly
    from 0.5 to 1.5, plus Gaussian noise, and is cut off at 0 as positive contributions are.

    `noise` is the standard deviation of the noise, relative to that of all entries of the signal;
    `correlated` the share of the modes that are in pairs: where one is drawn, the other comes with
    probability 0.5, in the place of another mode; `rare` the share that is drawn a fifth as often
    as the others, none of a pair. A number outside its range is an OptionError.
    """
    at_least("planted", 1, n_modes=n_modes, n_units=n_units, n_rows=n_rows)
    if not 1 <= n_active <= n_modes:
        raise OptionError(f"planted: n_active must be from 1 to {n_modes} modes; got {n_active}")
    if not 0.0 <= noise < math.inf:
        raise OptionError(f"planted: noise must be finite and not negative; got {noise}")
    if not (correlated >= 0.0 and rare >= 0.0 and correlated + rare <= 1.0):
        raise OptionError(
            "planted: correlated and rare must be shares of the modes, together at most 1; got "
            f"{correlated} and {rare}"
        )
    generator = torch.Generator().manual_seed(seed)
    atoms = _atoms(n_modes, n_units, generator)
    n_pairs, n_rare = int(correlated * n_modes) // 2, int(rare * n_modes)
    partner = torch.full((n_modes,), -1)
    first = torch.arange(n_pairs)
    partner[2 * first], partner[2 * first + 1] = 2 * first + 1, 2 * first
    is_rare = torch.zeros(n_modes, dtype=torch.bool)
    is_rare[n_modes - n_rare :] = True
    active = _active(is_rare, partner, n_active, n_rows, generator)
    sizes = 0.5 + torch.rand(n_rows, n_modes, generator=generator, dtype=torch.float32)
    loadings = torch.where(active, sizes, 0.0)
    signal = loadings @ atoms
    level = noise * float(signal.to(torch.float64).std(correction=0))
    disturbance = level * torch.randn(signal.shape, generator=generator, dtype=torch.float32)
    matrix = (signal + disturbance).clamp_(min=0.0)
    return Planted(matrix, atoms, loadings, is_rare, partner)


def _atoms(n_modes: int, n_units: int, generator: torch.Generator) -> Tensor:
    support = min(n_units, max(3, round(_SUPPORT * n_units)))
    order = torch.rand(n_modes, n_units, generator=generator, dtype=torch.float32).argsort(1)
    places = order[:, :support]
    sizes = 0.5 + torch.rand(n_modes, support, generator=generator, dtype=torch.float32)
    atoms = torch.zeros(n_modes, n_units, dtype=torch.float32).scatter_(1, places, sizes)
    return torch.nn.functional.normalize(atoms, dim=1)


def _active(
    rare: Tensor, partner: Tensor, n_active: int, n_rows: int, generator: torch.Generator
) -> Tensor:
    """Draw which modes are in which rows, shape [sample, mode]."""
    shares = torch.where(rare, _RARE, 1.0).to(torch.float32)
    chosen = torch.multinomial(shares.expand(n_rows, -1), n_active, generator=generator)
    if n_active > 1:
        # The partner of a row's first mode takes the place of its last one.
        with_partner = partner[chosen[:, 0]]
        comes = (torch.rand(n_rows, generator=generator) < _TOGETHER) & (with_partner >= 0)
        comes &= ~(chosen == with_partner[:, None]).any(1)
        chosen[comes, -1] = with_partner[comes]
    return torch.zeros(n_rows, len(rare), dtype=torch.bool).scatter_(1, chosen, True)
