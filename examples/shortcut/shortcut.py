"""Find out what a classifier cheats with, and take it out: a digits network, in under 2 minutes.

    python examples/shortcut/shortcut.py [OUT]

Writes prototypes.png, shortcuts.png and repaired.safetensors into OUT (run/ beside this file).
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

import condec
from condec.edits import baked, erasure
from condec.explanation import find_shortcuts
from condec.figures import save_figure
from condec.modes import Modes, prototypes
from condec.testing.shortcut import Shortcut


def main(out: Path) -> dict[str, float]:
    """Carry it out, and return the figures that are printed."""
    out.mkdir(parents=True, exist_ok=True)
    case = Shortcut.digits(seed=0)  # your network, and images it was not trained on
    model, data = case.model, (case.audit.images, case.audit.labels)

    store = condec.collect(
        model, data, "block4", target=condec.Predicted(), out=out / "store.zarr", progress=False
    )
    fitted = condec.fit(condec.NMF(n_modes=24, max_iter=2000), store.matrix("block4"))
    modes = Modes.build(fitted.dictionary, store, "block4")

    print("\nWhich kinds of inputs has each label?")
    kinds = [prototypes(modes, label) for label in range(10)]
    for found in kinds:
        sizes = found.table["prototype"].value_counts().sort_index().tolist()
        print(f"  label {found.label}: prototypes of {sizes}, {len(found.outliers)} outliers")

    print("\nDoes a small place decide?")
    shortcuts = find_shortcuts(model, data, modes)
    print(shortcuts.table.head(4).round(2).to_string(index=False))
    save_figure(shortcuts.draw(3), out / "shortcuts.png")
    if shortcuts.suspects.empty:
        print("No mode is suspected.")
        return {}
    label = int(shortcuts.suspects["label"].iloc[0])
    save_figure(kinds[label].draw(data), out / "prototypes.png")

    clean, pasted = shortcuts.pairs(0)
    repair = erasure(model, "linear:input@features", clean, pasted)
    repaired = baked(model, repair, inputs=clean)
    save_file(repaired.state_dict(), out / "repaired.safetensors")

    print("\nOn images that nothing above has seen, with the mark that nothing above was told of:")
    figures = {}
    for name, network in (("before", model), ("after", repaired)):
        figures[f"clean_{name}"] = case.accuracy(network)
        figures[f"attack_{name}"] = case.attack(network)
        print(
            f"  {name}: {case.accuracy(network):.1%} right; {case.attack(network):.1%} of other "
            "digits become a 3 by the mark; "
            f"{case.accuracy(network, marked=True):.1%} right with it"
        )
    return figures


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "run")
