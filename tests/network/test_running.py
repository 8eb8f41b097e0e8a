"""What the caller set up for passes of his own, autocast and checkpointing, changes no number."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from condec import IntegratedGradients, Label, Logit, contribute, mode_map
from condec.attribution import ActGrad, Compute, UnitAblation, unit_effects
from condec.basis.errors import ModelError
from condec.edits import Ablate, edited, record_activation
from condec.effects.passes import Passes
from condec.models.torchvision import import_torchvision
from condec.network import Site, find_cuts, plain_attention, run_model, split_at
from condec.testing.models import small_resnet


def images(n: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


# --- autocast -----------------------------------------------------------------------------------


def contributions(model: nn.Module, x: Tensor) -> Tensor:
    return contribute(model, x, "block1", target=Logit(0))["block1"].contribution


def layer_path(model: nn.Module, x: Tensor) -> Tensor:
    method = IntegratedGradients(path="layer", steps="auto", tolerance=0.1)
    return contribute(model, x, "block1", target=Logit(0), method=method)["block1"].contribution


def maps(model: nn.Module, x: Tensor) -> Tensor:
    return mode_map(model, x, "block1", [0, 2], Logit(1)).total


def effects(model: nn.Module, x: Tensor) -> Tensor:
    return unit_effects(model, x, "block1", Label(probability=True), torch.tensor([0, 1, 2]))


def edits(model: nn.Module, x: Tensor) -> Tensor:
    some = [(Ablate("block1", units=[unit]),) for unit in range(4)]
    found = dict(Passes(model, [*some, ()]).outputs(x))
    return torch.stack([found[number] for number in sorted(found)])


def recorded(model: nn.Module, x: Tensor) -> Tensor:
    return record_activation(model, x, "block2")


ANSWERS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    f.__name__: f for f in (contributions, layer_path, maps, effects, edits, recorded, run_model)
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_callers_autocast_changes_nothing(answer: str) -> None:
    model, x = small_resnet(), images()
    expected = ANSWERS[answer](model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ANSWERS[answer](model, x)
        assert torch.is_autocast_enabled("cpu")
        assert model(x).dtype == torch.bfloat16  # The caller's own passes are his.
    assert torch.equal(found.to(expected), expected)
    assert found.dtype == expected.dtype


def test_precision_that_is_asked_for_stays_under_the_callers_autocast() -> None:
    model, x, compute = small_resnet(), images(), Compute(precision="bfloat16")

    def of() -> Tensor:
        return contribute(model, x, "block1", target=Logit(0), compute=compute)[
            "block1"
        ].contribution

    expected = of()
    assert not torch.equal(expected, contributions(model, x))
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(of(), expected)
    with torch.autocast("cpu", enabled=False):
        assert torch.equal(of(), expected)


# --- gradient checkpointing ---------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).tanh())


class Saving(nn.Module):
    """Blocks run plainly, or under one of torch's ways to save memory; `counts` are their runs."""

    def __init__(self, way: str = "plain") -> None:
        super().__init__()
        self.way = way
        self.stem, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if self.way == "sequential":
            return self.head(
                checkpoint.checkpoint_sequential(self.blocks, 2, h, use_reentrant=False)
            )
        for block in self.blocks:
            if self.way == "plain":
                h = block(h)
            else:
                h = checkpoint.checkpoint(block, h, use_reentrant=self.way == "reentrant")
        return self.head(h)


WAYS = ("reentrant", "other", "sequential")
SITES = ("blocks.0", "blocks.1.a", "blocks.2.b:input")


def saving(way: str = "plain") -> Saving:
    torch.manual_seed(0)
    return Saving(way).double().eval()


def rows(n: int = 3) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture(autouse=True)
def _torch_is_as_before() -> Iterator[None]:
    plain = checkpoint._checkpoint_without_reentrant_generator
    yield
    assert "apply" not in vars(checkpoint.CheckpointFunction)
    assert checkpoint._checkpoint_without_reentrant_generator is plain


