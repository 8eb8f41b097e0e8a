"""Wrapped models: compiled ones are read as they are underneath, others refused with a reason."""

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import IntegratedGradients
from condec.attribution.contributions import contribute
from condec.basis.errors import ModelError, SiteError
from condec.edits import Ablate, edited
from condec.network.cuts import inspect_model
from condec.network.sites import find_sites
from condec.network.tape import record, run_model
from condec.network.unwrap import original, refuse_unreadable
from condec.store.batches import fingerprint
from condec.store.collection import collect
from condec.testing.contracts import count_hooks
from condec.testing.models import SmallResNet, small_mlp, small_resnet


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    yield
    torch.compiler.reset()


def images() -> Tensor:
    return torch.linspace(-1, 2, 100).view(4, 1, 5, 5)


def plain_net() -> nn.Module:
    """Two blocks and a read-out, without the run-time checks of the package's own models."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(
            block1=nn.Sequential(OrderedDict(conv1=nn.Conv2d(1, 4, 3), relu=nn.ReLU())),
            block2=nn.Sequential(OrderedDict(conv1=nn.Conv2d(4, 4, 3), relu=nn.Tanh())),
            flat=nn.Flatten(),
            head=nn.Linear(4, 3),
        )).eval()  # fmt: skip


def warmed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model(images())  # compiled before any hook is there
    return model


def compiled_whole() -> nn.Module:
    return warmed(torch.compile(plain_net(), backend="eager"))


def compiled_part() -> nn.Module:
    model = plain_net()
    model.block1 = torch.compile(model.block1, backend="eager")
    return warmed(model)


def compiled_in_place() -> nn.Module:
    model = plain_net()
    model.compile(backend="eager")
    model.block1.compile(backend="eager")
    return warmed(model)


def assert_still_right(model: nn.Module) -> None:
    with torch.no_grad():
        assert torch.allclose(model(images()), plain_net()(images()), atol=1e-6)


COMPILED = [compiled_whole, compiled_part, compiled_in_place]


@pytest.mark.parametrize("make", COMPILED)
def test_compiled_models_give_what_the_plain_model_gives(make) -> None:  # type: ignore[no-untyped-def]
    model, plain = make(), plain_net()
    given = contribute(model, images(), "block*", method=IntegratedGradients(steps=3))
    expected = contribute(plain, images(), "block*", method=IntegratedGradients(steps=3))
    assert [site.key for site in given.sites] == ["block1", "block2"]
    for site in ("block1", "block2"):
        assert torch.equal(given[site].contribution, expected[site].contribution)
        assert given[site].cut
    assert count_hooks(model) == 0
    assert_still_right(model)


@pytest.mark.parametrize("make", COMPILED)
def test_edits_of_compiled_models(make) -> None:  # type: ignore[no-untyped-def]
    model, plain = make(), plain_net()
    edit = Ablate("block1", units=[0, 2])
    with edited(plain, [edit]):
        expected = plain(images())
    with edited(model, [edit]):
        assert torch.equal(model(images()), expected)
        assert not torch.allclose(expected, plain_net()(images()))
    assert_still_right(model)


def test_sites_of_a_compiled_model_have_the_names_of_the_plain_one() -> None:
    model, plain = compiled_whole(), plain_net()
    assert find_sites(model, "**") == find_sites(plain, "**")
    assert inspect_model(model, images()).equals(inspect_model(plain, images()))
    assert original(model) is model._orig_mod
    assert original(plain) is plain
    assert fingerprint(model) == fingerprint(plain)


def test_inside_a_compiled_part() -> None:
    model = compiled_part()
    batch = contribute(model, images(), "block1._orig_mod.conv1")
    expected = contribute(plain_net(), images(), "block1.conv1")
    assert torch.equal(
        batch["block1._orig_mod.conv1"].contribution, expected["block1.conv1"].contribution
    )


def test_a_store_of_a_compiled_model_is_that_of_the_plain_one(tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    collect(compiled_whole(), images(), "block1", out=out, progress=False)
    store = collect(plain_net(), images(), "block1", out=out, progress=False)  # resumed
    assert len(store) == 4


class Holder(nn.Module):
    """A model with one part of another kind."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


