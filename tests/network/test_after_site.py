"""What lies after a site gives what the whole model gives with the activation exchanged there."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import unit_effects
from condec.attribution.targets import TopK
from condec.basis.errors import ModelError, SiteError
from condec.models.torchvision import import_torchvision
from condec.network import Splitter, split_at
from condec.network.module_io import first_tensor, with_first_tensor
from condec.network.sites import Site
from condec.network.tape import run_model
from condec.testing.contracts import count_hooks
from condec.testing.models import small_mlp, small_resnet


class Reuse(nn.Module):
    """One ReLU and one block object, called again and again, also across blocks."""

    class Block(nn.Module):
        def __init__(self, relu: nn.Module) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), relu

        def forward(self, x: Tensor) -> Tensor:
            return x + self.relu(self.b(self.relu(self.a(x))))

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=inplace)
        self.first, self.second = Reuse.Block(relu), Reuse.Block(relu)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.second(self.first(x)))))


class Recurrent(nn.Module):
    """An LSTM that returns a tuple whose state has the samples on its second axis."""

    def __init__(self, *, state: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.lstm = nn.LSTM(4, 4, num_layers=2, batch_first=True)
        self.relu, self.head, self.state = nn.ReLU(), nn.Linear(4, 3), state

    def forward(self, x: Tensor) -> Tensor:
        out, (h, _) = self.lstm(self.stem(x))
        return self.head(self.relu(out[:, -1]) + (h[0] + h[1] if self.state else 0))


class Branches(nn.Module):
    """Dicts, keyword arguments, one tensor twice in an output, and a table without samples."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.tanh()
            return y, y

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 4))

        def forward(self) -> Tensor:
            return self.table

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pair, self.table = nn.Linear(3, 4), Branches.Pair(), Branches.Table()
        self.last, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        a, b = self.pair(x=self.stem(x))
        h = self.last(input=a * b + self.table())
        return {"hidden": h, "logits": self.head(h.relu())}


class Records(nn.Module):
    """A module before the site that returns a frozen dataclass."""

    @dataclass(frozen=True)
    class Pair:
        value: Tensor
        gate: Tensor

    class Split(nn.Module):
        def forward(self, x: Tensor) -> "Records.Pair":
            return Records.Pair(x.tanh(), x.sigmoid())

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split, self.head = nn.Linear(3, 4), Records.Split(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        pair = self.split(self.stem(x))
        return self.head(pair.value * pair.gate)


@functools.cache
def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return make().double().eval()


def in_library(name: str, size: int, **options: Any) -> tuple[Callable[[], nn.Module], Any]:
    def make() -> nn.Module:
        library, _, model = name.partition(":")
        if library == "torchvision":
            return import_torchvision().models.get_model(model, weights=None, **options)
        import_torchvision()  # timm imports it, and needs the same cure.
        return pytest.importorskip("timm").create_model(model, **options)

    return make, (3, size, size)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))


IMAGES = (1, 6, 5)
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "resnet": (small_resnet, IMAGES, "stem block1 block1.conv1 block2.conv2:input block2 head"),
    "in place": (
        lambda: small_resnet(inplace=True),
        IMAGES,
        "stem relu block1 block1.relu block1.conv2 block2.out:input block2 head:input",
    ),
    "sequential": (small_mlp, (5,), "0 1 2:input 4"),
    "reuse": (
        Reuse,
        (4,),
        "first.a#0 first.relu#1 first.relu#3 first.relu#6 second#1 second.b#1:input first#1 head",
    ),
    "reuse in place": (
        lambda: Reuse(inplace=True), (4,), "first.a#1 first.relu#3 first.relu:input#5 second#0"
    ),
    "lstm": (Recurrent, (5, 3), "stem lstm relu head:input"),
    "lstm state": (lambda: Recurrent(state=True), (5, 3), "stem lstm lstm:input relu head"),
    "dicts": (Branches, (3,), "stem pair pair:input last:input last head"),
    "records": (Records, (3,), "stem split head:input :input"),
    "encoder": (
        transformer, (4, 3), "0 1.layers.0 1.layers.0.linear1 1.layers.1.linear2:input 1 2:input"
    ),
}  # fmt: skip
LARGE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "resnet18": (
        *in_library("torchvision:resnet18", 33),
        "conv1 layer1.1.relu#0 layer2.0.downsample layer2.0.bn1 avgpool",
    ),
    "mobilenet_v3_small": (
        *in_library("torchvision:mobilenet_v3_small", 33),
        "features.0 features.4.block.2.fc1 features.4.block.2 classifier.1",
    ),
    "vit": (
        *in_library(
            "timm:vit_tiny_patch16_224", 32, img_size=32, embed_dim=24, depth=3, num_heads=3
        ),
        "patch_embed blocks.0 blocks.1.mlp.fc2:input blocks.1.attn.proj:input blocks.2.norm1 norm",
    ),
}
CASES = [
    pytest.param(make, shape, site, n_samples, id=f"{name}-{site}-{n_samples}")
    for cases, batches in ((SMALL, (1, 3)), (LARGE, (2,)))
    for name, (make, shape, sites) in cases.items()
    for site in sites.split()
    for n_samples in batches
]


