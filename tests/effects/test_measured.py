"""Outputs under many edits are those of a whole pass for each, by every route."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condec.basis.errors import ModelError, OptionError, SiteError
from condec.data import as_inputs, load_data
from condec.edits import Ablate, CutAttention, Edit, Patch, Preserve, Steer, edited
from condec.effects import measure, passes
from condec.effects.passes import Passes
from condec.effects.samples import HeldOut
from condec.models import load_model
from condec.models.python import load_function
from condec.models.torchvision import import_torchvision
from condec.network.sites import Site
from condec.testing.contracts import count_hooks
from condec.testing.models import small_resnet

# Annotations that are checked do not trace.
pytestmark = pytest.mark.usefixtures("unchecked")


class Inverted(nn.Module):
    """An inverted residual block with its operations written as functions, in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.depth = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.project = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x), inplace=True)
        y = self.project(F.hardswish(self.depth(y)))
        y += x
        return y


class SmallMobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(Inverted(4) for _ in range(3)))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.stem(x))
        h = self.relu(self.blocks(h))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Fixed(nn.Module):
    """Draws noise, so that it cannot be run in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h + 0.1 * torch.randn_like(h))


def samples_of(x: Tensor, n_labels: int = 3) -> HeldOut:
    labels = torch.arange(len(x)) % n_labels
    return HeldOut(as_inputs((x, labels)), list(range(len(x))), labels)


def plain(model: nn.Module, samples: HeldOut, edits: Any, batch_size: int) -> Tensor:
    """Outputs [edit, sample, label] of a whole pass for every set of edits."""
    batches = [inputs for inputs, _ in samples.batches(batch_size)]
    found = []
    for some in edits:
        with edited(model, some), torch.no_grad():
            found.append(torch.cat([model(inputs) for inputs in batches]))
    return torch.stack(found)


def small_vit() -> nn.Module:
    import_torchvision()  # which mends what timm would stumble over
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=12, depth=3, num_heads=3,
    ).eval()  # fmt: skip


def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return SmallMobileNet().eval()


def units(site: str, n: int, *also: Edit) -> list[tuple[Edit, ...]]:
    """Single units of a site ablated, and one preserved, each together with other edits."""
    return [(Ablate(site, units=[u]), *also) for u in range(n)] + [
        (*also, Preserve(site, units=[n - 1], replacement=0.5))
    ]


def resnet_edits() -> list[tuple[Edit, ...]]:
    """At one site, at several in any order, around each other, at an input and at one twice."""
    block = Ablate("block1", units=[1])
    return [
        (),
        *units("stem", 2, Preserve("block2.out:input", units=[0, 2])),
        *units("block1.conv1", 3, block, Ablate("head:input", units=[3])),
        *units("block1", 2),
        (block, Preserve("block1", units=[0, 2])),
        *units("block2.conv2:input", 3),
        (Ablate("head", units=[0]),),
    ]


def mobilenet_edits() -> list[tuple[Edit, ...]]:
    steer = Steer("blocks.2.project", direction=torch.ones(4), strength=1.0)
    patch = Patch("blocks.0", source=torch.randn(1, 4, 6, 5), units=[1, 2])
    return [
        *units("relu#0", 2, Ablate("relu#1", units=[0])),
        *units("blocks.0", 2, steer),
        (patch,),
        (steer, patch),
        *units("blocks.1.depth:input", 3),
        (),
    ]


def vit_edits() -> list[tuple[Edit, ...]]:
    cut = CutAttention("blocks.2.attn", edges=[(1, 0)])
    return [
        *units("blocks.0.attn.proj:input@heads(3)", 3, Ablate("blocks.2", units=[2])),
        *units("blocks.0@tokens", 3),
        *units("blocks.1.mlp.fc2:input", 3),
        (cut,),
        (cut, Ablate("blocks.0", units=[0])),
        (),
    ]


MODELS = {
    "resnet": (small_resnet, (1, 6, 5), resnet_edits),
    "in place": (lambda: small_resnet(inplace=True), (1, 6, 5), resnet_edits),
    "mobilenet": (mobilenet, (1, 6, 5), mobilenet_edits),
    "vit": (small_vit, (1, 8, 8), vit_edits),
}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sets of edits that run in a whole pass of their own."""
    found: list[Any] = []
    monkeypatch.setattr(passes, "edited", lambda model, e: found.append(e) or edited(model, e))
    return found


def test_effects_are_of_proven_models() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_resnet()

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            return y - y.mean(0)

    model, samples = Centred().eval(), samples_of(torch.randn(4, 1, 6, 5))
    with pytest.raises(ModelError, match=r"samples meet, outside of modules.*prove=False"):
        measure(model, samples, [()])
    assert len(measure(model, samples, [()], prove=False).labels) == 4


