"""Collecting streams whole shards, resumes after any death, and says what is wrong."""

import gc
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from condec.attribution import ActGrad, IntegratedGradients, Mean, SmoothGrad, UnitAblation
from condec.attribution.contributions import contribute
from condec.attribution.targets import Label, Logit, Surprisal, TopK
from condec.basis.errors import DataError, ModelError, OptionError, SiteError, StoreError
from condec.data import as_inputs
from condec.store import batches
from condec.store.batches import fingerprint
from condec.store.collection import collect
from condec.store.store import Store
from condec.testing.models import small_resnet
from small_runs import contents


def images(n: int = 10) -> torch.Tensor:
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def labels(n: int = 10) -> torch.Tensor:
    return torch.arange(n) % 3


def quick(out: Path, data=None, **options) -> Store:  # type: ignore[no-untyped-def]
    options = {"method": IntegratedGradients(steps=3), "progress": False} | options
    options = {"batch_size": 4, "shard_size": 6} | options
    data = (images(), labels()) if data is None else data
    model = options.pop("model", None) or small_resnet()
    return collect(model, data, options.pop("sites", "block*"), out=out, **options)


def test_store_holds_what_contribute_gives(tmp_path: Path) -> None:
    store = quick(tmp_path / "s.zarr", target=Label())
    batch = contribute(
        small_resnet(), images(), "block*", method=IntegratedGradients(steps=3), target=Label(),
        labels=labels(),
    ).reduce()  # fmt: skip
    assert len(store) == 10
    assert store.labels.tolist() == labels().tolist()
    assert store.predictions.tolist() == batch.prediction.tolist()
    torch.testing.assert_close(store.target, batch.target)
    torch.testing.assert_close(store.target_baseline, batch.target_baseline)
    for site in ("block1", "block2"):
        both = batch[site]
        torch.testing.assert_close(store.matrix(site), both.contribution[:, 0])
        torch.testing.assert_close(
            store.matrix(site, quantity="activation", sign="negative"), both.activation[:, 1]
        )
        assert store.info(site).n_positions == 36
        assert store.info(site).cut
        torch.testing.assert_close(
            store.completeness()[site], batch.completeness()[site], rtol=1e-4, atol=1e-4
        )
    store.verify()


@pytest.mark.parametrize("kind", ["tensor", "pair", "dataset", "inputs", "numpy"])
def test_data_come_in_many_forms(tmp_path: Path, kind: str) -> None:
    data = {
        "tensor": images(),
        "pair": (images(), labels()),
        "dataset": TensorDataset(images(), labels()),
        "inputs": as_inputs((images(), labels())),
        "numpy": (images().numpy(), labels().numpy()),
    }[kind]
    store = quick(tmp_path / "s.zarr", data)
    torch.testing.assert_close(
        store.matrix("block1"), quick(tmp_path / "t.zarr").matrix("block1"), rtol=0, atol=0
    )
    assert store.labels.tolist() == ([-1] * 10 if kind == "tensor" else labels().tolist())


def test_a_complete_store_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(tmp_path / "s.zarr")
    before = contents(tmp_path)
    monkeypatch.setattr(IntegratedGradients, "attribute", None)
    quick(tmp_path / "s.zarr")
    assert contents(tmp_path) == before


def test_an_error_in_the_middle_keeps_the_shards_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = IntegratedGradients.attribute, []

    def dies(self, *args):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(IntegratedGradients, "attribute", dies)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "s.zarr")
    half = Store.open(tmp_path / "s.zarr")
    assert half.missing() == (1,)
    with pytest.raises(StoreError, match="incomplete: 1 of 2 shards are missing"):
        half.matrix("block1")
    monkeypatch.setattr(IntegratedGradients, "attribute", real)
    quick(tmp_path / "s.zarr")
    quick(tmp_path / "t.zarr")
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "t.zarr")


def test_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    quick(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"method\.steps: had 3, wants 5"):
        quick(tmp_path / "s.zarr", method=IntegratedGradients(steps=5))
    with pytest.raises(StoreError, match=r"target\.name: had .?TopK.?, wants .?Logit"):
        quick(tmp_path / "s.zarr", target=Logit(1))
    with pytest.raises(StoreError, match=r"data: had"):
        quick(tmp_path / "s.zarr", (images() + 1, labels()))
    with pytest.raises(StoreError, match="shard_size: had 6, wants 5"):
        quick(tmp_path / "s.zarr", shard_size=5)