def parse(site: str) -> Site:
    """``NAME[:input]#CALL`` in either order."""
    name, _, call = site.partition("#")
    call, tap = call.removesuffix(":input"), "input" if ":input" in site else "output"
    return Site(name.removesuffix(":input"), tap, None, int(call) if call else None)


def whole(model: nn.Module, inputs: Tensor, site: Site, activation: Tensor) -> Tensor:
    """The whole model with the activation put in at a site by a hook."""
    calls: list[int] = []

    def exchange(value: Any) -> Any:
        calls.append(0)
        here = len(calls) - 1 == (site.call or 0)
        return with_first_tensor(value, activation.clone()) if here else value

    def on_input(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if first_tensor(args) is None:
            return args, exchange(kwargs)
        return exchange(args), kwargs

    module = model.get_submodule(site.name)
    if site.tap == "input":
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda m, args, out: exchange(out))
    try:
        return run_model(model, inputs)
    finally:
        handle.remove()


def whole_with_gradient(
    model: nn.Module, inputs: Tensor, site: Site, activation: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Output of the whole model, and the gradient of its weighted sum at the activation."""
    alone = activation.clone().requires_grad_()
    output = whole(model, inputs, site, alone)
    (gradient,) = torch.autograd.grad((output * weight).sum(), alone)
    return output, gradient


@pytest.mark.parametrize(("make", "shape", "site", "n_samples"), CASES)
def test_equals_the_whole_model(make, shape, site, n_samples) -> None:  # type: ignore[no-untyped-def]
    """For three versions at once: outputs, and the gradient at the activation."""
    model, site = seeded(make), parse(site)
    inputs = torch.randn(n_samples, *shape, dtype=torch.float64)
    after = split_at(model, inputs, site)
    torch.testing.assert_close(after.output, run_model(model, inputs).detach())
    versions = [after.activation + 0.3 * torch.randn_like(after.activation) for _ in range(3)]
    weight = torch.randn(3 * n_samples, *after.output.shape[1:], dtype=torch.float64)
    pairs = zip(versions, weight.chunk(3), strict=True)
    slow = [whole_with_gradient(model, inputs, site, *pair) for pair in pairs]
    given = torch.cat(versions).requires_grad_()
    output = after.run(given)
    (gradient,) = torch.autograd.grad((output * weight).sum(), given)
    with torch.no_grad():
        assert torch.allclose(after.run(given), output, rtol=0, atol=1e-9)
    for i, expected in enumerate(zip(output.chunk(3), gradient.chunk(3), strict=True)):
        torch.testing.assert_close(expected, slow[i], rtol=0, atol=1e-9)
    assert torch.equal(given.detach(), torch.cat(versions))
    assert torch.equal(after.run(after.activation), after.run(after.activation))
    assert is_as_before(model)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def is_as_before(model: nn.Module) -> bool:
    """No hook is left, and no method of an instance."""
    return count_hooks(model) == 0 and not any(
        {"forward", "_call_impl"} & module.__dict__.keys() for module in model.modules()
    )


def calls_of(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Leaf modules that really run."""
    ran: list[str] = []
    plain = {name: m for name, m in model.named_modules() if not list(m.children())}
    for name, module in plain.items():
        forward = module.forward

        def counted(*args: Any, name: str = name, forward: Any = forward, **kwargs: Any) -> Any:
            ran.append(name)
            return forward(*args, **kwargs)

        module.__dict__["forward"] = counted
    try:
        run()
    finally:
        for module in plain.values():
            del module.__dict__["forward"]
    return ran


def test_only_what_lies_after_the_site_runs() -> None:
    model, images = small_resnet(), torch.randn(2, 1, 5, 5)
    for site, expected in {
        "block1": ["block2.conv1", "block2.relu", "block2.conv2", "block2.out", "head"],
        "block2.conv1": ["block2.relu", "block2.conv2", "block2.out", "head"],
        "block2.out:input": ["block2.out", "head"],
        "block2": ["head"],
    }.items():
        after = split_at(model, images, parse(site))
        assert calls_of(model, lambda s=after: s.run(s.activation)) == expected


def test_stacks_and_answers_that_are_never_copied() -> None:
    two = torch.randn(2, 1, 5, 5)
    assert split_at(small_resnet(), two, Site("block1")).stacks
    after = split_at(small_resnet(), two, Site("block2.conv1"))
    assert after.unused == {("", -1), ("stem", 0), ("relu", 0)}
    assert set(after.answers) - after.unused == {("block1", 0), ("block2.conv1", 0)}
    assert after.answers["stem", 0].out.stride()[0] == 0
    state, series = Recurrent(state=True).eval(), torch.randn(3, 5, 3)
    assert not split_at(state, series, Site("relu")).stacks
    assert split_at(Recurrent().eval(), torch.randn(3, 5, 3), Site("relu")).stacks


class KeepsInPlace(nn.Module):
    """Goes on in place on what a module gave, before and after it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.a(x)
        y = self.b(kept)
        kept += 1.0
        return self.c(y * kept).mul_(kept)


@pytest.mark.parametrize("n_samples", [1, 2])
def test_changes_in_place_between_the_modules_are_done_again(n_samples: int) -> None:
    model, inputs = seeded(KeepsInPlace), torch.randn(n_samples, 3, dtype=torch.float64)
    after = split_at(model, inputs, Site("b"))
    versions = torch.randn(2 * n_samples, 3, dtype=torch.float64)
    for _ in range(2):
        assert torch.allclose(
            after.run(versions)[:n_samples],
            whole(model, inputs, Site("b"), versions[:n_samples]),
        )


class Fickle(nn.Module):
    """A module before the site that counts its calls, draws noise, or changes its input."""

    class Odd(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind, self.calls = kind, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.kind == "inside":
                return x.add_(1.0)
            return x

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.odd, self.head = nn.Linear(3, 3), Fickle.Odd(kind), nn.Linear(3, 2)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = self.odd(h)
        if self.kind == "noise":
            y = y + torch.randn_like(y)
        if self.kind == "state":
            y = y * self.odd.calls
            self.odd.calls += 1
        if self.kind == "way" and self.odd.calls > 1:
            return y[:, :2]
        if self.kind == "way":
            self.odd.calls += 1
        return self.head(h + y if self.kind == "inside" else y)


@pytest.mark.parametrize(
    ("kind", "site", "message"),
    [
        ("noise", "odd", "Fickle cannot be run from odd on: with nothing changed"),
        ("noise", "stem", "Fickle cannot be run from stem on: with nothing changed"),
        ("state", "odd", "keeps a state or draws random numbers"),
        ("inside", "odd", "a module before the site changed in place"),
        ("way", "head", "does not come to head when it is run again"),
    ],
)
def test_models_that_cannot_be_run_in_parts(kind: str, site: str, message: str) -> None:
    model = Fickle(kind).eval()
    with pytest.raises(ModelError, match=message):
        split_at(model, torch.randn(2, 3), parse(site))
    assert is_as_before(model)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 5, 4), r"block1: expected .* \[n \* 2, 4, 5, 5\]; got \(2, 4, 5, 4\)"),
        ((3, 4, 5, 5), r"\[n \* 2, 4, 5, 5\]; got \(3, 4, 5, 5\)"),
        ((0, 4, 5, 5), r"got \(0, 4, 5, 5\)"),
        ((2, 4, 5), r"got \(2, 4, 5\)"),
    ],
)
def test_wrong_shapes_are_refused(shape: tuple[int, ...], message: str) -> None:
    after = split_at(small_resnet(), torch.randn(2, 1, 5, 5), Site("block1"))
    with pytest.raises(SiteError, match=message):
        after.run(torch.zeros(shape))


def test_bad_requests_are_explained() -> None:
    model, images = small_resnet(), torch.randn(2, 1, 5, 5)
    with pytest.raises(ModelError, match="in training mode"):
        split_at(small_resnet().train(), images, Site("block1"))
    with pytest.raises(SiteError, match="has no module 'block9'"):
        split_at(model, images, Site("block9"))
    with pytest.raises(ModelError, match="SmallResNet failed on inputs of shape"):
        split_at(model, images[:, :, 0], Site("block1"))
    with pytest.raises(SiteError, match=r"first.relu is called 8 times .*first.relu#0"):
        split_at(Reuse().eval(), torch.randn(2, 4), Site("first.relu"))
    with pytest.raises(SiteError, match="#0 to #7"):
        split_at(Reuse().eval(), torch.randn(2, 4), Site("first.relu", call=8))


def test_nothing_is_left_behind_by_an_error() -> None:
    """A failure after the site passes; the model and a forward of its own stay as they were."""
    model, images = small_resnet(), torch.randn(2, 1, 5, 5)
    own = model.head.forward
    model.head.forward = lambda x: own(x) + 0  # type: ignore[method-assign]
    kept = model.head.__dict__["forward"]
    after = split_at(model, images, Site("block1"))
    before = model(images)
    handle = model.block2.register_forward_pre_hook(lambda m, args: 1 / 0)
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        after.run(after.activation)
    handle.remove()
    assert model.head.__dict__["forward"] is kept
    assert [n for n, m in model.named_modules() if "forward" in m.__dict__] == ["head"]
    assert count_hooks(model) == 0
    assert torch.equal(model(images), before)
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(after.run(after.activation), after.output)


def test_gradients_of_parameters_are_not_asked_for() -> None:
    after = split_at(small_resnet(), torch.randn(1, 1, 5, 5), Site("block1"))
    assert not after.run(after.activation).requires_grad


def test_autocast() -> None:
    """Another batch size rounds otherwise; that is no reason to refuse the model."""
    model, images = small_resnet(), torch.randn(3, 1, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = split_at(model, images, Site("block1"))
        assert torch.allclose(after.run(after.activation), after.output, atol=0.05)


def test_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        after = split_at(small_mlp().to(dtype), torch.randn(3, 5, dtype=dtype), Site("1"))
        assert torch.equal(after.run(after.activation), after.output)


class Downsample(nn.Module):
    """A residual block whose shortcut runs after the site, and a head that reads a batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.block = Downsample.Block(self.relu)
        self.head = nn.Linear(4, 3)

    class Block(nn.Module):
        def __init__(self, relu: nn.Module) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(4, 4, 3, padding=1), relu
            self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.conv(x))
            y += self.shortcut(x)
            return self.relu(y)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        h = self.block(self.relu(self.stem(x)))
        h = h if scale is None else scale * h
        self.last = h
        return self.head(h.view(x.shape[0], 4, -1).mean(2))


