"""A trained character language model: its neurons and heads, and the next character of a text."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from condec import (
    Constant,
    IntegratedGradients,
    Label,
    LanguageModel,
    contribute,
    find_sites,
    load_model,
)
from plain_loop import contributions, tensor_of

pytestmark = [pytest.mark.slow, pytest.mark.needs_shared, pytest.mark.filterwarnings("ignore")]
STEPS = 3


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> LanguageModel:
    folder = shared_data / "stories"
    if not folder.is_dir():
        pytest.skip(f"the language model is not at {folder}")
    model = load_model(f"huggingface:{folder}").model.double()
    # The library's own norm goes through single precision; this one is the same without.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm.eval())
    assert isinstance(model, LanguageModel)
    return model


@pytest.mark.parametrize("preset", ["lm_mlp_neurons", "lm_heads"])
def test_contributions_to_the_next_character_equal_the_loop(
    preset: str, stories: LanguageModel, shared_data: Path, record_property: Any
) -> None:
    row = {"group": "language models", "family": f"stories, {preset}", "result": "differs",
           "note": "trained on stories; the next character"}  # fmt: skip
    record_property("conformance", row)
    tokens = torch.from_numpy(numpy.load(shared_data / "stories" / "stories_500.npz")["tokens"])
    x, following = stories.embed(tokens[:4, :48].long()), tokens[:4, 48].long()
    sites = find_sites(stories, f"preset:{preset}")
    method = IntegratedGradients(steps=STEPS, baseline=Constant(0.0))
    batch = contribute(stories, x, sites, method=method, target=Label(), labels=following)
    assert len(batch.sites) == 5
    places = [(site.name, site.tap, 0) for site in batch.sites]
    reduced, errors = batch.reduce(), []
    for i, label in enumerate(following.tolist()):
        slow = contributions(
            stories, x[i : i + 1], places, lambda out, y=label: tensor_of(out)[:, y], STEPS
        )
        for site, place in zip(batch.sites, places, strict=True):
            expected = slow[place][0]
            errors.append(
                (batch[site].contribution[i] - expected[0]).abs().max() / expected.abs().max()
            )
            total = reduced[site].contribution[i].sum(0)
            by_unit = expected[0].sum(0).view(len(total), -1).sum(1)
            errors.append((total - by_unit).abs().max() / by_unit.abs().max())
    assert {len(part.contribution[0, 0]) for part in reduced.by_site} == (
        {352} if preset == "lm_mlp_neurons" else {8}
    )
    row |= {"sites": [site.key for site in batch.sites], "error": float(max(errors))}
    assert row["error"] < 1e-10
    row["result"] = "works"


def test_the_model_knows_a_name(stories: LanguageModel) -> None:
    x = stories.embed_text("Once upon a time, there was a little girl named Lil")
    with torch.no_grad():
        odds = stories(x).softmax(1)
    assert odds[0, stories.tokenizer.convert_tokens_to_ids("y")] > 0.9