def loop(x: Tensor, steps: int) -> Tensor:
    """Contributions of ``blocks.1.a`` to output 1, by the plain model's own pieces."""
    model, total, before = saving(), 0.0, None
    for k in range(steps + 1):
        h = model.blocks[0](model.stem(x * k / steps))
        a = model.blocks[1].a(h).detach().requires_grad_()
        out = model.head(model.blocks[2](h + model.blocks[1].b(a.tanh())))[:, 1]
        (gradient,) = torch.autograd.grad(out.sum(), a)
        if before is not None:
            total = total + (a - before[0]) * (gradient + before[1]) / 2
        before = a.detach(), gradient
    return total.detach()  # type: ignore[union-attr]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "method",
    [
        IntegratedGradients(steps=5), IntegratedGradients(steps="auto"), ActGrad(), UnitAblation(),
        IntegratedGradients(path="layer", steps=3),
    ],
    ids=repr,
)  # fmt: skip
def test_contributions_are_those_without_checkpointing(
    way: str, method: IntegratedGradients
) -> None:
    found = contribute(saving(way), rows(), SITES, target=Logit(1), method=method)
    expected = contribute(saving(), rows(), SITES, target=Logit(1), method=method)
    for part in expected.by_site:
        assert torch.equal(found[part.site].contribution, part.contribution)
        assert found[part.site].cut == part.cut
    if method == IntegratedGradients(steps=5):
        torch.testing.assert_close(found["blocks.1.a"].contribution, loop(rows(), 5))