def exchanged(model: nn.Module, changes: dict[Site, Any], run: Callable[[], Tensor]) -> Tensor:
    """What `run` gives while hooks change outputs of modules, each in one of its calls."""
    handles, calls = [], dict.fromkeys(changes, 0)

    def at(site: Site) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, out: Any = None) -> Any:
            calls[site] += 1
            if calls[site] != (site.call or 0) + 1:
                return None
            value = args if site.tap == "input" else out
            return with_first_tensor(value, changes[site](first_tensor(value)))

        return hook

    for site in changes:
        module = model.get_submodule(site.name)
        register = (
            module.register_forward_pre_hook
            if site.tap == "input"
            else module.register_forward_hook
        )
        handles.append(register(at(site)))
    try:
        return run()
    finally:
        for handle in handles:
            handle.remove()


LATER = [
    "block",  # around the site
    "block.shortcut",  # does not depend on it
    "block.shortcut.0:input",
    "relu#2",  # one call of a shared module
    "head:input",
    "relu#2 block head",
]


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("site", ["block.conv", "relu#1"])
def test_changes_at_later_sites(site: str, later: str) -> None:
    """Each version gets its own, at whatever place and call."""
    model = seeded(Downsample)
    inputs = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    sites = [parse(one) for one in later.split()]
    after = split_at(model, inputs, parse(site), also=sites)
    h = after.activation
    versions = [h, h.flip(1), 2.0 * h]

    def change(scale: float) -> Callable[[Tensor], Tensor]:
        return lambda h: scale * h + 1.0

    def stacked(h: Tensor) -> Tensor:
        return torch.cat([change(float(i))(part) for i, part in enumerate(h.split(2))])

    output = after.run(torch.cat(versions), dict.fromkeys(sites, stacked))
    for i, version in enumerate(versions):
        changes: dict[Site, Any] = dict.fromkeys(sites, change(float(i)))
        slow = exchanged(model, changes, lambda v=version: whole(model, inputs, parse(site), v))
        torch.testing.assert_close(output[2 * i : 2 * i + 2], slow, rtol=0, atol=1e-12)
    assert count_hooks(model) == 0
    unchanged = after.run(torch.cat(versions))[:2]
    torch.testing.assert_close(unchanged, after.output, rtol=0, atol=1e-12)


