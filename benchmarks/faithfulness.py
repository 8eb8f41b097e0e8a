"""How well each method orders the units: rank correlation with ablating them one by one.

The embedded digits model, 100 digits that it was not trained on, two blocks, target
`Predicted`; effects by setting each unit to zero, to its mean over the digits, and to what
it holds at the zero input.

    python benchmarks/faithfulness.py
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import write

from condec.attribution import (
    ActGrad,
    Activation,
    ActNormGrad,
    GradCAM,
    Gradient,
    IntegratedGradients,
    Method,
    SmoothGrad,
    UnitAblation,
)
from condec.attribution.ablation_check import faithfulness
from condec.attribution.contributions import contribute
from condec.attribution.targets import Predicted
from condec.data import load_data
from condec.models import load_model

N_SAMPLES = 100
SITES = "block2, block3"
METHODS: dict[str, Method] = {
    "IntegratedGradients(steps=10)": IntegratedGradients(),
    "IntegratedGradients(path='layer')": IntegratedGradients(path="layer"),
    "ActGrad()": ActGrad(),
    "GradCAM()": GradCAM(),
    "SmoothGrad(inner=ActGrad())": SmoothGrad(),
    "ActNormGrad()": ActNormGrad(),
    "Gradient()": Gradient(),
    "Activation()": Activation(),
}


def main() -> None:
    model = load_model("digits").model
    images = load_data("digits").batch(range(N_SAMPLES))
    rows = []
    for name, method in METHODS.items():
        started = time.perf_counter()
        batch = contribute(model, images, SITES, method=method, target=Predicted())
        seconds = time.perf_counter() - started
        for replacement in ("zero", "mean", "baseline"):
            table = faithfulness(batch, ablation=UnitAblation(replacement=replacement))
            known = {"method": name, "replacement": replacement, "seconds": seconds}
            rows += [known | row for row in table.to_dict("records")]
    for row in rows:
        print(
            f"{row['method']:36s} {row['replacement']:8s} {row['site']:7s} "
            f"{row['spearman_median']:6.3f} "
            f"({row['spearman_q25']:.3f} to {row['spearman_q75']:.3f}), "
            f"pooled {row['spearman_pooled']:6.3f}, top {row['top_k']}: {row['top_overlap']:.3f}"
        )
    write(
        "faithfulness",
        {
            "what": f"digits model, {N_SAMPLES} held-out digits, {SITES}, target Predicted, CPU",
            "rows": rows,
        },
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