@pytest.mark.parametrize("memory_gib", [1e-9, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_a_whole_pass_for_each(
    name: str, memory_gib: float, whole: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(passes._GIB, "cpu", memory_gib)
    make, shape, make_edits = MODELS[name]
    model, edits = make(), make_edits()
    samples = samples_of(torch.randn(7, *shape))
    targets = [None if i % 2 else i % 3 for i in range(len(edits))]
    measured = measure(model, samples, edits, targets=targets, batch_size=3)
    # Edits within a module, and those of which too few begin at their place.
    assert len(set(whole)) <= 3
    logits = plain(model, samples, edits, 3)
    assert logits.std(0).max() > 0.02  # edits do something
    assert torch.equal(measured.predicted, logits.argmax(2))
    own = samples.labels.expand(len(edits), -1)[..., None]
    expected = {
        "logit": logits.gather(2, own)[..., 0],
        "probability": logits.softmax(2).gather(2, own)[..., 0],
        "entropy": torch.distributions.Categorical(logits=logits).entropy(),
        "target_logit": torch.stack([
            torch.full((7,), torch.nan) if of is None else row[:, of]
            for of, row in zip(targets, logits, strict=True)
        ]),
    }  # fmt: skip
    for field, value in expected.items():
        torch.testing.assert_close(
            getattr(measured, field), value, rtol=0, atol=2e-6, equal_nan=True
        )
    assert torch.equal(measured.rank, (logits > logits.gather(2, own)).sum(2))
    if memory_gib < 1e-6:
        # One version at a time is a whole pass's arithmetic.
        assert torch.equal(measured.logit, expected["logit"])
    assert count_hooks(model) == 0
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_what_lies_before_the_site_runs_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest as often as memory asks for."""
    model, runs = small_resnet(), []
    for name, module in model.named_modules():
        if name in ("stem", "block1", "block2.conv1", "head"):
            module.register_forward_hook(lambda m, args, out, name=name: runs.append(name))
    edits = [(Ablate("block2.conv1", units=[u % 4]),) for u in range(10)]
    samples = samples_of(torch.randn(9, 1, 6, 5))
    measure(model, samples, edits, batch_size=3, prove=False)
    n_batches = 3
    # One to see which axis holds the units, a full pass a batch, two versions to try it on the
    # first, and all ten in one.
    assert runs.count("head") == 2 * n_batches + 2
    before = ("stem", "block1", "block2.conv1")
    assert [runs.count(name) for name in before] == [n_batches + 1] * 3
    inner = []
    model.block1.conv1.register_forward_hook(lambda *_: inner.append(0))
    monkeypatch.setitem(passes._GIB, "cpu", 1e-9)
    measure(model, samples, edits, batch_size=3, prove=False)
    assert len(inner) == n_batches


def test_versions_that_pass_together_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = mobilenet(), []
    model.head.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    edits = [(Ablate("blocks.0", units=[u % 4], replacement=float(u)),) for u in range(600)]
    samples = samples_of(torch.randn(2, 1, 6, 5))
    monkeypatch.setitem(passes._GIB, "cpu", 100.0)
    measure(model, samples, edits)
    assert max(rows) == 2 * 256
    one, few = [], []
    for memory, seen in ((1e-12, one), (2**-13, few)):
        rows.clear()
        monkeypatch.setitem(passes._GIB, "cpu", memory)
        measure(model, samples, edits[:40])
        seen += rows[2:]
    assert set(one) == {2}
    assert 2 < max(few) < 80


class Untraced(nn.Module):
    """Asks for a value, so that it does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_resnet()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.sum() < torch.inf else x


@pytest.mark.parametrize("outer", ["block1", "block2", "stem", "block2.conv1"])
@pytest.mark.parametrize("traces", [True, False])
def test_within_other_edits(outer: str, traces: bool) -> None:
    """Inner edits get what outer ones left, at the same site, later, and around it."""
    model, samples = Untraced(), samples_of(torch.randn(4, 1, 6, 5))
    net = model.net if traces else model
    at = "" if traces else "net."
    later = Preserve(at + "block2", units=[1, 3], replacement=-1.0)
    edits = [*units(at + "block1", 3), (Preserve(at + "block1", units=[1], replacement=1.0), later)]
    with edited(net, Ablate(at + outer, units=[0, 2], replacement=2.0)):
        measured = measure(net.eval(), samples, edits)
        logits = plain(net, samples, edits, 4)
    assert torch.equal(measured.predicted, logits.argmax(2))
    own = samples.labels.expand(len(edits), -1)[..., None]
    torch.testing.assert_close(measured.logit, logits.gather(2, own)[..., 0])


@dataclass(frozen=True)
class Fails(Edit):
    site: Site

    def apply(self, activation: Tensor) -> Tensor:
        raise ZeroDivisionError("on purpose")


@pytest.mark.parametrize("site", ["block1", "block2.out"])
def test_nothing_is_left_behind_by_an_error(site: str) -> None:
    model, samples = small_resnet(), samples_of(torch.randn(4, 1, 6, 5))
    before = model(samples.inputs.batch([0, 1]))
    edits = [*units("block1", 3), (Ablate("block1", units=[0]), Fails(Site(site)))]
    with pytest.raises((ZeroDivisionError, ModelError), match="on purpose"):
        measure(model, samples, edits)
    assert count_hooks(model) == 0
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(samples.inputs.batch([0, 1])), before)


def test_whole_passes_where_nothing_else_will_do() -> None:
    """A model that cannot be run in parts, and few edits at a place."""
    samples = samples_of(torch.randn(4, 4))
    model = Fixed().eval()
    edits = [(Ablate("stem", units=[u]),) for u in range(4)]
    torch.manual_seed(5)
    with torch.no_grad():
        found = dict(Passes(model, edits).outputs(samples.inputs.batch([0, 1])))
    assert sorted(found) == [0, 1, 2, 3]
    assert len({float(out.sum()) for out in found.values()}) == 4
    runs: list[int] = []
    plain_model = small_resnet()
    plain_model.stem.register_forward_hook(lambda *_: runs.append(0))
    measure(plain_model, samples_of(torch.randn(4, 1, 6, 5)), units("block1", 1), prove=False)
    assert len(runs) == 3  # one to see which axis holds the units


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"edits": []}, OptionError, "got 0 edits"),
        ({"targets": [5] * 4}, OptionError, "target 5 is out of range; labels are 0 to 2"),
        ({"edits": [(Ablate("nowhere", units=[0]),)] * 4}, SiteError, "nowhere"),
        (
            {"edits": [(Ablate("block1", units=[9]),)] * 4},
            SiteError,
            r"Ablate\(block1\): the site has 4 units",
        ),
        ({"edits": [(Ablate("block1#1", units=[0]),)] * 4}, SiteError, "#0 to #0"),
    ],
)
def test_bad_requests_are_explained(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"edits": units("block1", 3)} | change
    with pytest.raises(error, match=message):
        measure(small_resnet(), samples_of(torch.randn(4, 1, 6, 5)), **given)


