"""Models of several inputs: contributions against plain loops over the model's own arguments."""

from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import condec
from condec.basis.errors import DataError, ModelError
from condec.data import SeveralInputs
from condec.models.torchvision import import_torchvision

STEPS = 5


class Gated(nn.Module):
    """Two inputs that act together, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, image: Tensor, mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = self.first(image).tanh() * mask
        return {"logits": self.last(hidden * scale).pow(3)}


def by_loop(call: Any, sites: list[nn.Module], x: Tensor, label: int) -> list[Tensor]:
    """Integrate the gradient of a logit over the path of each site's activation, one by one."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        out = out if isinstance(out, Tensor) else out[0]
        out.retain_grad()
        kept.append(out)

    points = []
    for step in range(STEPS + 1):
        kept.clear()
        handles = [site.register_forward_hook(keep) for site in sites]
        start = (x * (step / STEPS)).requires_grad_()
        call(start)[:, label].sum().backward()
        points.append([(h.detach().clone(), h.grad.clone()) for h in kept])  # type: ignore[union-attr]
        for handle in handles:
            handle.remove()
    return [
        sum((b[i][0] - a[i][0]) * (b[i][1] + a[i][1]) / 2 for a, b in pairwise(points))
        for i in range(len(sites))
    ]  # type: ignore[misc]


@pytest.fixture
def gated() -> nn.Module:
    return Gated().double().eval()


BATCH = {
    "image": torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]]),
    "scale": 0.5,
    "labels": torch.tensor([0, 1, 1, 0]),
}


def method() -> condec.IntegratedGradients:
    return condec.IntegratedGradients(steps=STEPS)


def test_a_mapping_of_an_input_that_moves_and_one_that_stays(gated: nn.Module) -> None:
    model = SeveralInputs(gated, BATCH)
    packed = model.pack(BATCH)
    batch = condec.contribute(model, packed, "model.first", method=method(), target=condec.Logit(1))
    (wanted,) = by_loop(
        lambda x: gated(x, BATCH["mask"], 0.5)["logits"], [gated.first], BATCH["image"], 1
    )
    assert torch.allclose(batch["model.first"].contribution, wanted, rtol=0, atol=1e-14)
    wrong = by_loop(lambda x: gated(x, 1.0, 0.5)["logits"], [gated.first], BATCH["image"], 1)[0]
    assert not torch.allclose(wrong, wanted)
    assert torch.equal(model.moving(packed), BATCH["image"])


def test_samples_one_by_one_and_several_points_a_pass_are_the_same(gated: nn.Module) -> None:
    model = SeveralInputs(gated, BATCH)
    packed = model.pack(BATCH)
    together = condec.contribute(model, packed, "model.*", method=method())
    for row in range(4):
        alone = condec.contribute(model, packed[row : row + 1], "model.*", method=method())
        for part in together.by_site:
            mine = alone[part.site].contribution[0]
            assert torch.allclose(mine, part.contribution[row], rtol=0, atol=1e-14)


def test_a_sequence_goes_by_place_and_moves_says_which(gated: nn.Module) -> None:
    given = (BATCH["image"], BATCH["mask"].double(), 0.5)
    with pytest.raises(DataError, match=r"say which by moves=.*moves=None of 0, 1, where 0, 1 are"):
        SeveralInputs(gated, given)
    model = SeveralInputs(gated, given, moves=0)
    with torch.no_grad():
        assert torch.equal(model(model.pack(given))["logits"], gated(*given)["logits"])
    found = condec.contribute(model, model.pack(given), "model.first", method=method())
    named = SeveralInputs(gated, BATCH)
    wanted = condec.contribute(named, named.pack(BATCH), "model.first", method=method())
    assert torch.equal(found["model.first"].contribution, wanted["model.first"].contribution)


@pytest.mark.parametrize(
    "other", [condec.attribution.SmoothGrad(n_samples=2),
              condec.UnitAblation(replacement="baseline"),
              condec.IntegratedGradients(steps=2, baseline=condec.Constant(0.5))]
)  # fmt: skip
def test_what_stays_is_held_wherever_an_input_is_changed(gated: nn.Module, other: Any) -> None:
    """The mask is held: samples that differ in nothing but what it hides are alike."""
    seen: list[Tensor] = []
    gated.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["mask"].clone()), with_kwargs=True
    )
    model = SeveralInputs(gated, BATCH)
    condec.contribute(model, model.pack(BATCH), "model.last:input", method=other)
    rows = {tuple(row) for row in BATCH["mask"].tolist()}
    assert all({tuple(row) for row in mask.tolist()} <= rows for mask in seen)


def test_a_map_in_the_space_of_the_input_that_moves(gated: nn.Module) -> None:
    model = SeveralInputs(gated, BATCH)
    packed = model.pack(BATCH)
    picture = condec.mode_map(model, packed, "model.first", [0, 2], condec.Logit(1))
    assert not picture.total[:, 3:].any()
    image = BATCH["image"].clone().requires_grad_()
    hidden = gated.first(image)
    (driven,) = torch.autograd.grad(
        gated.last(hidden.tanh() * BATCH["mask"] * 0.5).pow(3)[:, 1].sum(), hidden,
        retain_graph=True,
    )  # fmt: skip
    driven[:, [1, 3]] = 0
    (slope,) = torch.autograd.grad(hidden, image, driven)
    wanted = image.detach() * slope
    assert torch.allclose(model.moving(picture.total), wanted, rtol=0, atol=1e-14)