def test_bad_inputs_raise_or_are_skipped(tmp_path: Path) -> None:
    broken = images()
    broken[4, 0, 2, 2] = torch.nan
    with pytest.raises(DataError, match=r"sample '4': 1 of 36 values are not finite"):
        quick(tmp_path / "s.zarr", (broken, labels()))
    store = quick(tmp_path / "t.zarr", (broken, labels()), on_bad="skip", shard_size=3)
    assert store.valid.tolist() == [i != 4 for i in range(10)]
    assert "4" not in store.sample_ids
    good = quick(tmp_path / "g.zarr")
    keep = [i for i in range(10) if i != 4]
    torch.testing.assert_close(store.matrix("block2"), good.matrix("block2")[keep])
    assert store.labels.tolist() == labels()[keep].tolist()
    broken[:] = torch.nan
    with pytest.raises(DataError, match="none of the 10 samples can be used"):
        quick(tmp_path / "u.zarr", (broken, labels()), on_bad="skip")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, OptionError, "batch_size must be at least 1; got 0"),
        ({"shard_size": 0}, OptionError, "shard_size must be at least 1; got 0"),
        ({"on_bad": "ignore"}, OptionError, "on_bad must be one of raise, skip; got 'ignore'"),
        ({"devices": ("cpu", "cuda:77")}, OptionError, "device 'cuda:77' cannot be used, there is"),
        ({"devices": ("meta",)}, OptionError, "'meta' cannot be used, .* cpu.*: .*meta tensors"),
        ({"devices": ("gpu",)}, OptionError, "'gpu' cannot be used, there is cpu"),
        ({"sites": []}, SiteError, "no site given"),
        ({"sites": "blok1"}, SiteError, "no module of SmallResNet matches 'blok1'.*block1"),
        ({"target": Logit(7)}, OptionError, "index 7 is out of range"),
        ({"data": images()[:0]}, DataError, "empty"),
        ({"data": torch.randn(3, 2, 6, 6)}, ModelError, r"on inputs of shape \(\d+, 2, 6, 6"),
        ({"data": images(), "target": Label()}, DataError, "needs the label of every sample"),
    ],
)
def test_bad_requests_leave_nothing_behind(tmp_path: Path, options, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        quick(tmp_path / "s.zarr", options.pop("data", None), **options)
    assert not (tmp_path / "s.zarr").exists()


def test_estimate_is_shown_before_the_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches.BatchPlan, "time_pass", lambda self, n_samples, again: 60.0)
    quick(tmp_path / "s.zarr", progress=True)
    shown = capfd.readouterr().err
    wanted = "10 samples, 2 sites, 4 passes a batch: about 10.0 min, 0 MiB of memory, at most 0 MiB"
    assert wanted in " ".join(shown.split())
    assert "10/10" in shown


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (IntegratedGradients(steps=10, spacing="fitted"), 9),
        (IntegratedGradients(steps=4, spacing="fitted"), 3),
        (IntegratedGradients(steps=10), 0),
        (IntegratedGradients(steps="auto", spacing="fitted"), 0),
        (SmoothGrad(inner=IntegratedGradients(spacing="fitted"), n_samples=2), 9),
        (ActGrad(), 0),
    ],
)
def test_the_estimate_of_memory_has_the_pilots_of_a_path(method, kept: int) -> None:  # type: ignore[no-untyped-def]
    assert method.n_kept == kept
    plan = batches.BatchPlan.make(
        small_resnet(), as_inputs(images()), "block*", method, TopK(), None, "raise", None
    )
    recorded = 2 * 4 * 36
    more = plan.memory(3) - batches._MEMORY_FACTOR * 4 * plan.entries * 3
    assert more == kept * 2 * 4 * recorded * 3


def test_half_precision_models_are_stored_as_float32(tmp_path: Path) -> None:
    store = collect(
        small_resnet().to(torch.bfloat16), images(), "block1", out=tmp_path / "s.zarr",
        method=ActGrad(), target=TopK(), progress=False,
    )  # fmt: skip
    assert store.matrix("block1").dtype == torch.float32
    assert store.matrix("block1").isfinite().all()


