"""The modules of a model, as ``condec inspect`` prints them."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from condec.basis.errors import OptionError
from condec.basis.files import user_path
from condec.basis.trust import gated
from condec.cli.outcomes import say
from condec.models import load_model
from condec.network import find_sites, inspect_model, presets_of
from condec.run import config


def say_modules(
    model: str, weights: str | None, shape: tuple[int, ...] | None, sites: str | None, *,
    trust_code: bool,
) -> None:  # fmt: skip
    """Print the modules of a model, named or of a plan, its proof, and presets that fit it."""
    base, trusted = Path(), True
    if user_path(model).is_dir() or model.endswith(".toml"):
        plan = config.read(model)
        base, weights = plan.base, weights or plan.model.weights
        shape, model = shape or plan.model.input_shape, plan.model.spec
        trusted = trust_code or not plan.of_folder
    with gated(trusted=trusted):
        loaded = load_model(model, weights, folder=base)
    shape = shape or loaded.input_shape
    if shape is None:
        raise OptionError(
            f"{model} does not tell the shape of its inputs; give it, for example "
            "--input-shape 3,224,224"
        )
    # Whatever the model takes, images or numbers of tokens, these are some.
    one = torch.linspace(0, 1, math.prod(shape)).view(1, *shape)
    table = inspect_model(loaded.model, one)
    explained, proof = table.attrs["explained"], table.attrs["proof"]
    if sites is not None:
        names = {site.name for site in find_sites(loaded.model, sites)}
        table = table[table["site"].str.partition("#")[0].isin(names)]
    table = table.assign(
        shape=[_times(each) for each in table["shape"]],
        parameters=[f"{number:,}" for number in table["parameters"]],
        cut=["cut" if cut else "" for cut in table["cut"]],
    )[["site", "type", "shape", "units", "parameters", "cut", *(["proof"] if proof.places else [])]]
    say(f"{model}, one input of shape {_times(shape)}; explained: {explained}")
    say(table.to_string(index=False))
    say(proof)
    if sites is None:
        fit = (f"preset:{name}" for name in presets_of(loaded.model))
        say(f"presets: {', '.join(fit) or 'none fits'}")


def shape_of(text: str | None) -> tuple[int, ...] | None:
    """Read the shape of one input; OptionError where it is none."""
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OptionError(f"input shape {text!r}: expected numbers, for example 3,224,224")
    return shape


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