class WritesBack(nn.Module):
    """What lies after the site writes to what lies before it, and that is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.site, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h.view(-1).add_(self.site(x).view(-1))
        return self.head(h) + self.head(self.site.weight.sum() + x * 0)


def test_what_lies_before_the_site_is_written_to() -> None:
    model, inputs = seeded(WritesBack), torch.randn(2, 3, dtype=torch.float64)
    after = split_at(model, inputs, Site("site"))
    given = after.activation + 1.0
    assert torch.allclose(after.run(given), whole(model, inputs, Site("site"), given))


class AddsToShortcut(nn.Module):
    """An output that depends on the site, and a kept tensor that is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.site, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = self.site(h)
        h.add_(y)
        return self.head(h) + self.head(y)


def test_in_place_on_what_is_kept() -> None:
    model, inputs = seeded(AddsToShortcut), torch.randn(2, 3, dtype=torch.float64)
    after = split_at(model, inputs, Site("site"))
    given = torch.cat([after.activation + 1.0, after.activation * 2.0])
    for _ in range(2):
        output = after.run(given)
        for i, version in enumerate(given.split(2)):
            slow = whole(model, inputs, Site("site"), version)
            assert torch.allclose(output[2 * i : 2 * i + 2], slow)


def doubled(_: nn.Module, __: Any, out: Tensor) -> Tensor:
    return 2.0 * out


