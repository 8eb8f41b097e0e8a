"""Statistics of modes at ImageNet's size: time and memory, on synthetic loadings.

    python benchmarks/mode_statistics.py [samples modes labels density]

50,000 samples, 6,144 modes, 1,000 labels with 700 superclasses above them on nine levels. Loadings
are dense in memory, 3 % of them not 0; a tenth of the modes follow a label.
"""

import resource
import sys
import time

import torch

from condec.modes import Hierarchy
from condec.modes.properties import Properties
from condec.modes.statistics import mode_statistics


def main() -> None:
    """Measure once, and print."""
    given = sys.argv[1:] + ["50000", "6144", "1000", "0.03"][len(sys.argv) - 1 :]
    n_samples, n_modes, n_labels, density = *map(int, given[:3]), float(given[3])
    torch.manual_seed(0)
    labels = torch.arange(n_samples) % n_labels
    loadings = torch.empty(n_samples, n_modes)
    for start in range(0, n_modes, 512):
        part = loadings[:, start : start + 512]
        part.uniform_().sub_(1 - density).clamp_(min=0)
    for mode in range(0, n_modes, 10):
        mine = labels == mode // 10 % n_labels
        loadings[mine, mode] += 0.1 * torch.rand(int(mine.sum()))
    names = [str(i) for i in range(n_labels)]
    groups = [f"g{label % 350}" for label in range(n_labels)]
    parents = [(f"g{i}", f"h{i % 175}") for i in range(350)]
    parents += [(f"h{i}", f"i{i % 88}") for i in range(175)] + [
        (f"i{i}", f"j{i % 44}") for i in range(88)
    ]
    parents += [(f"j{i}", f"k{i % 22}") for i in range(44)] + [
        (f"k{i}", f"l{i % 11}") for i in range(22)
    ]
    parents += [(f"l{i}", f"m{i % 6}") for i in range(11)] + [
        (f"m{i}", f"n{i % 3}") for i in range(6)
    ]
    hierarchy = Hierarchy(tuple(groups), tuple(parents))
    properties = Properties.of_labels(labels, names, hierarchy)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    found = mode_statistics(loadings, properties)
    seconds = time.perf_counter() - started
    n_found = int((found.q <= 0.05).sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{n_samples} x {n_modes} loadings, {len(properties)} properties, "
        f"{torch.get_num_threads()} threads: {seconds:.1f} s, with rates "
        f"{time.perf_counter() - started:.1f} s; memory "
        f"{peak:.2f} GiB, {before:.2f} GiB before (loadings {loadings.nbytes / 2**30:.2f}); "
        f"{n_found} discoveries"
    )


if __name__ == "__main__":
    main()
