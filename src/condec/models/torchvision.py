"""Classifiers of torchvision, with the preprocessing that belongs to their weights."""

from pathlib import Path
from types import ModuleType
from typing import Final

import torch

from condec.basis.errors import DependencyError
from condec.models import LoadedModel
from condec.models.attention import expose_attention
from condec.models.library import check_name, classifier, import_optional, per_picture

# torch forgets what a Library object declared when the object is collected.
_DECLARED: Final[list[torch.library.Library]] = []


def import_torchvision() -> ModuleType:
    """Import torchvision, also beside a torch build that it was not compiled for.

    Where torchvision's compiled part does not load (a CUDA build beside a CPU build of torch),
    its import fails with "operator torchvision::nms does not exist", though no classifier uses
    it. Only then, the two operators it asks for are declared, without an implementation, and it
    is imported once more. DependencyError where it fails for another reason.
    """
    try:
        return import_optional("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise DependencyError(f"torchvision is installed but fails: {error}") from error
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _DECLARED.append(library)
    return import_optional("torchvision")


def load_torchvision_model(name: str, weights: str | Path | None, *, folder: Path) -> LoadedModel:
    """Load a torchvision classifier; see `condec.models.load_model`."""
    models = import_torchvision().models
    known = models.list_models(module=models)
    check_name("torchvision", name, name, known)
    enum = models.get_model_weights(name).DEFAULT
    make = lambda trained: models.get_model(name, weights=enum if trained else None)  # noqa: E731
    model = expose_attention(classifier(f"torchvision:{name}", weights, folder, make))
    transform = enum.transforms()
    shape = (3, *[int(transform.crop_size[0])] * 2)
    names = tuple(enum.meta.get("categories", ())) if weights == "default" else ()
    use = per_picture(transform)
    return LoadedModel(model.eval(), f"torchvision:{name}", shape, use, names or None)