def test_hooks_of_others() -> None:
    """On modules after the site, on those made of others, and on the model itself."""
    model, inputs = seeded(Reuse), torch.randn(2, 4, dtype=torch.float64)
    after = split_at(model, inputs, Site("first.a", call=0))
    for name in ("first", "second", "second.b", "head", ""):
        handle = model.get_submodule(name).register_forward_hook(doubled)
        changed = after.run(after.activation)
        torch.testing.assert_close(changed, model(inputs), rtol=0, atol=1e-12)
        assert not torch.allclose(changed, after.output)
        handle.remove()


def test_hooks_of_others_before_and_at_the_site_act_once() -> None:
    model, inputs = Downsample().eval(), torch.randn(2, 1, 5, 4)
    handles = [module.register_forward_hook(doubled) for module in (model.stem, model.block.conv)]
    for site in ("block.conv", "block.shortcut.0:input"):
        after = split_at(model, inputs, parse(site))
        given = after.activation + 1.0
        hooked = whole(model, inputs, parse(site), given)
        torch.testing.assert_close(after.run(given), hooked)
    for handle in handles:
        handle.remove()
    model.head.register_forward_pre_hook(lambda m, args: args)
    with pytest.raises(ModelError, match="head:input has a hook of others"):
        split_at(model, inputs, Site("head", "input"))


