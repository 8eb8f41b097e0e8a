"""Learners on the ground truth of SAELens: features in a hierarchy, and features that correlate.

    pip install sae-lens
    python benchmarks/synthetic.py [rows]

64 features in 32 units, rows made by ``sae_lens.synthetic``; recovered: a cosine above 0.9.
"""

import sys
import warnings

from condec.dictionary import (
    BatchTopKSAE,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
    quality,
    recovery,
)
from condec.models.torchvision import import_torchvision
from condec.testing.planted import Planted

FEATURES, UNITS = 64, 32


def main() -> None:
    """Fit every learner to either structure, and print a table."""
    import_torchvision()
    from sae_lens import synthetic

    n_rows = int([*sys.argv[1:], "8000"][0])
    hierarchy = synthetic.HierarchyConfig(
        total_root_nodes=8, branching_factor=3, max_depth=2, compensate_probabilities=True
    )
    correlation = synthetic.LowRankCorrelationConfig(rank=8, correlation_scale=0.5)
    firing = synthetic.ConstantFiringProbabilityConfig(probability=0.04)
    structures = {"neither": {}, "hierarchy": {"hierarchy": hierarchy},
                  "correlated": {"correlation": correlation}}  # fmt: skip
    print("structure | learner | recovered | with a parent | false | R2, held out | L0 (true)")
    for name, options in structures.items():
        config = synthetic.SyntheticModelConfig(
            num_features=FEATURES, hidden_dim=UNITS, firing_probability=firing, seed=0, **options
        )
        data = Planted.synthetic(synthetic.SyntheticModel(config), n_rows)
        true = float((data.loadings > 0).float().sum(1).mean())
        k = max(1, round(true))
        for learner in (
            ThresholdSAE(FEATURES),
            TopKSAE(FEATURES, k=k),
            BatchTopKSAE(FEATURES, k=k),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                report = fit(learner, data.matrix, config=TrainConfig(steps=3000, seed=0))
            alive = quality(report.dictionary, data.matrix).alive
            found = recovery(report.dictionary.atoms[alive], data.atoms)
            child = data.partner >= 0
            below = f"{found.recovered[child].float().mean():.2f}" if child.any() else "-"
            held_out = report.metrics["held_out"]
            print(f"{name} | {type(learner).__name__} | {found.share:.2f} | {below} | "
                  f"{found.n_false} | {held_out.r2:.2f} | {held_out.l0:.1f} ({true:.1f})",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
