"""Which axis holds the units is asked of the model, and is the same wherever a site is used."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import ActGrad, GradCAM, UnitAblation, contribute, unit_effects
from condec.attribution.targets import Logit, Sum
from condec.basis.errors import SiteError
from condec.edits import Ablate, baked, edited
from condec.effects import head_weights
from condec.effects.passes import Passes
from condec.explanation import mode_map
from condec.network import Site, inspect_model, settle_sites
from condec.network.axes import followed
from condec.store import collect


class Audio(nn.Module):
    """[sample, channel, time]: 5 channels, 9 times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = (
            nn.Conv1d(2, 5, 3, padding=1),
            nn.BatchNorm1d(5),
            nn.ReLU(),
        )
        self.block = nn.Sequential(nn.Conv1d(5, 5, 1), nn.Tanh())
        self.head = nn.Linear(5, 4)
        self.norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.conv(x)))
        return self.head((h + self.block(h)).mean(-1))


class Last(nn.Module):
    """[sample, y, x, feature]: 3 x 4 places, 6 features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.act = nn.Linear(2, 6), nn.LayerNorm(6), nn.GELU()
        self.mix, self.head = nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.embed(x.permute(0, 2, 3, 1))))
        return self.head((h + self.mix(h)).mean((1, 2)))


def audio() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Audio().double().eval(), torch.randn(3, 2, 9, dtype=torch.float64)


def last() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Last().double().eval(), torch.randn(3, 2, 3, 4, dtype=torch.float64)


# Model, site, its units' axis, how many there are, and the key that says so.
CASES = {
    "convolution over time": (audio, "conv", 1, 5, "conv@channels"),
    "batch norm over time": (audio, "norm", 1, 5, "norm@channels"),
    "activation after it": (audio, "relu", 1, 5, "relu@channels"),
    "container": (audio, "block", 1, 5, "block@channels"),
    "input of a container": (audio, "block:input", 1, 5, "block:input@channels"),
    "linear on places": (last, "embed", 3, 6, "embed@features"),
    "layer norm on places": (last, "norm", 3, 6, "norm@features"),
    "activation of features": (last, "act", 3, 6, "act@features"),
    "container of features": (last, "mix", 3, 6, "mix@features"),
    "no axis but one": (last, "head:input", 1, 6, "head:input"),
}
KINDS = pytest.mark.parametrize(
    ("make", "site", "axis", "n_units", "key"), CASES.values(), ids=CASES.keys()
)


def changed_by_loop(
    model: nn.Module, x: Tensor, site: str, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run the model with what a module gives (or takes) changed, by a plain hook."""
    module = model.get_submodule(site.partition(":")[0])
    if site.endswith(":input"):
        handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, out: change(out))
    try:
        return model(x)
    finally:
        handle.remove()


def loop(model: nn.Module, x: Tensor, site: str, axis: int, label: int) -> Tensor:
    """Activation times gradient, its two parts summed over all axes but `axis`, one by one."""
    kept: list[Tensor] = []

    def keep(h: Tensor) -> Tensor:
        kept.append(h.detach().requires_grad_())
        return kept[0]

    changed_by_loop(model, x, site, keep)[:, label].sum().backward()
    product = kept[0].detach() * kept[0].grad
    found = torch.zeros(len(x), 2, product.shape[axis], dtype=x.dtype)
    for sample in range(len(x)):
        for unit in range(product.shape[axis]):
            entries = product[sample].select(axis - 1, unit).flatten().tolist()
            found[sample, 0, unit] = sum(entry for entry in entries if entry > 0)
            found[sample, 1, unit] = sum(entry for entry in entries if entry < 0)
    return found


def zeroed(unit: int, axis: int) -> Callable[[Tensor], Tensor]:
    def change(h: Tensor) -> Tensor:
        h = h.clone()
        h.select(axis, unit).zero_()
        return h

    return change