def test_fingerprint_sees_every_weight() -> None:
    model = small_resnet()
    before = fingerprint(model)
    assert before == fingerprint(small_resnet())
    with torch.no_grad():
        model.head.bias[1] += 1e-3
    assert fingerprint(model) != before
    prints = set()
    for mean in (0.0, 5.0):  # a buffer that state_dict leaves out, as normalisation often is
        model = small_resnet()
        model.register_buffer("mean", torch.tensor(mean), persistent=False)
        prints.add(fingerprint(model))
    assert len(prints) == 2


# --- batch size, devices, overlap, memory -----------------------------------------------------


def test_auto_batch_size_is_chosen_by_timing_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {1: 1.0, 2: 1.2, 4: 1.5, 8: 2.92, 16: 6.0, 32: 99.0}
    monkeypatch.setattr(
        batches.BatchPlan, "time_pass", lambda self, n_samples, again: seconds[n_samples]
    )
    store = quick(tmp_path / "s.zarr", batch_size="auto")
    # 0.365 s a sample at 8, 0.375 at 4 and at 16: four is within 5 % of the best.
    assert store.recipe["batch_size"] == 4
    monkeypatch.setattr(batches.BatchPlan, "time_pass", None)
    assert quick(tmp_path / "s.zarr", batch_size="auto").recipe == store.recipe


def test_auto_batch_size_stays_within_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_sample = batches._MEMORY_FACTOR * 4 * (2 * 4 * 36 + 2 * 36)
    monkeypatch.setattr(batches, "_free_memory", lambda model: 2 * 2 * a_sample)
    monkeypatch.setattr(batches.BatchPlan, "time_pass", lambda self, n_samples, again: 1.0)
    assert quick(tmp_path / "s.zarr", batch_size="auto").recipe["batch_size"] == 2


def test_auto_batch_size_runs_for_real(tmp_path: Path) -> None:
    store = quick(tmp_path / "s.zarr", batch_size="auto")
    assert store.recipe["batch_size"] in {1, 2, 4, 8, 16}
    store.verify()


def test_a_first_batch_that_cannot_be_used_is_no_reason_to_stop(tmp_path: Path) -> None:
    data = images()
    data[:5] = torch.nan
    store = quick(tmp_path / "s.zarr", data, on_bad="skip", progress=True)
    assert store.valid.tolist() == [False] * 5 + [True] * 5


def test_several_devices_give_the_same_bytes(tmp_path: Path) -> None:
    model, threads = small_resnet(), set()
    real = IntegratedGradients.attribute

    def seen(self, *args):  # type: ignore[no-untyped-def]
        threads.add(threading.get_ident())
        return real(self, *args)

    one = collect(model, images(40), "block*", out=tmp_path / "a" / "s.zarr", batch_size=3,
                  shard_size=7, progress=False)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IntegratedGradients, "attribute", seen)
        collect(model, images(40), "block*", out=tmp_path / "b" / "s.zarr", batch_size=3,
                shard_size=7, progress=False, devices=("cpu", "cpu"))  # fmt: skip
    assert len(threads) == 2
    assert threading.main_thread().ident not in threads
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    one.verify()


def test_a_complete_store_is_opened_where_its_devices_are_not(tmp_path: Path) -> None:
    quick(tmp_path / "s.zarr")
    assert quick(tmp_path / "s.zarr", devices=("cuda:77",)).is_complete


@pytest.mark.parametrize(
    ("n_samples", "options", "message"),
    [
        (10, {"batch_size": 3}, r"leaves a batch of 1 \(of 10 .*choose sizes that leave no such"),
        (9, {"batch_size": 2}, r"batch_size=2 leaves a batch of 1 "),
        (10, {"batch_size": 5, "shard_size": 6}, r"leaves a batch of 1 .* in shards of 6\)"),
        (9, {"batch_size": 4, "shard_size": 8}, r"leaves a batch of 1 .* in shards of 8\)"),
        (1, {}, r"at least 2 samples in every batch, .* \(of 1 samples"),
        (4, {"batch_size": 1}, r"batch_size=1 leaves a batch of 1 "),
    ],
)
def test_batches_too_small_for_the_method_are_refused_first(
    tmp_path: Path, n_samples: int, options: dict[str, int], message: str
) -> None:
    for method in (resample := UnitAblation(replacement="resample"), SmoothGrad(inner=resample)):
        with pytest.raises(OptionError, match=rf"{type(method).__name__} with .*{message}"):
            quick(tmp_path / "s.zarr", images(n_samples), method=method, **options)
    assert not (tmp_path / "s.zarr").exists()
    method = UnitAblation()
    assert quick(tmp_path / "s.zarr", images(n_samples), method=method, **options).is_complete


