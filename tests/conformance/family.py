"""What a family of the conformance run is, and how models of libraries are made."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condec.models.torchvision import import_torchvision

FEW = {"num_classes": 5}


@dataclass(frozen=True)
class Family:
    """One family.

    `make` makes the model, `shape` is that of a sample, or `embed` makes the inputs. `sites` are
    by default those of presets, else cuts; `last` says that four axes mean [sample, y, x, feature].
    `index` names the output that is explained. `refused` is what a refusal says, `no_map` that
    of a map; `note` says what is special. A model
    that computes in single precision inside has another `tolerance`.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 32, 32)
    sites: str = ""
    last: bool = False
    index: int | tuple[int, ...] = 1
    refused: str = ""
    no_map: str = ""
    note: str = ""
    tolerance: float = 1e-10
    embed: Callable[[nn.Module], Tensor] | None = None


def scattered(model: nn.Module, x: Tensor) -> nn.Module:
    """In float64 and evaluation mode; nothing is zero, and statistics are those of the inputs."""
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            size = 0.1 if p.ndim < 2 else 0.3 * max(p[0].numel(), 1) ** -0.5
            if p.numel() < 1e6:
                p.add_(torch.randn_like(p), alpha=size)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
        if norms:
            model(torch.cat([x, -x]))
        for norm in norms:
            norm.training = False
            norm.running_var.add_(0.1)
    return model


def shallow(model: nn.Module) -> nn.Module:
    """Leave out what is the same as the two parts before it, in stages of many equal blocks."""
    for stage in [m for m in model.modules() if type(m) is nn.Sequential]:
        before: list[Any] = []
        for name, part in list(stage.named_children()):
            kind = type(part), [p.shape for p in part.parameters()]
            if kind[1] and before[-2:] == [kind, kind]:
                delattr(stage, name)
            before.append(kind)
    return model


class Through(nn.Module):
    """A model that is called in a way of its own."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.model, x)


def tv(place: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return shallow(attrgetter(f"models.{place}")(import_torchvision())(**options))

    return make


def changed(
    make: Callable[[], nn.Module], change: Callable[[nn.Module], Any]
) -> Callable[[], nn.Module]:
    """Make a model, and change it where it would be large, or takes large inputs only."""

    def both() -> nn.Module:
        model = make()
        change(model)
        return model

    return both


def small_head(model: Any) -> None:
    first = next(part for part in model.classifier if isinstance(part, nn.Linear))
    model.classifier = nn.Sequential(nn.Linear(first.in_features, 5))


def pool_of_any_size(model: Any) -> None:
    model.avgpool = nn.AdaptiveAvgPool3d(1)


def boxes_in_plain_torch(model: Any) -> None:
    """Keep torchvision's own operations out, which are not in every build."""
    model.postprocess_detections = lambda outputs, anchors, sizes: [
        {"boxes": boxes, "scores": odds.softmax(1)[:, 1]}
        for boxes, odds in zip(outputs["bbox_regression"], outputs["cls_logits"], strict=True)
    ]


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import_torchvision()
        return shallow(pytest.importorskip("timm").create_model(name, **FEW, **options))

    return make


def hf(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import_torchvision()
        library = pytest.importorskip("transformers")
        return getattr(library, name)(getattr(library, config)(num_labels=5, **options))

    return make


def seen(
    config: str, size: int = 32, task: str = "ForImageClassification", **options: Any
) -> Family:
    return Family(hf(config.removesuffix("Config") + task, config, **options), (3, size, size))
