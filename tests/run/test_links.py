"""The chain on texts: a language model from its tokens to the report, rows that are positions."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from condec.basis.errors import DataError
from condec.basis.npz import load_record
from condec.explanation import ExplainedInput, SiteMaps
from condec.models import load_model
from condec.models.torchvision import import_torchvision
from condec.run import Run, chain, config
from condec.run.explain import explain_inputs

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::condec.dictionary.DeadModesWarning"
)
PLAN = """
sites = "preset:lm_mlp_neurons"
out = "run"
[model]
spec = "huggingface:model"
[data]
source = "tokens:tokens.npz"
[collect]
target = "margin:all"
method = "ig:4"
rows = "positions"
keep = 3
shard_size = 32
[fit]
rows = "positions"
learner = "nmf"
n_modes = 3
held_out = 0.4
[control]
sites = "lm.model.layers.1.mlp.down_proj:input"
edits = ["ablate"]
fractions = [0.25, 0.5]
rankings = ["modes", "mean_contribution", "random"]
n_random = 2
n_bootstrap = 20
[maps]
n_modes = 2
n_inputs = 2
[explain]
inputs = ["4"]
[report]
title = "positions of texts"
"""


@pytest.fixture(scope="module")
def library() -> ModuleType:
    import_torchvision()
    return pytest.importorskip("transformers")


@pytest.fixture
def source(library: ModuleType, tmp_path: Path) -> Path:
    """A model of one-letter tokens, and texts of several lengths that go on as it says."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    config_ = library.LlamaConfig(
        vocab_size=6, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = library.LlamaForCausalLM(config_).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    model.save_pretrained(tmp_path / "model")
    words = Tokenizer(WordLevel(dict(zip("abcdef", range(6), strict=True)), unk_token="a"))
    library.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    tokens = torch.randint(0, 6, (60, 6), generator=generator)
    tokens[::3, :2] = -1  # shorter ones
    loaded = load_model(f"huggingface:{tmp_path / 'model'}").model
    with torch.no_grad():
        real = tokens >= 0
        labels = loaded(loaded.embed(tokens.clamp(min=0), real.long())).argmax(1)
    np.savez(tmp_path / "tokens.npz", tokens=tokens.numpy(), labels=labels.numpy())
    (tmp_path / "run.toml").write_text(PLAN)
    return tmp_path


@pytest.mark.slow
def test_the_whole_chain_on_positions_of_texts(source: Path) -> None:
    run = Run(config.read(source / "run.toml"), progress=False)
    outcomes = {outcome.link: outcome for outcome in chain(run)}
    assert {name: outcome.state for name, outcome in outcomes.items()} == dict.fromkeys(
        outcomes, "made"
    )
    (modes,) = run.modes(["lm.model.layers.1.mlp.down_proj:input"])
    assert (modes.rows, len(modes.loadings), modes.n_modes) == ("positions", 60, 3)
    assert modes.encoder is not None
    assert modes.encoder.training is not None
    assert modes.encoder.training.n_rows == 3 * 60
    # Of texts that are padded, on the left here, no position is padding.
    kept = run.store.places(modes.site)
    assert kept.n_places.tolist() == [4, 6, 6] * 20
    assert bool((kept.position >= (6 - kept.n_places)[kept.sample]).all())
    curves = pandas.read_parquet(run.folder.analysis("control"))
    assert {*curves["ranking"]} == {"modes", "mean_contribution", "random"}
    maps = load_record(run.folder.maps(modes.site.key, modes.name), SiteMaps)
    assert maps.places is not None
    assert maps.places.shape == (2, 2, 6)
    for samples, places in zip(maps.samples.tolist(), maps.places, strict=True):
        for number, values in zip(samples, places, strict=True):
            n_real = int(kept.n_places[int(maps.ids[number])])
            assert not values[: 6 - n_real].any()
            assert bool(values.any())
    page = (source / "run" / "report" / "index.html").read_text()
    assert "Rows are positions, so many of every input" in page
    one = load_record(run.folder.explained("4"), ExplainedInput)
    assert len(one.words) == 6
    assert sum(len(part) > 0 for part in one.maps()) == 2
    sums = [float(places.sum()) for part in one.maps() for places in part]
    nets = [part["net"] for site in one.sites for part in site["parts"]]
    assert sums[:2] == pytest.approx(nets[:2], rel=1e-4)
    assert (source / "run" / "report" / "inputs" / "4.html").exists()


def test_a_short_text_is_explained_where_the_baseline_is_samples(source: Path) -> None:
    plan = source / "run.toml"
    plan.write_text('links = ["collect", "fit"]' + PLAN.replace('"ig:4"', '"ig:4@samples:2"'))
    run = Run(config.read(plan), progress=False)
    assert [outcome.state for outcome in chain(run)] == ["made", "made"]
    for name, length in (("short", 3), ("long", 7)):
        np.savez(source / f"{name}.npz", tokens=np.arange(length)[None] % 6)
    outcome = explain_inputs(run, [str(source / "short.npz")], label="1")
    page = [note for note in outcome.notes if note.startswith("short.npz-")][-1]
    assert Path(page.partition(": ")[2]).is_file()
    wanted = "Samples: the baseline was taken from texts of 6 tokens, and this one has 7; give one"
    with pytest.raises(DataError, match=wanted):
        explain_inputs(run, [str(source / "long.npz")], label="1")