def test_parts_compiled_in_place() -> None:
    model, inputs = Downsample().eval(), torch.randn(2, 1, 5, 4)
    expected = split_at(model, inputs, Site("block.conv"))
    for name in ("stem", "block", "block.conv", "head"):
        model.get_submodule(name).compile(backend="eager")
    after = split_at(model, inputs, Site("block.conv"))
    given = after.activation + 1.0
    torch.testing.assert_close(after.run(given), expected.run(given))
    assert model.block.conv._compiled_call_impl is not None
    torch.compiler.reset()


def test_a_splitter_serves_many_batches() -> None:
    """Tried once a shape; modules before the site run once a batch."""
    model = seeded(Downsample)
    splitter = Splitter(model, Site("block.conv"))
    sizes = (3, 3, 2, 3)
    runs: list[list[str]] = []
    for size in sizes:
        inputs = torch.randn(size, 1, 5, 4, dtype=torch.float64)
        runs.append(calls_of(model, lambda x=inputs: splitter.at(x)))
        after = splitter.at(inputs)
        given = torch.cat([after.activation] * 2) + 1.0
        slow = whole(model, inputs, Site("block.conv"), given[:size])
        torch.testing.assert_close(after.run(given)[size:], slow, rtol=0, atol=1e-12)
    assert [one.count("block.conv") for one in runs] == [1, 1, 1, 1]
    assert [one.count("head") for one in runs] == [2, 1, 2, 1]


def test_memory_of_a_version() -> None:
    """Grows with the batch, and covers the activation."""
    model = seeded(Downsample)
    sizes = [
        split_at(model, torch.randn(n, 1, 5, 4, dtype=torch.float64), Site("block.conv"))
        .version_bytes
        for n in (2, 8)
    ]  # fmt: skip
    activation = 2 * 4 * 5 * 4 * 8
    assert 2 * activation < sizes[0] < 20 * activation
    assert sizes[1] / sizes[0] == pytest.approx(4.0, rel=0.1)


def test_bad_requests_for_later_sites() -> None:
    model, inputs = seeded(Downsample), torch.randn(2, 1, 5, 4, dtype=torch.float64)
    after = split_at(model, inputs, Site("block.conv"))
    with pytest.raises(SiteError, match=r"head cannot be changed in a run from block.conv on"):
        after.run(after.activation, {Site("head"): torch.neg})
    with pytest.raises(SiteError, match="has no module 'tail'"):
        split_at(model, inputs, Site("block.conv"), also=[Site("tail")])
    state, series = Recurrent(state=True).eval(), torch.randn(3, 5, 3)
    apart = split_at(state, series, Site("relu"), also=[Site("head")])
    negated = apart.run(apart.activation, {Site("head"): torch.neg})
    torch.testing.assert_close(negated, -apart.output)
    with pytest.raises(SiteError, match="relu: Recurrent runs one version at a time, so changes"):
        apart.run(torch.cat([apart.activation] * 2), {Site("head"): torch.neg})


class Heads(nn.Module):
    """A head whose output is made before another one runs, and returned as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.aux = nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        out = self.head(h)
        self.last = self.aux(h)
        return out


def test_an_output_made_before_the_site_is_that_of_every_sample() -> None:
    model, splitter = Heads().eval(), Splitter(Heads().eval(), Site("aux"))
    for x in (torch.randn(3, 5), torch.randn(3, 5)):  # The second batch keeps only what is used.
        after = splitter.at(x)
        assert torch.equal(after.run(after.activation), after.output)
        assert torch.equal(after.run(torch.cat([after.activation] * 2)), after.output.repeat(2, 1))
    effects = unit_effects(model, torch.randn(3, 5), Site("aux"), TopK())
    assert torch.equal(effects, torch.zeros_like(effects))