def real(name: str, folder: Any) -> tuple[nn.Module, HeldOut, list[str], int]:
    """A trained network, some of its images, three sites, and their least number of units."""
    if name == "vit":
        import json

        from safetensors.torch import load_file

        import_torchvision()
        timm = pytest.importorskip("timm")
        record = json.loads((folder / "digits" / "vit_digits.json").read_text())
        vit = timm.models.VisionTransformer(**record["constructor_args"]).eval()
        vit.load_state_dict(load_file(folder / "digits" / "vit_digits.safetensors"))
        images = load_data("digits", limit=12).batch(range(12))
        return vit, samples_of(images, 10), ["blocks.0", "blocks.2.mlp.fc2:input", "blocks.3"], 32
    file, load, weights = {
        "resnet20": ("cifar10/cifar_resnet.py", "load_resnet", "cifar10/resnet20_cifar10"),
        "mobilenet": (
            "imagenet/mobilenet_v2.py", "load_mobilenet_v2", "imagenet/mobilenet_v2_imagenet"
        ),
    }[name]  # fmt: skip
    model = load_model(
        f"python:{folder / file}:{load}", weights=folder / f"{weights}.safetensors"
    ).model
    preprocess = load_function(f"{folder / file}:preprocess")
    if name == "resnet20":
        data = load_data(f"npz:{folder / 'cifar10/test_2000.npz'}", preprocess=preprocess)
        images = samples_of(data.batch(range(12)), 10)
        return model, images, ["layer1.1", "layer2.1", "layer3.1"], 16
    photos = torch.rand(2, 3, 96, 96)
    return model, samples_of(photos, 1000), ["blocks.10", "blocks.14", "blocks.16"], 64


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "vit"])
def test_real_networks(name: str, shared_data: Any, whole: list[Any]) -> None:
    model, samples, sites, n_units = real(name, shared_data)
    some = torch.arange(n_units)
    edits = [(Ablate(site, units=some[k::4]),) for site in sites for k in range(4)] + [
        tuple(Preserve(site, units=some[:k]) for site in sites) for k in (8, 12, 14)
    ]
    measured = measure(model, samples, edits, batch_size=8)
    assert not whole
    logits = plain(model, samples, edits, 8)
    assert torch.equal(measured.predicted, logits.argmax(2))
    own = samples.labels.expand(len(edits), -1)[..., None]
    expected = logits.gather(2, own)[..., 0]
    torch.testing.assert_close(measured.logit, expected, rtol=1e-4, atol=1e-4)
    assert len(measured.predicted.unique(dim=0)) > 3
