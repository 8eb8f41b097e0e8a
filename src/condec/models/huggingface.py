"""Models of Hugging Face: image classifiers, image encoders and causal language models."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from condec.basis.errors import CondecError, DependencyError, ModelError, OptionError
from condec.basis.files import user_path
from condec.models import LoadedModel
from condec.models.language import LanguageModel
from condec.models.library import (
    import_optional,
    located,
    per_picture,
    read_state,
    seeded,
    without_prefix,
)
from condec.models.torchvision import import_torchvision

_PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
_ORIENTATION: Final = "exif"  # transformers.image_utils.load_image, datasets.Image
_LOCAL: Final = (".", "/", "~")
_NO_CODE: Final = {"trust_remote_code": False}
"""Code of a model's own is refused; unsaid, the library would ask on the terminal."""

Shape = tuple[int, ...]


class PooledEncoder(nn.Module):
    """An image encoder without a classifier: gives one vector a picture.

    In the names of sites it is ``encoder``, which returns ``pooler_output`` or
    ``last_hidden_state``.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled output, else that of the first token, of shape [sample, feature]."""
        output = self.encoder(images)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = output.last_hidden_state[:, 0]
        return pooled.flatten(1)


def load_huggingface_model(
    name: str, weights: str | Path | None, *, folder: str | Path = "."
) -> LoadedModel:
    """Load a model of Hugging Face; see `condec.models.load_model`.

    What it is (classifier, encoder, language model) is read from its configuration. Weights
    are read from safetensors only, as float32.

    A language model is returned as a `LanguageModel`, an encoder as a `PooledEncoder`. Python code
    that comes with a model is not run.
    """
    with contextlib.suppress(DependencyError):
        import_torchvision()  # transformers imports it, and fails as it does
    library = import_optional("transformers", extra="hf")
    place = _place(name, user_path(folder))
    config = _fetched(name, lambda: library.AutoConfig.from_pretrained(place, **_NO_CODE))
    auto = getattr(library, _fetched(name, lambda: _task(config)))
    if weights == "random":
        model = seeded(lambda: auto.from_config(config, **_NO_CODE))
    elif weights is None or weights == "default":
        model = _pretrained(auto, name, place, use_safetensors=True)
    else:
        # Files on the hub name tensors as older versions did; only this translates them.
        empty, file = auto.from_config(config, **_NO_CODE), located(weights, user_path(folder))
        state = without_prefix(read_state(file), empty.state_dict().keys(), file.name)
        model = _pretrained(type(empty), name, None, config=config, state_dict=dict(state))
    model = model.eval()
    spec = f"huggingface:{name}"
    if auto is library.AutoModelForCausalLM:
        language = LanguageModel(model, _tokenizer(library, place))
        return LoadedModel(language, spec, label_names=language.vocabulary)
    preprocess = _preprocess(library, name, place)
    shape = _fetched(name, lambda: _input_shape(config, preprocess))
    if auto is library.AutoModelForImageClassification:
        names = _fetched(name, lambda: _label_names(config))
        return LoadedModel(model, spec, shape, preprocess, names, orientation=_ORIENTATION)
    encoder = PooledEncoder(model).eval()
    return LoadedModel(encoder, spec, shape, preprocess, orientation=_ORIENTATION)


def _place(name: str, folder: Path) -> str:
    """Return a folder as a path, the name of a repository as it is."""
    path = user_path(name, folder)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise OptionError(f"huggingface:{name}: the folder {path} holds no config.json")
        return str(path)
    if name.startswith(_LOCAL) or name.count("/") > 1:
        raise OptionError(f"huggingface:{name}: there is no folder {path}")
    return name


def _task(config: Any) -> str:
    """Name the Auto class that makes what the configuration describes."""
    architecture = (config.architectures or [""])[0]
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "AutoModelForCausalLM"
    if architecture.endswith(("ForImageClassification", "ForImageClassificationWithTeacher")):
        return "AutoModelForImageClassification"
    if hasattr(config, "image_size") or hasattr(config, "num_channels"):
        return "AutoModel"
    raise ModelError(
        f"{architecture or type(config).__name__}: expected an image classifier, an image encoder "
        "or a causal language model; wrap another model in a function of your own, "
        "python:FILE.py:FUNCTION"
    )


def _fetched(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except CondecError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise ModelError(
            f"huggingface:{name}: not read ({reason}). Expected a folder, or a name that the hub "
            "has, with config.json and weights in safetensors; its own code is not run"
        ) from error


def _pretrained(kind: Any, name: str, place: str | None, **options: Any) -> nn.Module:
    """Load a model with all its weights: what a checkpoint lacks would be random.

    Its bar of progress, of a second and at every command, is not shown; those of downloads are.
    """
    logging = import_optional("transformers.utils.logging", extra="hf")
    options |= {"dtype": torch.float32, "output_loading_info": True, **_NO_CODE}
    if shown := logging.is_progress_bar_enabled():
        logging.disable_progress_bar()
        import_optional("huggingface_hub.utils", extra="hf").enable_progress_bars()
    try:
        model, info = _fetched(name, lambda: kind.from_pretrained(place, **options))
    finally:
        if shown:
            logging.enable_progress_bar()
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise ModelError(
            f"huggingface:{name}: its weights lack {len(lacking)} entries of "
            f"{type(model).__name__}: {', '.join(lacking[:3])}"
        )
    checked: nn.Module = model
    return checked


def _tokenizer(library: Any, place: str) -> Any:
    """Load the tokenizer, or None where the model brings none."""
    make = lambda: library.AutoTokenizer.from_pretrained(place, **_NO_CODE)  # noqa: E731
    if any(Path(place).glob("tokenizer*.json")):
        return _fetched(place, make)
    with contextlib.suppress(ModelError):
        return _fetched(place, make)
    return None


def _preprocess(library: Any, name: str, place: str) -> Callable[[Tensor], Tensor] | None:
    """Make a function of the image processor; None for a folder that holds no processor."""
    if Path(place).is_dir() and not any((Path(place) / f).is_file() for f in _PROCESSOR_FILES):
        return None
    processor = _fetched(
        name, lambda: library.AutoImageProcessor.from_pretrained(place, **_NO_CODE)
    )

    def transform(picture: Any) -> Tensor:
        pixels: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return pixels

    return per_picture(transform)


def _input_shape(config: Any, preprocess: Callable[[Tensor], Tensor] | None) -> Shape | None:
    """Measure what the image processor makes of a picture; else what the configuration says."""
    if preprocess is not None:
        return tuple(preprocess(torch.zeros(1, 512, 512, 3, dtype=torch.uint8)).shape[1:])
    size = getattr(config, "image_size", None)
    sizes = (size, size) if isinstance(size, int) else size
    return None if sizes is None else (int(getattr(config, "num_channels", 3)), *sizes)


def _label_names(config: Any) -> tuple[str, ...] | None:
    names = tuple(str(config.id2label[i]) for i in range(len(config.id2label)))
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names
