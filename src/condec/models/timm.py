"""Models of timm, with the preprocessing that belongs to them."""

from pathlib import Path

from condec.models import LoadedModel
from condec.models.library import check_name, classifier, import_optional, per_picture
from condec.models.torchvision import import_torchvision


def load_timm_model(name: str, weights: str | Path | None, *, folder: Path) -> LoadedModel:
    """Load a timm model; see `condec.models.load_model`."""
    import_torchvision()  # timm imports it, and fails as it does
    timm = import_optional("timm")
    check_name("timm", name, name.partition(".")[0], timm.list_models())
    model = classifier(
        f"timm:{name}", weights, folder, lambda trained: timm.create_model(name, pretrained=trained)
    )
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    label_names = None
    if weights == "default" and model.num_classes == 1000:
        info = timm.data.ImageNetInfo()
        label_names = tuple(info.index_to_description(i) for i in range(1000))
    shape = tuple(config["input_size"])
    return LoadedModel(model.eval(), f"timm:{name}", shape, per_picture(transform), label_names)
