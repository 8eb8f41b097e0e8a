"""Make the pictures of docs/gallery.md: one explanation of each kind of input.

    python docs/gallery.py WORK              all; stores are kept in WORK, and taken up again
    python docs/gallery.py WORK photos digits

Needs ../shared/data, but for the digits and the retina.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import condec
from condec.data import Inputs
from condec.figures import save_figure
from condec.models.torchvision import import_torchvision

ROOT = Path(__file__).resolve().parent.parent
SHARED, EXAMPLES, ASSETS = ROOT.parent / "shared" / "data", ROOT / "examples", ROOT / "docs/assets"


@dataclass(frozen=True, eq=False)
class Case:
    """A network with inputs, sites, modes of each, and one of the inputs with its picture."""

    model: nn.Module
    inputs: "Inputs | Tensor"
    sites: str
    example: Tensor
    target: condec.Target = field(default_factory=condec.Predicted)
    method: condec.Method = field(default_factory=lambda: condec.IntegratedGradients(steps=6))
    n_modes: int = 16
    drawn: dict[str, Any] = field(default_factory=dict)
    """Arguments of the figure."""
    flows: bool = False
    """Whether the flow from site to site is drawn, too."""


def photos() -> Case:
    """A photo of dogs, by MobileNetV2."""
    model, data = _example("photos_mobilenet", 120)
    row = next(i for i in range(len(data)) if "dog" in str(data.ids[i]).lower() or i == 14)
    drawn = {"picture": data.picture(row), "label_names": data.label_names}
    return Case(model, data, "blocks.10,blocks.13,blocks.16", data.batch([row]), drawn=drawn)


def cifar() -> Case:
    """A picture of CIFAR-10, by ResNet-20."""
    model, data = _example("cifar10_resnet20", 400)
    drawn = {"picture": data.picture(0), "label_names": data.label_names}
    return Case(model, data, "layer2.2,layer3.0,layer3.2", data.batch([0]), drawn=drawn, flows=True)


def digits() -> Case:
    """A digit, by the network that condec holds."""
    model, data = condec.load_model("digits").model, condec.load_data("digits", limit=400)
    drawn = {"picture": data.picture(3), "label_names": data.label_names}
    return Case(model, data, "block2,block3", data.batch([3]), drawn=drawn)


def vit() -> Case:
    """The same digit, by a vision transformer: tokens as a grid, and one apart."""
    import json

    from safetensors.torch import load_file
    from sklearn.datasets import load_digits

    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    record = json.loads((SHARED / "digits/vit_digits.json").read_text())
    model = VisionTransformer(**record["constructor_args"]).eval()
    model.load_state_dict(load_file(SHARED / "digits/vit_digits.safetensors"))
    digits = load_digits().images[:400]
    x = torch.from_numpy(digits).float()[:, None] / 8 - 1
    # Ten points where the path turns: six miss half of the change here.
    method = condec.IntegratedGradients(spacing="fitted")
    drawn = {"picture": digits[3] / 16}
    return Case(model, x, "blocks.1,blocks.3", x[3:4], method=method, drawn=drawn)


def stories() -> Case:
    """A story, by a small language model: which characters made the next one likely."""
    model = condec.load_model(f"huggingface:{SHARED / 'stories'}").model
    tokens = torch.from_numpy(np.load(SHARED / "stories/stories_500.npz")["tokens"])[:150]
    tokens, n_tokens = tokens.long(), 90  # they begin alike
    x, others = model.embed(tokens[5:6, :n_tokens]), model.embed(tokens[6:, :n_tokens])
    # Its norm jumps where a path leaves zero: from other stories, as long as this one.
    baseline = condec.attribution.Samples(n_samples=2, values=others[:2])
    method = condec.IntegratedGradients(steps=6, baseline=baseline)
    vocabulary = model.tokenizer.convert_ids_to_tokens(range(len(model.tokenizer)))
    return Case(
        model, others, "lm.model.layers.1,lm.model.layers.3", x, method=method,
        drawn={"label_names": vocabulary}, flows=True,
    )  # fmt: skip


def retina() -> Case:
    """A clip of a movie, by a circuit whose parts are known."""
    from condec.testing.retina import PlantedRetina

    planted = PlantedRetina.standard(n_frames=600, dwell=15.0)
    clips = torch.stack([planted.windows[i][0] for i in range(0, 500, 2)])
    return Case(planted.circuit, clips, "relu1,relu2", clips[100:101], condec.Sum(), flows=True)


def _example(name: str, limit: int) -> tuple[nn.Module, Inputs]:
    import os
    from dataclasses import replace

    from condec.run import config
    from condec.run.run import Run

    os.chdir(EXAMPLES / name)
    plan = config.read(EXAMPLES / name / "run.toml")
    run = Run(replace(plan, data=replace(plan.data, limit=limit)), progress=False)
    return run.loaded.model, run.inputs


CASES: dict[str, Callable[[], Case]] = {
    one.__name__: one for one in (photos, cifar, digits, vit, stories, retina)
}


def explain(case: Case, folder: Path) -> condec.Explanation:
    """Explain the example of a case by modes of a store, which is made where it is not there."""
    store = condec.collect(
        case.model, case.inputs, case.sites, out=folder / "store", target=case.target,
        method=case.method, progress=False,
    )  # fmt: skip
    modes = []
    for site in store.sites:
        learner = condec.dictionary.TopKSAE(n_modes=case.n_modes, k=4)
        config = condec.TrainConfig(epochs=100, seed=0)
        fitted = condec.fit(learner, store.matrix(site, sign="concat"), config=config)
        modes.append(condec.Modes.build(fitted.dictionary, store, site, "concat"))
    return condec.explain(case.model, case.example, modes, method=case.method)


def main() -> None:
    """Make the figures that were asked for."""
    work = Path(sys.argv[1]).resolve()
    for name in sys.argv[2:] or CASES:
        case = CASES[name]()
        found = explain(case, work / name)
        print(name, found.change)
        figures = {name: found.figure(**case.drawn)}
        if case.flows:
            figures[f"{name}-flow"] = found.graph(n_modes=5).figure(case.drawn.get("label_names"))
        for stem, figure in figures.items():
            file = save_figure(figure, ASSETS / f"gallery-{stem}.png")
            small = Image.open(file).convert("RGB")
            small.thumbnail((1400, 1400))
            small.quantize(200).save(file, optimize=True)


if __name__ == "__main__":
    main()