def test_data_parallel_is_refused() -> None:
    model = nn.DataParallel(small_mlp()).eval()
    with pytest.raises(
        ModelError, match=r"the model is a DataParallel: .* on parts of the batch.* model\.module"
    ):
        contribute(model, torch.randn(2, 5), "module.1")
    assert len(contribute(model.module, torch.randn(2, 5), "1")) == 2


def test_distributed_data_parallel_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=(tmp_path / "meeting").as_uri(), rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(small_mlp()).eval()
        with pytest.raises(ModelError, match=r"DistributedDataParallel: .* give the model inside"):
            contribute(model, torch.randn(2, 5), "module.1")
        assert len(contribute(model.module, torch.randn(2, 5), "1")) == 2
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "FSDPModule"])
def test_fully_sharded_models_are_refused(name: str) -> None:
    from torch.distributed import fsdp

    base = getattr(fsdp, name)
    # As torch does it in fully_shard: a class of its own that also inherits the wrapper.
    part = small_mlp()
    part.__class__ = type("Sharded", (base, nn.Sequential), {"__module__": "mine"})
    with pytest.raises(ModelError, match="part is a Sharded: each process holds a part of the wei"):
        refuse_unreadable(Holder(part).eval())


def test_torch_script_is_refused_where_it_hides_the_site() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.script(nn.Sequential(nn.Linear(5, 3), nn.Tanh()).eval())
        whole = torch.jit.trace(small_mlp(), torch.randn(2, 5))
    with pytest.raises(ModelError, match=r"parts run as TorchScript.* scripted or traced from"):
        contribute(whole, torch.randn(2, 5), "1")
    model = Holder(part).eval()
    for site in ("part", "part.1"):
        with pytest.raises(
            SiteError, match=f"{site}: part runs as TorchScript, .* before or after"
        ):
            contribute(model, torch.randn(2, 5), site)
    plain = Holder(nn.Sequential(nn.Linear(5, 3), nn.Tanh())).eval()
    plain.load_state_dict(model.state_dict())
    inputs = torch.randn(2, 5)
    torch.testing.assert_close(
        contribute(model, inputs, "head:input")["head"].contribution,
        contribute(plain, inputs, "part")["part"].contribution,
    )


@pytest.mark.parametrize("site", ["attn:input@heads", "attn@features[patch]"])
def test_torch_script_is_refused_with_units_that_a_model_says(site: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(WithHeads().eval())
    with pytest.raises((ModelError, SiteError), match=r"parts run as TorchScript|which tokens are"):
        contribute(model, torch.randn(2, 3, 4), site)


class WithHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.attn = 2, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x).mean(1)


def test_quantised_layers_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(small_mlp(), {nn.Linear})
        static = nn.Sequential(
            torch.ao.quantization.QuantStub(), nn.Linear(5, 3), torch.ao.quantization.DeQuantStub()
        ).eval()
        static.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
        prepared = torch.ao.quantization.prepare(static)
        prepared(torch.randn(8, 5))
        converted = torch.ao.quantization.convert(prepared)
    for model, name in ((dynamic, "0 is a Linear"), (converted, "0 is a Quantize")):
        with pytest.raises(ModelError, match=f"{name}: no gradient passes through quantised layer"):
            contribute(model, torch.randn(2, 5), "1")
    # Observers alone do not quantise anything.
    assert len(contribute(prepared.eval(), torch.randn(2, 5), "1")) == 2


def test_mixed_and_missing_devices_are_refused() -> None:
    model = small_resnet()
    with torch.device("meta"):
        empty = SmallResNet().eval()
    with pytest.raises(ModelError, match=r"stem\.weight is on the meta device.*load the weights"):
        contribute(empty, images(), "block1")
    model.block2 = empty.block2
    with pytest.raises(ModelError, match=r"block2\.conv1\.weight is on the meta device"):
        contribute(model, images(), "block1")


def test_parameters_on_several_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_mlp()

    class Elsewhere(nn.Parameter):
        """A parameter that says it is on another device; there is none to put it on."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda:1")

    model[4].weight = Elsewhere(model[4].weight.detach())
    with pytest.raises(
        ModelError, match=r"several devices \(0\.weight on cpu, 4\.weight on cuda:1\); move the"
    ):
        with record(model, find_sites(model, "1")):
            run_model(model, torch.randn(2, 5))
