"""A model is proven before it is believed: what is refused, what passes, and what it costs."""

import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condec
from condec import IntegratedGradients, Logit, contribute, inspect_model, prove
from condec.basis.errors import ModelError, SiteError
from condec.network import BatchSizes, Site, proof
from condec.testing.models import small_mlp, small_resnet

STEPS = 6


class Net(nn.Module):
    """Convolution, what `between` does, a site, and a read-out."""

    def __init__(self, between: "Between") -> None:
        super().__init__()
        self.conv, self.site, self.head = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 3)
        self.register_buffer("level", torch.zeros(()))
        self.between = between if isinstance(between, nn.Module) else None
        self.does = None if isinstance(between, nn.Module) else between
        self.kept: Tensor | None = None
        self.n_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x if self.between is None else self.between(x)
        x = x if self.does is None else self.does(self, x)
        return self.head(self.site(x).mean((2, 3)))


Between = Callable[[Net, Tensor], Tensor] | nn.Module | None


def net(between: Between = None) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(between).double().eval()


def images(n_samples: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_samples, 1, 6, 6, generator=generator, dtype=dtype)


def counting(model: Net, x: Tensor) -> Tensor:
    model.n_calls += 1
    return x * (1 + 0.1 * model.n_calls)


def in_a_buffer(model: Net, x: Tensor) -> Tensor:
    model.level.mul_(0.9).add_(x.detach().mean())
    return x - model.level


def of_the_first(model: Net, x: Tensor) -> Tensor:
    """Standardised as the first batch is: what data-dependent initialisation does."""
    if not model.level:
        model.level.copy_(x.detach().std())
    return x / model.level


def noise_of_numpy(model: Net, x: Tensor) -> Tensor:
    return x * float(numpy.random.default_rng().uniform(0.5, 1))


ANOTHER = {
    "functional dropout": (lambda _, x: F.dropout(x, 0.3), r"random numbers \((bernoulli|.*drop)"),
    "noise": (lambda _, x: x + torch.rand_like(x), r"draws random numbers \(rand_like"),
    "numpy": (noise_of_numpy, "draws numbers outside of torch"),
    "counter": (counting, "keeps something from one pass to the next"),
    "buffer": (in_a_buffer, r"changes its buffers \(level\)"),
}
MIXED = {
    "batch norm": (nn.BatchNorm2d(4, track_running_stats=False),
                   r"between \(BatchNorm2d\); without running statistics: between"),
    "group norm": (lambda _, x: F.layer_norm(x, x.shape), r"first at site \(ReLU\)"),
    "centred": (lambda _, x: x - x.mean(0), r"first at site"),
    "summed": (lambda _, x: x.cumsum(0), r"first at site"),
    "reversed": (lambda _, x: x.flip(0), r"first at site"),
    "of the first": (of_the_first, r"first at site"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANOTHER)
def test_a_model_that_gives_others_when_it_runs_again_is_refused(kind: str) -> None:
    between, words = ANOTHER[kind]
    model = net(between)
    with pytest.raises(ModelError, match="the same inputs give the same again.* first at site .*"
                       f"{words}.*prove=False"):  # fmt: skip
        contribute(model, images(), "site")
    assert not model.level  # put back
    assert len(contribute(model, images(), "site", prove=False)) == 5


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("n_samples", [1, 5])
def test_a_model_that_mixes_samples_is_refused(kind: str, n_samples: int) -> None:
    between, words = MIXED[kind]
    model = net(between)
    with pytest.raises(ModelError, match=f"a sample alone gives what .* samples meet, .*{words}"):
        contribute(model, images(n_samples), "conv")
    assert not model.level
    assert len(contribute(model, images(), "conv", prove=False)) == 5


def test_batch_norm_in_a_refused_model_is_right_with_running_statistics() -> None:
    model = net(nn.BatchNorm2d(4))
    assert prove(model, images(), [Site("between"), Site("site")]).holds
    together = contribute(model, images(), "site")["site"].contribution
    alone = [contribute(model, image[None], "site")["site"].contribution for image in images()]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-14)