def test_batches_of_a_loader_for_a_collection(gated: nn.Module, tmp_path: Any) -> None:
    rows = [{k: v[i] if isinstance(v, Tensor) else v for k, v in BATCH.items()} for i in range(4)]
    loader = torch.utils.data.DataLoader(
        rows, batch_size=3,
        collate_fn=lambda some: torch.utils.data.default_collate(some) | {"scale": 0.5},
    )  # type: ignore[arg-type]  # fmt: skip
    model = SeveralInputs(gated, next(iter(loader)))
    inputs = model.inputs(loader)
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [0, 1, 1, 0]
    options: Any = {"method": method(), "target": condec.Label(), "progress": False}
    store = condec.collect(model, inputs, "model.first", out=tmp_path / "a.zarr", **options)
    packed, labels = model.pack(BATCH), BATCH["labels"]
    wanted = (
        condec.contribute(
            model, packed, "model.first", method=method(), target=condec.Label(), labels=labels
        )
        .reduce()["model.first"]
        .contribution.float()
    )
    assert torch.equal(store.matrix("model.first", sign="positive"), wanted[:, 0])
    assert model.inputs([(BATCH, labels)]).labels.tolist() == [0, 1, 1, 0]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="batches: empty"):
        model.inputs([])


# --- what tokenizers give --------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    import_torchvision()
    return pytest.importorskip("transformers")


def test_an_encoder_of_text_with_its_mask_and_types(transformers: ModuleType) -> None:
    config = transformers.BertConfig(
        vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=10, num_labels=3,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.BertForSequenceClassification(config).double().eval()
    batch = transformers.BatchEncoding({
        "input_ids": torch.tensor([[1, 5, 7, 2, 9], [1, 4, 2, 0, 0]]),
        "token_type_ids": torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "labels": torch.tensor([2, 0]),
    })  # fmt: skip
    model = SeveralInputs(theirs, batch)
    packed = model.pack(batch)
    assert packed.shape == (2, 5 * 8 + 10)
    assert torch.equal(model.real(packed), batch["attention_mask"].bool())
    others = {key: batch[key] for key in ("token_type_ids", "attention_mask")}
    with torch.no_grad():
        wanted = theirs(input_ids=batch["input_ids"], **others).logits
        assert torch.equal(model(packed).logits, wanted)
    names = ["bert.encoder.layer.0.intermediate", "bert.encoder.layer.1.output"]
    sites = [f"model.{name}" for name in names]
    found = condec.contribute(model, packed, sites, method=method(), target=condec.Logit(2))
    start = theirs.get_input_embeddings()(batch["input_ids"]).detach()
    loop = by_loop(
        lambda x: theirs(inputs_embeds=x, **others).logits,
        [theirs.get_submodule(name) for name in names], start, 2,
    )  # fmt: skip
    for site, contribution in zip(sites, loop, strict=True):
        assert torch.allclose(found[site].contribution, contribution, rtol=0, atol=1e-13)
    alone = {key: value[1:] for key, value in batch.items()}
    short = condec.contribute(
        model, model.pack(alone), sites, method=method(), target=condec.Logit(2)
    )
    for site in sites:
        got = short[site].contribution[0]
        assert torch.allclose(got, found[site].contribution[1], rtol=0, atol=1e-13)


# --- messages --------------------------------------------------------------------------------


def test_batches_that_do_not_fit_the_example(gated: nn.Module) -> None:
    model = SeveralInputs(gated, BATCH)
    for change in ({"image": torch.ones(4, 2).double()}, {"mask": torch.ones(4, 4)}, {"scale": 1.0},
                   {"more": torch.ones(4)}):  # fmt: skip
        with pytest.raises(DataError, match=r"a batch like the example, image \[3\] torch.float64"):
            model.pack(BATCH | change)
    for wrong in ({}, {"x": 1}, {"x": torch.ones(2), "y": torch.ones(3)}, {"x": torch.tensor(1.0)}):
        with pytest.raises(DataError, match=r"a mapping or sequence of tensors, each \[sample"):
            SeveralInputs(gated, wrong)
    with pytest.raises(DataError, match=r"moves='mask' of 'image', 'mask'"):
        SeveralInputs(gated, BATCH, moves="mask")
    with pytest.raises(ModelError, match="Gated has no get_input_embeddings"):
        SeveralInputs(gated, {"input_ids": torch.ones(2, 3, dtype=torch.int64)})


def test_whole_numbers_that_the_models_type_cannot_hold(gated: nn.Module) -> None:
    batch = {"image": torch.ones(1, 3), "mask": torch.tensor([[1, 2**24 + 1, 1, 1]])}
    SeveralInputs(gated, batch).pack(batch)
    model = SeveralInputs(gated.float(), batch)
    with pytest.raises(DataError, match=r"'mask' has values that torch.float32 cannot hold; make"):
        model.pack(batch)