@KINDS
def test_contributions_and_edits_count_the_same_units(
    make: Callable[[], tuple[nn.Module, Tensor]], site: str, axis: int, n_units: int, key: str
) -> None:
    model, x = make()
    batch = contribute(model, x, site, method=ActGrad(), target=Logit(1))
    assert batch.sites[0].key == key
    found = batch.reduce()[site].contribution
    assert found.shape == (3, 2, n_units)
    torch.testing.assert_close(found, loop(model, x, site, axis, 1), rtol=1e-12, atol=1e-14)
    wanted = changed_by_loop(model, x, site, zeroed(4, axis)).detach()
    fresh, _ = make()  # of which nothing is known yet
    with edited(fresh, Ablate(site, units=[4])):
        torch.testing.assert_close(fresh(x), wanted, rtol=1e-12, atol=1e-14)


@KINDS
def test_every_way_to_look_counts_the_same_units(
    make: Callable[[], tuple[nn.Module, Tensor]], site: str, axis: int, n_units: int, key: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    model, x = make()
    plain = model(x).detach()
    effects = torch.stack(
        [
            (plain - changed_by_loop(model, x, site, zeroed(u, axis)))[:, 1].detach()
            for u in range(n_units)
        ],
        1,
    )
    torch.testing.assert_close(unit_effects(model, x, site, Logit(1)), effects)
    for method in (UnitAblation(), GradCAM()):
        reduced = contribute(model, x, site, method=method, target=Logit(1)).reduce()
        assert reduced[site].contribution.shape == (3, 2, n_units)
    passes = Passes(model, [(Ablate(site, units=[u]),) for u in range(n_units)])
    outputs = dict(passes.outputs(x))
    for unit in range(n_units):
        torch.testing.assert_close((plain - outputs[unit])[:, 1], effects[:, unit])
    whole = mode_map(model, x, site, range(n_units), Logit(1)).total
    parts = sum(mode_map(model, x, site, [u], Logit(1)).total for u in range(n_units))
    torch.testing.assert_close(parts, whole)
    store = collect(model, x, site, target=Logit(1), out=tmp_path / "store", progress=False)
    assert [info.n_units for info in store.infos] == [n_units]
    assert store.sites[0].key == key
    assert store.matrix(site).shape == (3, n_units)


def test_weights_hold_an_edit_of_channels_over_time() -> None:
    model, x = audio()
    edit = Ablate("norm", units=[2])
    with edited(model, edit):
        wanted = model(x)
    torch.testing.assert_close(baked(model, edit, inputs=x)(x), wanted)


def test_a_head_after_an_average_over_time() -> None:
    model, x = audio()
    model = nn.Sequential(model.conv, nn.AdaptiveAvgPool1d(1), nn.Flatten(), model.head)
    weights = head_weights(model.eval(), "0", x)
    torch.testing.assert_close(weights, model[3].weight.detach().float())


def test_a_part_that_runs_alone_and_a_model_in_training() -> None:
    model, x = audio()
    with edited(model, Ablate("conv", units=[3])):
        assert not model.conv(x)[:, 3].any()
        assert model.conv(x)[:, :3].all()
    with (
        pytest.raises(SiteError, match=r"block: .*nothing around it tells.*block@channels counts"),
        edited(model, Ablate("block", units=[3])),
    ):
        model.block(torch.ones(1, 5, 9, dtype=torch.float64))
    before = model.norm.running_mean.clone()
    for site in ("relu", "block"):
        fresh, _ = audio()
        fresh.train()
        seen: list[Tensor] = []
        module = fresh.get_submodule(site)
        with edited(fresh, Ablate(site, units=[3])):
            module.register_forward_hook(lambda *args, into=seen: into.append(args[-1]))
            fresh(x)
        assert fresh.training
        assert fresh.norm.training
        assert len(seen) == 1
        assert not seen[0][:, 3].any()
        assert seen[0][:, 2].any()
    # One pass of training, and none of those that only look.
    assert int(fresh.norm.num_batches_tracked) == 1
    assert torch.equal(model.norm.running_mean, before)


def test_inputs_of_other_axes_are_asked_anew() -> None:
    """One model, features alone and features at places: what was found for one is not for all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    for shape in ((4, 2), (4, 5, 3, 2), (4, 2)):
        x = torch.randn(shape)
        target = lambda y: y.flatten(1).sum(1)  # noqa: E731
        batch = contribute(model, x, "1", method=ActGrad(), target=target).reduce()
        assert batch["1"].contribution.shape == (4, 2, 6)
    seen: list[Tensor] = []
    with edited(model, Ablate("1", units=[5])):
        model[1].register_forward_hook(lambda *args: seen.append(args[-1]))
        for shape in ((4, 2), (4, 5, 3, 2), (4, 2)):
            model(torch.randn(shape))
    for h in seen:
        assert not h[..., 5].any()
        assert h[..., :5].all()


def test_a_model_with_another_module_is_asked_anew() -> None:
    """The site stays the same; what feeds it makes features where channels were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten()).eval()
    x, target = torch.randn(2, 3, 6), Sum()
    assert contribute(model, x, "1", target=target).reduce()["1"].contribution.shape == (2, 2, 8)
    model[0] = nn.Linear(6, 7).eval()
    assert contribute(model, x, "1", target=target).reduce()["1"].contribution.shape == (2, 2, 7)