def test_batches_large_enough_for_the_method(tmp_path: Path) -> None:
    method = UnitAblation(replacement="resample")
    for n_samples, size, shard in ((10, 4, 10), (9, 3, 6), (2, 64, 1024)):
        out = tmp_path / f"{n_samples}.zarr"
        data = images(n_samples)
        assert quick(out, data, method=method, batch_size=size, shard_size=shard).is_complete


def test_steps_of_every_sample_are_stored(tmp_path: Path) -> None:
    method = IntegratedGradients(steps="auto", tolerance=0.02)
    store = quick(tmp_path / "s.zarr", method=method, target=Logit(0))
    batch = contribute(small_resnet(), images(), "block*", method=method, target=Logit(0))
    assert batch.steps is not None
    assert store.steps.tolist() == batch.steps.tolist()
    assert quick(tmp_path / "t.zarr", method=ActGrad()).steps.tolist() == [-1] * 10


def test_a_baseline_is_taken_from_the_data(tmp_path: Path) -> None:
    store = quick(tmp_path / "s.zarr", method=IntegratedGradients(steps=3, baseline=Mean()))
    fitted = IntegratedGradients(steps=3, baseline=Mean(values=images().double().mean(0)))
    batch = contribute(small_resnet(), images(), "block*", method=fitted).reduce()
    torch.testing.assert_close(store.matrix("block1"), batch["block1"].contribution[:, 0])
    assert store.recipe["method"]["baseline"] == {"name": "Mean", "n_samples": 256, "values": None}


def test_contributions_that_are_not_finite_name_the_samples(tmp_path: Path) -> None:
    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = torch.nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.same(x).sqrt().mean((2, 3)) * torch.ones(1, 2)

    with pytest.raises(DataError, match=r"samples '0', '1', '2', '3': .*not finite"):
        quick(tmp_path / "s.zarr", images().abs(), sites="same@channels", model=Root().eval())


def test_memory_does_not_grow_over_batches() -> None:
    """Resident memory after 50 batches is that after 10, but for what the allocator keeps."""
    psutil = pytest.importorskip("psutil")
    process, model, x = psutil.Process(), small_resnet(), torch.randn(16, 1, 24, 24)
    sizes = []
    for k in range(50):
        contribute(model, x, "block*", method=IntegratedGradients(steps=2), prove=False).reduce()
        if k in (9, 49):
            gc.collect()
            sizes.append(process.memory_info().rss)
    a_batch = 2 * 16 * 4 * 24 * 24 * 4  # records at both sites: 40 leaked ones are 12 MB
    assert sizes[1] - sizes[0] < 20 * a_batch


def test_samples_without_a_finite_gradient_are_named_by_id(tmp_path: Path) -> None:
    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = torch.nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.same(x).flatten(1).sum(1, keepdim=True).sqrt() * torch.ones(1, 2)

    data = torch.ones(20, 1, 2, 2)
    data[[9, 13]] = 0.0
    with pytest.raises(DataError, match=r"^samples '9', '13': .* not finite for 2 of 8 samples"):
        collect(
            Root().eval(), data, "same@channels", method=ActGrad(), batch_size=8, progress=False,
            out=tmp_path / "s.zarr",
        )  # fmt: skip


def test_sites_that_contribute_nothing_are_warned_of_once(tmp_path: Path) -> None:
    class Half(torch.nn.Module):
        """Sees the second unit only where the first is positive."""

        def __init__(self) -> None:
            super().__init__()
            self.same, self.other = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate = (x[:, :1] > 0).to(x)
            return self.same(x) + self.other(x) * gate * torch.tensor([0.0, 1.0])

    def run(data: torch.Tensor, name: str) -> None:
        collect(
            Half().eval(), data, "other", target=Logit(1), method=ActGrad(), batch_size=2,
            shard_size=4, progress=False, out=tmp_path / name,
        )  # fmt: skip

    data = -torch.ones(8, 2)
    with pytest.warns(UserWarning, match="exactly zero, for 8 samples, at other") as caught:
        run(data, "all.zarr")
    assert len(caught) == 1
    data[7] = 1.0  # one sample in the last shard is enough
    run(data, "but-one.zarr")


