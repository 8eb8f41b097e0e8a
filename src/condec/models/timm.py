"""Models of timm, with the preprocessing that belongs to them."""

from pathlib import Path

from condec.models import LoadedModel
from condec.models.library import (
    downloaded,
    import_optional,
    load_weights,
    per_picture,
    seeded,
    unknown_model,
)
from condec.models.torchvision import import_torchvision


def load_timm_model(name: str, weights: str | Path | None) -> LoadedModel:
    """Load a timm model; see `condec.models.load_model`."""
    import_torchvision()  # timm imports it, and fails as it does
    timm = import_optional("timm")
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise unknown_model("timm", name, known)
    if weights == "default":
        model = downloaded(f"timm:{name}", lambda: timm.create_model(name, pretrained=True))
    else:
        model = seeded(lambda: timm.create_model(name, pretrained=False))
        load_weights(model, weights)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    return LoadedModel(
        model.eval(),
        f"timm:{name}",
        tuple(config["input_size"]),
        per_picture(transform),
        _imagenet_names() if weights == "default" and model.num_classes == 1000 else None,
    )


def _imagenet_names() -> tuple[str, ...]:
    info = import_optional("timm").data.ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(1000))