def test_a_model_with_another_setting_is_asked_anew() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels_last = False
            self.conv, self.act = nn.Conv1d(3, 8, 1), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            return self.act(h.transpose(1, 2) if self.channels_last else h).sum(1)

    model, x = Either().eval(), torch.randn(2, 3, 6)
    for last in (False, True, False):
        model.channels_last = last
        assert contribute(model, x, "act", target=Sum()).reduce()["act"].contribution.shape[2] == 8


def test_features_mapped_along_the_tokens_and_turned_back_are_refused() -> None:
    """A block of MLP-Mixer: where it is turned back, its outputs are tokens, on axis 1."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.tokens = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(5, 5)
            self.turned, self.added, self.head = nn.Identity(), nn.Identity(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x)
            mixed = self.turned(self.tokens(self.norm(h).transpose(1, 2)).transpose(1, 2))
            return self.head(self.added(h + mixed).mean(1))

    model, x = Mixer().eval(), torch.randn(2, 5, 4)
    with pytest.raises(SiteError, match=r"turned: .*turned@channels counts axis 1 \(5 units\)"):
        contribute(model, x, "turned")
    shapes = {"turned@features": 6, "turned@channels": 5, "added": 6, "tokens": 5}
    for site, n_units in shapes.items():
        assert contribute(model, x, site).reduce()[site].contribution.shape == (2, 2, n_units)


def test_a_model_that_takes_no_single_sample() -> None:
    class Three(Audio):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(3, 2, 9))

    model = Three().eval()
    assert settle_sites(model, [Site("relu")], torch.randn(3, 2, 9))[0].key == "relu@channels"


class Attention(nn.Module):
    """A map of attention [sample, head, query, key], of which nobody says what its units are."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.softmax, self.mixed = nn.Linear(6, 18), nn.Softmax(-1), nn.Identity()
        self.proj, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, 2, 3).permute(2, 0, 3, 1, 4)
        weights = self.softmax(q @ k.transpose(-2, -1))
        mixed = self.mixed((weights @ v).transpose(1, 2).reshape(n, t, 6))
        return self.head((x + self.proj(mixed)).mean(1))


def test_what_nothing_tells_is_refused() -> None:
    model, x = Attention().eval(), torch.randn(2, 4, 6)
    refusal = (
        r"softmax: for an activation of shape \[sample, 2, 4, 4\], nothing around it tells which "
        r"axis holds the units. Name the layout: softmax@channels counts axis 1 \(2 units\), "
        r"@features the last axis \(4 units\)"
    )
    with pytest.raises(SiteError, match=refusal):
        contribute(model, x, "softmax")
    with pytest.raises(SiteError, match=refusal), edited(model, Ablate("softmax", units=[0])):
        model(x)
    named = contribute(model, x, "softmax@channels").reduce()
    assert named["softmax"].contribution.shape == (2, 2, 2)
    # What only its reader tells: attention mixes its heads back by reshaping.
    assert contribute(model, x, "mixed").sites == (Site("mixed"),)
    table = inspect_model(model, x).set_index("site")
    assert table["units"].to_dict() == {
        "qkv": "18 features", "softmax": "?", "mixed": "6 features", "proj": "6 features",
        "head": "3 features",
    }  # fmt: skip


