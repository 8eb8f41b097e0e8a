"""Dictionaries side by side: ResNet-20 on CIFAR-10, one site.

    python benchmarks/judged.py [site images]

Contributions (threshold SAE, NMF), activations (top-k SAE, NMF) and single units.
"""

import sys
import tempfile
from pathlib import Path

import torch

import condec
from condec.dictionary import NMF, ThresholdSAE, TopKSAE, TrainConfig, fit
from condec.modes import Hierarchy, Modes, Properties

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


def main() -> None:
    """Collect, fit, judge, and print a table."""
    site, number = [*sys.argv[1:], *["layer3.0", "2000"][len(sys.argv) - 1 :]]
    code = f"python:{DATA / 'cifar_resnet.py'}:load_resnet"
    loaded = condec.load_model(code, str(DATA / "resnet20_cifar10.safetensors"))
    sys.path.insert(0, str(DATA))
    from cifar_resnet import preprocess

    inputs = condec.load_data(
        f"npz:{DATA / 'test_2000.npz'}", limit=int(number), preprocess=preprocess
    )
    with tempfile.TemporaryDirectory() as folder:
        store = condec.collect(
            loaded.model, inputs, site, method=condec.IntegratedGradients(steps=4),
            target=condec.Predicted(), out=Path(folder) / "store", progress=False,
        )  # fmt: skip
        config, made = TrainConfig(steps=1500, seed=0), dict[str, Modes]()
        n_units = store.infos[0].n_units
        learners = {
            "contributions, SAE": (ThresholdSAE(3 * n_units), "contribution"),
            "contributions, NMF": (NMF(n_units), "contribution"),
            "activations, top-k SAE": (TopKSAE(3 * n_units, k=8), "activation"),
            "activations, NMF": (NMF(n_units), "activation"),
        }
        for name, (learner, quantity) in learners.items():
            report = fit(learner, store.rows(site, quantity, "positive"), config=config)
            made[name] = Modes.build(report.dictionary, store, site, quantity=quantity)
        held_out = made["contributions, SAE"].held_out.nonzero().flatten()
        units = condec.import_dictionary(torch.eye(n_units), encoder="component")
        for quantity in ("contribution", "activation"):
            made[f"units, {quantity}"] = Modes.build(
                units, store, site, quantity=quantity, held_out_rows=held_out
            )
        names = tuple(inputs.label_names or ())
        hierarchy = Hierarchy.built_in("cifar10", names)
        properties = Properties.of_labels(store.labels, names, hierarchy)
        table = condec.judge(made, loaded.model, inputs, properties=properties)
    print(site, len(store), "images", hierarchy.names)
    print(table.round(3).to_csv(sep="|", index=False))


if __name__ == "__main__":
    main()