@pytest.mark.parametrize("way", WAYS)
def test_maps_and_parts_of_the_network_are_those_without_checkpointing(way: str) -> None:
    for site in SITES:
        found = mode_map(saving(way), rows(), site, [0, 3], Logit(1))
        expected = mode_map(saving(), rows(), site, [0, 3], Logit(1))
        assert torch.equal(found.positive, expected.positive)
        assert torch.equal(found.negative, expected.negative)
    assert find_cuts(saving(way), rows(1), [Site("blocks.0"), Site("blocks.1.a")]) == {
        "blocks.0": True, "blocks.1.a": False,
    }  # fmt: skip
    after = split_at(saving(way), rows(), Site("blocks.1.a"))
    versions = after.activation.mul(0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(after.run(versions).sum(), versions)
    plain = split_at(saving(), rows(), Site("blocks.1.a"))
    (expected,) = torch.autograd.grad(plain.run(versions).sum(), versions)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_under_edits_are_those_of_the_edited_network(way: str) -> None:
    """Also outside the context, where a second forward pass would be without the edit."""
    gradients = []
    for model in (saving(way), saving()):
        x = rows().requires_grad_()
        with edited(model, Ablate("blocks.1.a", units=[0, 2])):
            output = model(x)
        gradients.append(torch.autograd.grad(output.sum(), x)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("way", ["reentrant", "other"])
def test_a_failure_inside_is_reported_and_leaves_torch_as_it_was(way: str) -> None:
    model = saving(way)
    model.blocks[1].b = nn.Linear(3, 5).double().eval()
    with pytest.raises(ModelError, match=r"Saving failed on inputs .*mat1 and mat2"):
        contribute(model, rows(), "blocks.0", target=Logit(1))


@pytest.mark.parametrize("way", ["reentrant", "other"])
def test_other_threads_go_on_to_save_memory(way: str) -> None:
    """A model trained meanwhile recomputes; it began before the context and ends within it."""
    runs: list[int] = []
    model = saving(way)
    model.blocks[0].a.register_forward_hook(lambda *_: runs.append(1))

    def train() -> None:
        model(rows().requires_grad_()).sum().backward()

    def meanwhile(*_: object) -> None:
        if not other.is_alive() and not runs:
            other.start()
            other.join()

    other = threading.Thread(target=train)
    looked_at = saving(way)
    looked_at.blocks[1].a.register_forward_hook(meanwhile)
    contribute(looked_at, rows(), "blocks.0", target=Logit(1))
    assert len(runs) == 2
    assert all(p.grad is not None for p in model.parameters())


def test_models_of_timm_and_torchvision_that_checkpoint() -> None:
    models = import_torchvision().models
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 16, "depth": 2, "embed_dim": 12, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, **options).double().eval()
    dense = models.DenseNet(4, (2, 2), 8, num_classes=5).double().eval()

    def save_vit() -> None:
        vit.set_grad_checkpointing(True)

    def save_dense() -> None:
        for module in dense.modules():
            if hasattr(module, "memory_efficient"):
                module.memory_efficient = True

    x = torch.randn(2, 3, 32, 32).double()
    for model, save, sites in (
        (vit, save_vit, ["blocks.0.mlp.fc2:input", "blocks.1"]),
        (dense, save_dense, ["features.denseblock1.denselayer2.conv1", "features.denseblock2"]),
    ):
        expected = contribute(model, x, sites, target=Logit(2))
        map_ = mode_map(model, x, sites[0], [1], Logit(2))
        save()
        found = contribute(model, x, sites, target=Logit(2))
        for part in expected.by_site:
            assert torch.equal(found[part.site].contribution, part.contribution)
        assert torch.equal(mode_map(model, x, sites[0], [1], Logit(2)).total, map_.total)


# --- threads ------------------------------------------------------------------------------------


def slowly(model: nn.Module) -> nn.Module:
    """Let other threads run in the middle of a pass."""
    first, *_, last = (part for part in model.modules() if not [*part.children()])
    for part in (first, last):
        part.register_forward_hook(lambda *_: time.sleep(1e-3))
    return model


def in_two_threads(*parts: Callable[[], object], n_times: int = 2) -> list[list[object]]:
    """Do each part several times, at the same time as the others."""
    together = threading.Barrier(len(parts))

    def often(part: Callable[[], object]) -> list[object]:
        together.wait()
        return [part() for _ in range(n_times)]

    with ThreadPoolExecutor(len(parts)) as pool:
        return [task.result() for task in [pool.submit(often, part) for part in parts]]


@pytest.mark.parametrize("other", ["contributions", "edits", "maps", "layer_path", "run_model"])
def test_two_threads_on_one_model_are_as_one(other: str) -> None:
    model, x, y = slowly(small_resnet()), images(), images(2, seed=2)
    wanted = contributions(model, x), ANSWERS[other](model, y)
    here, there = in_two_threads(lambda: contributions(model, x), lambda: ANSWERS[other](model, y))
    for found, expected in ((here, wanted[0]), (there, wanted[1])):
        for one in found:
            torch.testing.assert_close(one, expected, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert sum(len(module._forward_hooks) for module in model.modules()) == 2  # the slow ones


def test_plain_passes_of_another_thread_are_neither_recorded_nor_answered() -> None:
    model, x, y = slowly(small_resnet()), images(), images(2, seed=2)
    wanted, plain = edits(model, x), model(y).detach()
    here, there = in_two_threads(
        lambda: (contributions(model, x), Passes(model, []), edits(model, x))[2],
        lambda: model(y).detach(),
    )
    for one in here:
        torch.testing.assert_close(one, wanted, rtol=0, atol=0)
    for one in there:
        torch.testing.assert_close(one, plain, rtol=0, atol=0)


def test_padded_encoders_stay_unpacked_in_the_second_thread() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            padding = torch.zeros(x.shape[:2], dtype=torch.bool)
            padding[:, 3:] = True
            return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])

    model, x = slowly(Padded().eval()), torch.randn(2, 5, 8)
    site = "encoder.layers.0.linear2"
    find = lambda: contribute(model, x, site, target=Logit(0))[site].contribution  # noqa: E731
    wanted = find()
    for found in in_two_threads(find, find):
        for one in found:
            torch.testing.assert_close(one, wanted, rtol=0, atol=0)
    assert encoder.use_nested_tensor
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_plain_attention_stays_until_the_last_that_needs_it_leaves() -> None:
    flash = torch.backends.cuda.flash_sdp_enabled
    before, first, last = flash(), plain_attention(), plain_attention()
    first.__enter__()
    with ThreadPoolExecutor(1) as other:
        other.submit(last.__enter__).result()
        first.__exit__(None, None, None)
        assert not flash()
        other.submit(last.__exit__, None, None, None).result()
    assert flash() == before
    with pytest.raises(ZeroDivisionError), plain_attention():
        1 / 0  # noqa: B018
    assert flash() == before