def test_features_on_an_axis_without_a_layout() -> None:
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.same = nn.Conv2d(1, 3, 1), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.same(self.conv(x).transpose(1, 2)).sum((1, 3))

    with pytest.raises(SiteError, match=r"same: .*features lie on axis 2, of which there is no"):
        contribute(Middle().eval(), torch.randn(2, 1, 4, 5), "same")


def test_inspect_says_what_is_counted() -> None:
    model, x = last()
    assert inspect_model(model, x[:1]).set_index("site")["units"].to_dict() == {
        "embed": "6 features", "norm": "6 features", "act": "6 features", "mix.0": "6 features",
        "mix.1": "6 features", "mix": "6 features", "head": "4 features",
    }  # fmt: skip


def conv2d(n: int) -> nn.Module:
    return nn.Conv2d(2, n, 1)


FOLLOWED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int | None]] = {
    "transposed": (lambda h: h.transpose(1, 2), (3, 5, 4), 2),
    "channels last": (lambda h: h.permute(0, 2, 3, 1), (3, 4, 5), 3),
    "flattened places": (lambda h: h.flatten(2), (5, 12), 1),
    "tokens": (lambda h: h.flatten(2).transpose(1, 2), (12, 5), 2),
    "merged away": (lambda h: h.flatten(1, 2), (15, 4), None),
    "mean over places": (lambda h: h.mean((2, 3)), (5,), 1),
    "sum over features": (lambda h: h.sum(1), (3, 4), None),
    "kept axis": (lambda h: h - h.mean((2, 3), keepdim=True), (5, 3, 4), 1),
    "joined": (lambda h: torch.cat([h, h.flip(1)], 1), (10, 3, 4), 1),
    "stacked": (lambda h: torch.stack([h, h], 1)[:, 0], (5, 3, 4), 1),
    "one place": (lambda h: h[:, :, 0], (5, 4), 1),
    "chosen": (lambda h: h[:, torch.tensor([2, 0])], (2, 3, 4), 1),
    "unbound": (lambda h: h.unbind(2)[0], (5, 4), 1),
    "windows": (
        lambda h: h.permute(0, 2, 3, 1).view(-1, 3, 2, 2, 5).permute(0, 2, 1, 3, 4),
        (2, 3, 2, 5), 4,
    ),
    "pooled and enlarged": (
        lambda h: nn.functional.interpolate(nn.functional.max_pool2d(h, 2), (3, 4)), (5, 3, 4), 1,
    ),
    "layer norm along channels": (
        lambda h: nn.functional.layer_norm(h.permute(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2),
        (5, 3, 4), 1,
    ),
    "in place": (lambda h: h.clone().relu_().add_(1), (5, 3, 4), 1),
    "gated": (lambda h: h * h.mean((2, 3))[:, :, None, None].sigmoid(), (5, 3, 4), 1),
}  # fmt: skip


@pytest.mark.parametrize("n_samples", [1, 2])
@pytest.mark.parametrize("name", FOLLOWED)
def test_axes_are_followed(name: str, n_samples: int) -> None:
    change, shape, axis = FOLLOWED[name]
    conv = nn.Conv2d(2, 5, 1)
    with followed(conv.parameters()) as axes:
        made = change(conv(torch.randn(n_samples, 2, 3, 4)))
        assert made.shape == (n_samples, *shape)
        assert axes.of(made) == axis


@pytest.mark.parametrize("n_samples", [1, 3])
def test_linear_maps_along_other_axes_keep_the_stream(n_samples: int) -> None:
    """A mixer: tokens are mixed along the axis before the last, and added to the stream."""
    mix, embed = nn.Linear(7, 7), nn.Linear(2, 5)
    with followed([*mix.parameters(), *embed.parameters()]) as axes:
        stream = embed(torch.randn(n_samples, 7, 2))
        mixed = mix(stream.transpose(1, 2))
        assert axes.of(mixed) == 2
        assert axes.of(stream + mixed.transpose(1, 2)) == 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers(kind: type[nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.act, self.head = kind(3, 4, batch_first=True), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.rnn(x)[0])[:, -1])

    model, x = Recurrent().eval(), torch.randn(2, 6, 3)
    assert settle_sites(model, [Site("rnn"), Site("act")], x) == (Site("rnn"), Site("act"))
    assert contribute(model, x, "act").reduce()["act"].contribution.shape == (2, 2, 4)