def test_the_input_of_the_model_in_a_store(tmp_path: Path) -> None:
    collect(small_resnet(), images(), ":input, block1", out=tmp_path / "s.zarr", progress=False)
    store = Store.open(tmp_path / "s.zarr")
    store.verify()
    assert [site.key for site in store.sites] == [":input", "block1"]
    assert store.info(":input").cut
    batch = contribute(small_resnet(), images(), ":input").reduce()
    torch.testing.assert_close(
        store.matrix(":input", sign="negative"), batch[":input"].contribution[:, 1]
    )
    assert (tmp_path / "s.zarr" / "sites" / "%3Ainput").is_dir()


def test_surprisal_is_fitted_to_the_outputs_of_the_data(tmp_path: Path) -> None:
    model = small_resnet(labels=2)
    with torch.no_grad():
        fitted = Surprisal.fit(model(images(70)), shrinkage=0.0)

    def run(target: Surprisal, name: str, model: torch.nn.Module = model) -> Store:
        out = tmp_path / name
        return collect(model, images(70), "block1", target=target, out=out, progress=False)

    store = run(Surprisal(shrinkage=0.0), "a.zarr")
    torch.testing.assert_close(store.target, run(fitted, "b.zarr").target)
    assert store.recipe["target"] == Surprisal(shrinkage=0.0).to_dict()
    run(Surprisal(shrinkage=0.0), "a.zarr")  # gone on with
    with pytest.raises(StoreError, match="target"):
        run(Surprisal(shrinkage=0.5), "a.zarr")
    other = images(90)[20:]  # training inputs, of which none need be collected
    with torch.no_grad():
        elsewhere = Surprisal.fit(model(other), shrinkage=0.0).value(model(images(70)), None)
    options = {"target": Surprisal(shrinkage=0.0), "out": tmp_path / "e.zarr", "progress": False}
    of_others = collect(model, images(70), "block1", fit_on=other, **options)
    torch.testing.assert_close(of_others.target, elsewhere, rtol=1e-4, atol=1e-4)
    with pytest.raises(StoreError, match="fit_on"):
        collect(model, images(70), "block1", **options)
    broken = images(70)
    broken[3] = torch.nan
    kept = torch.cat((broken[:3], broken[4:]))
    with torch.no_grad():
        expected = Surprisal.fit(model(kept)).value(model(kept), None)
    skipped = collect(
        model, broken, "block1", target=Surprisal(), on_bad="skip", progress=False,
        out=tmp_path / "c.zarr",
    )  # fmt: skip
    torch.testing.assert_close(skipped.target, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="is in training mode"):
        run(Surprisal(), "d.zarr", small_resnet(labels=2).train())


def short_of_memory(most: int, error: Exception | None = None) -> torch.nn.Module:
    """Make a model that fails on more than so many samples."""
    model = small_resnet()

    def refuse(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    model.register_forward_pre_hook(refuse)
    return model


@pytest.mark.parametrize(
    "error", [None, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_batches_that_memory_does_not_hold_are_done_in_halves(
    tmp_path: Path, error: Exception | None
) -> None:
    data = images()
    data[1] = torch.nan
    plain = quick(tmp_path / "a.zarr", (data, labels()), on_bad="skip", method=ActGrad())
    # Paths share a pass, 4 samples and their steps: what counts here is one of 4.
    options = {"on_bad": "skip", "method": ActGrad(), "prove": False}
    with pytest.warns(UserWarning, match="batch of 4 samples does not fit in memory .*in halves"):
        halved = quick(
            tmp_path / "b.zarr", (data, labels()), model=short_of_memory(2, error), **options
        )
    assert halved.sample_ids == plain.sample_ids
    assert halved.valid.tolist() == plain.valid.tolist()
    assert halved.labels.tolist() == plain.labels.tolist()
    for site in ("block1", "block2"):
        torch.testing.assert_close(halved.matrix(site), plain.matrix(site))


def test_batches_that_belong_together_are_not_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ActGrad, "least_samples", 2)
    options = {"prove": False, "method": ActGrad()}
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        quick(tmp_path / "a.zarr", model=short_of_memory(2), sites="block1", **options)


def test_a_batch_that_memory_never_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a batch of 4 samples does not fit in memory.*smaller"):
        quick(tmp_path / "a.zarr", model=short_of_memory(2), sites="block1")
    assert not (tmp_path / "a.zarr").exists()