class Frames(nn.Module):
    """[sample, frame, 3] -> a layer over frames, with the samples at another place there."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.frame, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        n_samples, n_frames, _ = x.shape
        if self.way == "first":  # frames first: with as many samples as frames, no shape shows it
            return self.head(self.frame(x.transpose(0, 1)).tanh().mean(0))
        rows = x.transpose(0, 1).flatten(0, 1)  # all samples' first frames, then the second ones
        return self.head(self.frame(rows).tanh().unflatten(0, (n_frames, n_samples)).mean(0))


@pytest.mark.parametrize("way", ["first", "folded"])
@pytest.mark.parametrize("n_frames", [2, 3, 4])
def test_a_site_with_samples_at_another_place_is_refused(way: str, n_frames: int) -> None:
    model = Frames(way).double().eval()
    x = torch.randn(n_frames, n_frames, 3, dtype=torch.float64)
    found = prove(model, x, [Site("frame"), Site("head")])
    assert found.places.keys() == {"frame"}
    with pytest.raises(SiteError, match=r"the first axis of a site is that .* frame "):
        found.demand()
    with pytest.raises(SiteError, match="frame"):
        contribute(model, x, "frame")
    assert contribute(model, x, "head")["head"].contribution.shape == (n_frames, 2)


def test_rows_of_a_sample_that_stand_together_are_right() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frame, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.frame(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1))

    assert prove(Folded().eval(), torch.randn(3, 4, 3), [Site("frame"), Site("head")]).holds


class Sized(nn.Module):
    """A model that takes some numbers of samples only: `squeeze` makes one sample none."""

    def __init__(self, way: str, n_samples: int = 4) -> None:
        super().__init__()
        self.way, self.n_samples = way, n_samples
        self.conv, self.site, self.head = nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Linear(4, 3)

    def lower(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3), keepdim=True)

    def upper(self, h: Tensor) -> Tensor:
        if self.way == "squeeze":
            return self.head(h.squeeze())
        if self.way == "strict" and len(h) < 2:
            raise IndexError("needs two")
        return self.head(h.view(self.n_samples if self.way == "fixed" else len(h), 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(self.site(self.lower(x)))


def loop(model: Sized, x: Tensor, label: int) -> Tensor:
    """Integrated gradients at `site` by hand; the whole batch at every point, from zero."""
    total, last_h, last_g = torch.zeros(()), None, None
    for k in range(STEPS + 1):
        h = torch.tanh(model.lower(x * k / STEPS)).detach().requires_grad_()
        (g,) = torch.autograd.grad(model.upper(h)[:, label].sum(), h)
        if last_h is not None:
            total = total + (h.detach() - last_h) * (g + last_g) / 2
        last_h, last_g = h.detach(), g
    return total


@pytest.mark.parametrize(
    ("way", "n_samples"),
    [("squeeze", 5), ("strict", 3), ("squeeze", 2), ("fixed", 4), ("fixed", 1)],
)
@pytest.mark.parametrize("target", [Logit(1), condec.Predicted(), condec.Label()])
def test_models_that_do_not_take_one_sample(
    way: str, n_samples: int, target: condec.Target
) -> None:
    torch.manual_seed(0)
    model, x = Sized(way, n_samples).double().eval(), images(n_samples)
    labels = torch.ones(n_samples, dtype=torch.int64)
    batch = contribute(
        model, x, "site", target=target, labels=labels, method=IntegratedGradients(steps=STEPS)
    )
    by_hand = torch.stack([loop(model, x, label) for label in range(3)])
    chosen = model(x).argmax(1) if isinstance(target, condec.Predicted) else labels
    expected = by_hand[chosen, torch.arange(n_samples)]
    torch.testing.assert_close(batch["site"].contribution, expected, rtol=1e-12, atol=1e-14)
    assert batch["site"].cut
    automatic = contribute(
        model, x, "site", target=target, labels=labels, method=IntegratedGradients(steps="auto")
    )
    torch.testing.assert_close(automatic["site"].contribution, expected, rtol=0.2, atol=1e-2)


def test_one_sample_of_a_model_that_takes_two_or_more() -> None:
    model, x = Sized("squeeze").double().eval(), images(3)
    whole = contribute(model, x, "site", target=Logit(0))["site"].contribution
    one = contribute(model, x[:1], "site", target=Logit(0))["site"].contribution
    torch.testing.assert_close(one, whole[:1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("way", "words"), [("squeeze", "of 2 or more"), ("fixed", "of 4 only")])
def test_a_data_set_through_a_model_that_does_not_take_one_sample(
    way: str, words: str, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    model, x = Sized(way).double().eval(), images(9)
    found = prove(model, x[:2], [Site("site")], batch_size=4)
    assert words in repr(found)
    store = condec.collect(
        model, x, "site", out=tmp_path / "s.zarr", batch_size=4, target=Logit(1), progress=False
    )
    expected = torch.cat([
        contribute(model, rows, "site", target=Logit(1)).reduce()["site"].contribution[:, 0]
        for rows in (x[:4], x[4:8], x[5:9])
    ])[[*range(8), 11]]  # fmt: skip
    torch.testing.assert_close(store.matrix("site").double(), expected, rtol=1e-5, atol=1e-7)


def test_what_is_printed() -> None:
    found = prove(small_resnet(), images(2, torch.float32), [Site("block1")])
    assert isinstance(found, condec.Proof)
    lines = [" ".join(line.split()) for line in repr(found).splitlines()]
    assert lines == [
        "Proof of SmallResNet, samples of shape [1, 6, 6]",
        "the same inputs give the same again yes",
        "a sample alone gives what it gives in a batch yes",
        "the first axis of a site is that of the samples yes",
        "the output follows the input yes",
        "batches may be of any size",
    ]
    assert found.demand() is found


def test_an_output_that_does_not_follow_is_told_and_not_refused() -> None:
    model = small_mlp()
    nn.init.zeros_(model[4].weight)
    found = prove(model, torch.randn(3, 5))
    assert [check.holds for check in found.checks] == [True, True, True, False]
    assert "it is the same for two inputs" in repr(found)
    found.demand()


@pytest.mark.parametrize("inputs", [torch.zeros(1, 5), torch.ones(3, 5), torch.randn(1, 5)])
def test_one_sample_gets_a_second_of_its_own(inputs: Tensor) -> None:
    before = inputs.clone()
    found = prove(small_mlp(), inputs)
    assert [check.holds for check in found.checks] == [True] * 4
    assert torch.equal(inputs, before)


def test_numbers_of_tokens_stay_in_the_table() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x.long()).mean(1))

    assert prove(Tokens().eval(), torch.tensor([[7.0, 0.0, 3.0]]), [Site("table")]).holds


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_is_no_fault(dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [one for _ in range(9) for one in (nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU())]
    model = nn.Sequential(*layers).to(dtype).eval()
    sites = [Site(str(i)) for i in range(27)]
    assert prove(model, torch.randn(2, 32).to(dtype), sites).holds


def test_a_small_mixing_is_seen_in_double_precision() -> None:
    model = net(lambda _, x: x + 1e-6 * x.mean(0))
    with pytest.raises(ModelError, match="samples meet"):
        prove(model, images()).demand()


def test_inspect_shows_the_proof_and_where_it_fails() -> None:
    table = inspect_model(net(nn.BatchNorm2d(4, track_running_stats=False)), images())
    by_site = table.set_index("site")["proof"]
    assert by_site["conv"] == ""
    assert by_site["between"] == by_site["site"] == "depends on the other samples of the batch"
    assert not table.attrs["proof"].holds
    table = inspect_model(small_resnet(), images(1, torch.float32))
    assert set(table["proof"]) == {""}
    assert table.attrs["proof"].holds
    assert inspect_model(Sized("squeeze").double().eval(), images(1))["shape"].tolist() == [
        (4, 4, 4), (4, 1, 1), (3,),
    ]  # fmt: skip


def test_a_model_is_proven_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    proven = []
    plain = proof.prove
    monkeypatch.setattr(proof, "prove", lambda *a, **k: proven.append(1) or plain(*a, **k))
    model = net()
    for n_samples in (5, 2, 1):
        contribute(model, images(n_samples), "site")
    assert len(proven) == 1
    contribute(model, images().float().double()[:, :, :5, :5], "site")
    contribute(model, images(), "conv")
    assert len(proven) == 3
    contribute(net(), images(), "conv", prove=False)
    assert len(proven) == 3
    known = weakref.ref(model)
    del model
    assert known() is None  # nothing keeps it


def test_a_proof_that_fails_is_not_kept() -> None:
    model = net(lambda _, x: x - x.mean(0))
    with pytest.raises(ModelError, match="samples meet"):
        contribute(model, images(), "site")
    model.does = None
    assert len(contribute(model, images(), "site")) == 5


@pytest.mark.parametrize("way", ["module", "setting", "dict", "object", "hook", "weights"])
def test_a_proof_does_not_stand_for_a_model_that_was_changed(way: str) -> None:
    def mixing(module: nn.Module, args: object, out: Tensor) -> Tensor:
        share = way == "hook" or model.n_calls or model.found["last"][0]["share"] or model.note.n
        return out - out.mean(0) * module.bias.abs().sum() * share

    norm = nn.BatchNorm2d(4).double().eval()
    model = net(norm)
    nn.init.constant_(norm.bias, 0.0 if way == "weights" else 1.0)
    model.n_calls = int(way == "weights")
    model.found, model.note = (
        {"last": [{"share": 0.0}]},
        types.SimpleNamespace(n=0, unit=torch.ones(2)),
    )
    if way != "hook":
        norm.register_forward_hook(mixing)
    before = contribute(model, images(), "site")
    assert len(contribute(model, images(), "site")) == len(before)
    if way == "module":
        model.between = nn.BatchNorm2d(4, track_running_stats=False).double().eval()
    elif way == "setting":
        model.n_calls = 1
    elif way == "dict":
        model.found["last"][0]["share"] = 0.5
    elif way == "object":
        model.note.n = 1
    elif way == "hook":
        norm.register_forward_hook(mixing)
    else:
        nn.init.ones_(norm.bias)
    with pytest.raises(ModelError, match="samples meet"):
        contribute(model, images(), "site")


def test_passes_of_a_proof_are_four_short_ones_and_one_of_a_batch() -> None:
    sizes = []
    model = net()
    model.conv.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    prove(model, images(64), [Site("site")])
    assert sizes == [2, 2, 1, 1, 64]


def test_sizes() -> None:
    few, only = BatchSizes(2), BatchSizes(3, only=True)
    assert [few.takes(n) for n in (1, 2, 9)] == [False, True, True]
    assert [only.takes(n) for n in (1, 3, 6)] == [False, True, False]
    assert [rows.tolist() for rows in only.passes(4)] == [[0, 1, 2], [3, 3, 3]]
    assert few.few(torch.arange(1)).tolist() == [0, 0]


def test_maps_are_of_proven_models() -> None:
    model = net(lambda _, x: x - x.mean(0))
    with pytest.raises(ModelError, match="samples meet"):
        condec.mode_map(model, images(), "site", [0])
    condec.mode_map(model, images(), "site", [0], prove=False)


def test_a_large_scale_of_the_inputs_hides_no_mixing() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.site(x * 1e-6)
            return self.head(h + 0.02 * h.mean(0))

    torch.manual_seed(0)
    with pytest.raises(ModelError, match="samples meet"):
        contribute(Scaled().eval(), 1e6 * torch.randn(5, 4), "site")


@pytest.mark.parametrize(("share", "holds"), [(1e-2, False), (1e-4, False), (1e-7, True)])
def test_a_small_mixing_in_single_precision_is_seen_in_double(share: float, holds: bool) -> None:
    model = net(lambda _, x: x + share * x.mean(0)).float()
    assert prove(model, images(dtype=torch.float32), [Site("site")]).holds is holds


def rounded_by_size(_: Net, x: Tensor) -> Tensor:
    """What sums of other lengths do to the last bits, more of it: gone in double precision."""
    return (x + 3e3 * len(x)) - 3e3 * len(x)


def test_rounding_that_depends_on_the_batch_is_no_mixing() -> None:
    model, x = net(rounded_by_size).float(), images(dtype=torch.float32)
    with torch.no_grad():
        apart = float((model(x)[:1] - model(x[:1])).abs().max() / model(x).abs().max())
    assert 1e-5 < apart < 1e-3
    found = prove(model, x, [Site("site")])
    assert [check.holds for check in found.checks] == [True] * 4
    assert str(found.sizes) == "of any size"


def test_what_no_copy_in_double_precision_decides_is_said_to_be_open() -> None:
    model, x = net(rounded_by_size).float(), images(dtype=torch.float32)
    model.lock = threading.Lock()  # cannot be copied
    with pytest.warns(UserWarning, match="open whether a sample alone .*too large for a copy"):
        contribute(model, x, "site")
    contribute(model, x, "site")  # said once
    found = prove(model, x)
    assert found.holds
    assert "not tried: differences as rounding may make" in repr(found)
    model = net(lambda _, x: x + 0.01 * x.mean(0)).float()
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match="samples meet"):
        contribute(model, x, "site")


def only_in_crowds(_: Net, x: Tensor) -> Tensor:
    return x - x.mean(0) if len(x) > 3 else x


def test_a_forward_that_is_replaced_is_proven_again() -> None:
    model = net(None)
    plain = model.forward
    assert len(contribute(model, images(3), "site")) == 3
    model.forward = lambda x: plain(x - x.mean(0))
    with pytest.raises(ModelError, match="samples meet"):
        contribute(model, images(3), "site")


def test_mixing_among_later_samples_of_a_batch_is_seen() -> None:
    model = net(lambda _, x: torch.cat([x[:2], x[2:] - x[2:].mean(0)]) if len(x) > 3 else x)
    with pytest.raises(ModelError, match="in one of 5"):
        contribute(model, images(5), "site")


@pytest.mark.parametrize("rows", [(1, 2), (2, 4), (6, 3), (3, 5, 7)])
def test_mixing_of_a_few_samples_inside_a_batch_is_seen(rows: tuple[int, ...]) -> None:
    def few(_: nn.Module, x: Tensor) -> Tensor:
        inside = [row for row in rows if row < len(x) - 1]
        return (
            x
            if len(inside) < len(rows)
            else x.index_add(0, torch.tensor(rows), x[[*rows[1:], rows[0]]])
        )

    with pytest.raises(ModelError, match="in one of 12"):
        contribute(net(few), images(12), "site")


def test_mixing_that_begins_in_larger_batches_is_seen(tmp_path: Path) -> None:
    model = net(only_in_crowds)
    assert len(contribute(model, images(3), "site")) == 3
    words = "samples meet in larger batches: in one of 5 they give others than by twos"
    with pytest.raises(ModelError, match=words):
        contribute(model, images(5), "site")
    assert prove(model, images(2)).n_samples == 2
    with pytest.raises(ModelError, match="in one of 6"):
        condec.collect(model, images(4), "site", out=tmp_path / "s", batch_size=6, progress=False)


class Counted(Net):
    """Leaves something behind in every kind of attribute; none of it is used."""

    def __init__(self) -> None:
        super().__init__(None)
        self.log, self.found, self.names = [1], {"last": {"size": 0}}, {"a"}
        self.scale, self.note = torch.ones(2), types.SimpleNamespace(n=0)

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        self.log.append(len(x))
        self.found["last"]["size"] = len(x)
        self.names.add("b")
        self.scale.mul_(2)
        self.note.n += 1
        self.site.new = len(x)
        return super().forward(x)


def test_what_passes_leave_in_attributes_is_put_back() -> None:
    model = Counted().double().eval()
    log = model.log
    assert prove(model, images(), [Site("site")]).holds
    assert (model.n_calls, model.note.n, model.log, model.names) == (0, 0, [1], {"a"})
    assert model.log is log
    assert model.found == {"last": {"size": 0}}
    assert model.scale.tolist() == [1.0, 1.0]
    assert not hasattr(model.site, "new")


def test_an_attribute_that_the_first_batch_sets_is_mixing() -> None:
    def by_the_first(model: Net, x: Tensor) -> Tensor:
        if model.kept is None:
            model.kept = x.detach().std()
        return x / model.kept

    model = net(by_the_first)
    with pytest.raises(ModelError, match="samples meet, first at site"):
        contribute(model, images(), "site")
    assert model.kept is None


def test_a_model_that_its_first_pass_builds_stays_built() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site, self.head = nn.Tanh(), None

        def forward(self, x: Tensor) -> Tensor:
            if self.head is None:
                self.head = nn.Linear(x.shape[1], 3).eval()
            return self.head(self.site(x))

    model, x = Late().eval(), torch.randn(4, 5)
    assert prove(model, x).holds
    head = model.head
    contribute(model, x, "site")
    assert model.head is head is not None


def test_a_fixed_number_of_samples_names_the_batch_size(tmp_path: Path) -> None:
    model = Sized("fixed", 4).double().eval()
    words = r"shape '\[4, 4\]' is invalid .*It does not take 2 samples either.*batch_size=8"
    with pytest.raises(ModelError, match=words):
        contribute(model, images(5), "site")
    with pytest.raises(ModelError, match=words):
        condec.collect(model, images(9), "site", out=tmp_path / "s", progress=False)


def test_boxes_of_a_detector_are_no_output_and_no_matter_of_batches() -> None:
    class Detector(nn.Sequential):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:  # type: ignore[override]
            return [{"boxes": row} for row in super().forward(x)]

    model = Detector(nn.Linear(5, 4), nn.ReLU()).eval()
    with pytest.raises(ModelError, match=r"returned list without a tensor; wrap .*logits$"):
        contribute(model, torch.randn(3, 5), "0")


def test_zeros_that_become_something_are_no_rounding() -> None:
    model = net(lambda m, x: x * m.n_calls)
    nn.init.zeros_(model.head.bias)
    model.conv.register_forward_hook(lambda *_: setattr(model, "n_calls", model.n_calls + 1))
    model.n_calls = -1
    with pytest.raises(ModelError, match="the same inputs give the same again"):
        contribute(model, 0 * images(), "site")
