"""Patterns find the right modules; layouts name the right axes; mistakes are explained."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from condec.attribution.contributions import contribute
from condec.attribution.reduce import split_and_sum
from condec.basis.errors import OptionError, SiteError
from condec.edits import Ablate, Preserve, edited
from condec.network.sites import Site, Units, find_site, find_sites
from condec.network.tape import record
from condec.store import collect
from condec.store.shards import SiteInfo
from condec.testing.models import small_mlp, small_resnet


def test_star_stays_inside_one_part() -> None:
    names = [s.name for s in find_sites(small_resnet(), "block*.*")]
    assert names == [
        f"block{b}.{part}" for b in (1, 2) for part in ("conv1", "relu", "conv2", "out")
    ]


def test_double_star_crosses_dots_and_commas_join() -> None:
    model = small_resnet()
    assert [s.name for s in find_sites(model, "**.conv1, stem")] == [
        "stem", "block1.conv1", "block2.conv1",
    ]  # fmt: skip
    assert [s.name for s in find_sites(model, "block[1,2]")] == ["block1", "block2"]
    assert [s.name for s in find_sites(model, "block[!1]")] == ["block2"]
    assert [s.name for s in find_sites(model, ["block?", Site("stem")])] == [
        "stem", "block1", "block2",
    ]  # fmt: skip


def test_input_tap_call_and_layout_are_read() -> None:
    (site,) = find_sites(small_resnet(), "block1.conv2:input#0@positions")
    assert site == Site("block1.conv2", "input", Units("positions"), 0)
    assert site.key == "block1.conv2:input#0@positions"
    assert Site.parse(site.key) == site


def test_heads_come_from_the_enclosing_module() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 3
            self.proj = nn.Linear(12, 12)

    model = nn.Sequential(Attention())
    assert find_sites(model, "0.proj:input@heads")[0].units == Units("heads", 3)
    assert find_sites(model, "0.proj:input@heads(6)")[0].units == Units("heads", 6)
    with pytest.raises(SiteError, match="no enclosing module says how many heads"):
        find_sites(small_resnet(), "stem@heads")


@pytest.mark.parametrize(
    ("units", "shape", "count", "positions"),
    [
        (Units("channels"), (2, 3, 4, 5), 3, 20),
        (Units("features"), (2, 7, 6), 6, 7),
        (Units("features"), (2, 6), 6, 1),
        (Units("heads", 3), (2, 7, 6), 3, 14),
        (Units("tokens"), (2, 7, 6), 7, 6),
        (Units("positions"), (2, 3, 4, 5), 20, 3),
    ],
)
def test_counts(units: Units, shape: tuple[int, ...], count: int, positions: int) -> None:
    assert units.count(shape) == count
    assert units.positions(shape) == positions
    values = torch.arange(float(count))
    laid = units.broadcast(values, shape).expand(shape)
    # Every unit's value stands at exactly its own entries.
    expanded = units.expand(laid)
    axes = units.axes(expanded.ndim)
    others = tuple(i for i in range(expanded.ndim) if i not in axes)
    assert torch.equal(expanded.amax(others).flatten(), values)
    assert torch.equal(expanded.amin(others).flatten(), values)


@settings(max_examples=30, deadline=None)
@given(
    st.from_regex(r"[a-z][a-z0-9_.]{0,8}", fullmatch=True),
    st.sampled_from(["", ":input"]),
    st.sampled_from(["", "#0", "#12"]),
    st.sampled_from(["", "@tokens", "@heads(4)"]),
)
def test_key_and_parse_are_inverse(name: str, tap: str, call: str, layout: str) -> None:
    key = name + tap + call + layout
    assert Site.parse(key).key == key


def test_sites_compare_by_value_and_are_found_by_name() -> None:
    sites = find_sites(small_resnet(), "block*")
    assert len({*sites, Site("block1")}) == 2
    assert find_site(sites, "block2") == Site("block2") == find_site(sites, Site("block2"))
    with pytest.raises(SiteError, match="'blok1' is not among the sites; nearest of 2: block1"):
        find_site(sites, "blok1")
    twice = (Site("stem"), Site("stem", tap="input"))
    assert find_site(twice, "stem") == twice[0]
    with pytest.raises(SiteError, match="names more than one site"):
        find_site((Site("stem", call=0), Site("stem", call=1)), "stem")


SPELLED = (
    Site("blocks.0.fc2", "input", Units("features")),
    Site("blocks.1.fc2", "input"),
    Site("blocks.0.proj", "input", Units("heads", 4)),
    Site("blocks.0.norm", units=Units("features", tokens=(1, None))),
    Site("blocks.0.act", call=0),
)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("blocks.0.fc2:input", 0), ("blocks.0.fc2:input@features", 0), ("blocks.0.fc2", 0),
        ("blocks.0.fc2:input#0@features", 0), (Site("blocks.0.fc2", "input"), 0),
        ("blocks.1.fc2:input", 1), ("blocks.1.fc2:input@features", 1),
        (Site("blocks.1.fc2", "input", Units("features"), 0), 1),
        ("blocks.0.proj:input", 2), ("blocks.0.proj:input@heads", 2),
        ("blocks.0.proj:input@heads(4)", 2), ("blocks.0.norm@features[1:]", 3),
        ("blocks.0.norm@features[patch]", 3), ("blocks.0.norm", 3), ("blocks.0.act", 4),
        ("blocks.0.act@features", 4),
    ],
)  # fmt: skip
def test_any_spelling_of_a_site_finds_it(wanted: str | Site, found: int) -> None:
    units = [site.units or Units("features") for site in SPELLED]
    assert find_site(SPELLED, wanted, units) == SPELLED[found]


@pytest.mark.parametrize(
    "wanted",
    [
        "blocks.0.fc2:input@tokens", "blocks.1.fc2:input@channels", "blocks.0.proj:input@heads(2)",
        "blocks.0.proj:input@features", "blocks.0.norm@features", "blocks.0.norm@features[class]",
        "blocks.0.norm@features[2:]", "blocks.0.act#1", "blocks.0.norm:input",
    ],
)  # fmt: skip
def test_what_is_counted_otherwise_is_another_site(wanted: str) -> None:
    units = [site.units or Units("features") for site in SPELLED]
    with pytest.raises(SiteError, match="is not among the sites"):
        find_site(SPELLED, wanted, units)


def test_a_place_with_two_layouts_is_ambiguous_without_one() -> None:
    sites = (Site("a", "input", Units("heads", 2)), Site("a", "input", Units("features")))
    assert find_site(sites, "a:input@heads") == sites[0]
    for spelling in ("a:input", "a"):
        with pytest.raises(SiteError, match="names more than one site"):
            find_site(sites, spelling)


def test_spellings_in_batches_stores_and_groups(tmp_path: Path) -> None:
    model, x = small_mlp().eval(), torch.randn(4, 5)
    for asked in ("2:input", "2:input@features"):
        batch = contribute(model, x, asked)
        store = collect(model, x, asked, out=tmp_path / asked, progress=False)
        for spelling in ("2:input", "2:input@features", "2:input#0", "2"):
            assert batch[spelling] is batch.by_site[0]
            assert batch.reduce()[spelling].site.key == asked
            assert torch.equal(store.matrix(spelling), store.matrix(asked))
            group = xarray.open_zarr(store.path, group=store.group(spelling))
            assert group.sizes["unit"] == store.info(asked).n_units


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("block9", SiteError, r"no module of SmallResNet matches 'block9'; nearest of .*block1"),
        ("stem@chanels", OptionError, "LAYOUT one of channels, features"),
        ("stem:in", OptionError, "expected GLOB"),
        ("", OptionError, "expected GLOB"),
        (Site("nowhere"), SiteError, "no module of SmallResNet matches 'nowhere'"),
    ],
)
def test_mistakes_are_explained(wrong: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_sites(small_resnet(), wrong)


def test_units_are_validated(unchecked: None) -> None:
    with pytest.raises(OptionError, match="layout must be one of"):
        Units("chanels")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="n_heads belongs to layout 'heads'"):
        Units("heads")
    with pytest.raises(OptionError, match="at least 1"):
        Units("heads", 0)
    with pytest.raises(SiteError, match="not a multiple of 5 heads"):
        Units("heads", 5).count((1, 2, 12))
    with pytest.raises(SiteError, match="at least 3 axes"):
        Units("tokens").count((1, 2))
    with pytest.raises(OptionError, match="expected one value for each of 3 units"):
        Units("channels").broadcast(torch.zeros(4), (1, 3, 2, 2))


# --- tokens told apart -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "count", "positions", "there"),
    [
        (Units("features", tokens=(1, None)), 6, 6, slice(1, None)),
        (Units("features", tokens=(0, 1)), 6, 1, slice(0, 1)),
        (Units("features", tokens=(-1, None)), 6, 1, slice(6, None)),
        (Units("heads", 3, tokens=(2, 5)), 3, 6, slice(2, 5)),
        (Units("tokens", tokens=(1, 5)), 4, 6, slice(1, 5)),
    ],
)
def test_only_some_tokens_count(units: Units, count: int, positions: int, there: slice) -> None:
    shape = (2, 7, 6)
    assert units.count(shape) == count
    assert units.positions(shape) == positions
    whole = Units(units.layout, units.n_heads)
    activation = torch.randn(shape)
    part = activation[:, there]
    assert torch.equal(units.expand(activation), whole.expand(part))
    assert torch.equal(split_and_sum(activation, units), split_and_sum(part, whole))
    values = torch.arange(1.0, count + 1)
    laid = units.broadcast(values, shape).expand(shape)
    assert torch.equal(laid[:, there], whole.broadcast(values, part.shape).expand(part.shape))
    outside = torch.ones(7, dtype=torch.bool)
    outside[there] = False
    assert not laid[:, outside].any()


def test_tokens_are_validated(unchecked: None) -> None:
    with pytest.raises(OptionError, match="tokens belong to layouts features, heads, tokens"):
        Units("channels", tokens=(1, None))
    with pytest.raises(SiteError, match=r"needs an activation of shape \[sample, token, feature\]"):
        Units("features", tokens=(1, None)).count((2, 3, 4, 5))
    with pytest.raises(SiteError, match=r"'features\[7:\]': there is no such token among 7"):
        Units("features", tokens=(7, None)).count((2, 7, 6))


@pytest.mark.parametrize("text", ["[1:]", "[0:1]", "[:5]", "[-1:]", "[:]"])
def test_slices_of_tokens_are_read_and_written(text: str) -> None:
    for layout in ("features", "heads(4)", "tokens"):
        key = f"blocks.3.attn.proj:input@{layout}{text}"
        assert Site.parse(key).key == key
        site = Site.parse(key)
        info = SiteInfo(site=site, units=site.units, n_units=4, n_positions=1, cut=False)
        assert SiteInfo.from_dict(json.loads(json.dumps(asdict(info)))) == info


class Tokens(nn.Module):
    """Class token, two registers, patches: as in vision transformers with registers."""

    def __init__(self, *, registers: int = 2) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.reg_token = nn.Parameter(torch.ones(1, registers, 4)) if registers else None
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = [self.cls_token] if self.reg_token is None else [self.cls_token, self.reg_token]
        prefix = torch.cat(tokens, 1).expand(len(x), -1, -1)
        h = self.mix(torch.cat([prefix, x], 1))
        return self.head(h.tanh().mean(1))


def test_kinds_of_tokens_come_from_the_model() -> None:
    model = nn.Sequential(Tokens()).eval()
    sites = find_sites(model, "0.mix@features[class],0.mix@tokens[register],0.mix@features[patch]")
    assert [site.key for site in sites] == [
        "0.mix@features[0:1]", "0.mix@tokens[1:3]", "0.mix@features[3:]",
    ]  # fmt: skip
    assert find_sites(model, "0.mix@features[:]")[0].units == Units("features", tokens=(None, None))
    with pytest.raises(SiteError, match="Tokens has no register token; it has class, patch"):
        find_sites(Tokens(registers=0), "mix@features[register]")
    with pytest.raises(SiteError, match=r"which tokens are class or register or patch.*\[1:\]"):
        find_sites(small_resnet(), "stem@features[patch]")
    with pytest.raises(OptionError, match=r"a slice such as \[1:\], or one of \[class\]"):
        find_sites(model, "0.mix@features[clas]")
    with pytest.raises(OptionError, match=r"\[patch\] is for a model to say; use find_sites"):
        Site.parse("0.mix@features[patch]")


def test_contributions_of_some_tokens() -> None:
    """Whole in full shape, counted where they belong once reduced, and never a cut."""
    model = Tokens().eval()
    x = torch.randn(3, 5, 4)
    batch = contribute(model, x, "mix,mix@features[class],mix@features[patch]")
    whole, first, patches = (batch[site] for site in batch.sites)
    assert (whole.cut, first.cut, patches.cut) == (True, False, False)
    assert list(batch.completeness()) == ["mix"]
    assert first.contribution.shape == patches.contribution.shape == (3, 8, 4)
    assert torch.equal(first.contribution, whole.contribution)
    reduced = batch.reduce()
    part = whole.contribution[:, 3:]
    assert torch.allclose(
        reduced["mix@features[3:]"].contribution[:, 0], part.clamp(min=0).sum(1), atol=1e-7
    )
    assert torch.equal(
        reduced["mix@features[0:1]"].contribution[:, 1], whole.contribution[:, 0].clamp(max=0)
    )


@pytest.mark.parametrize("edit", [Ablate, Preserve])
@pytest.mark.parametrize("replacement", [0.0, [5.0, 6.0, 7.0, 8.0]])
def test_edits_of_some_tokens_leave_the_others(edit: type, replacement: object) -> None:
    model = Tokens().eval()
    x = torch.randn(2, 5, 4)
    seen = []
    (site,) = find_sites(model, "mix@features[patch]")
    for edits in ([], [edit(site, units=[1, 2], replacement=replacement)]):
        with edited(model, edits), record(model, [Site("mix")]) as tape:
            model(x)
            seen.append(tape.records["mix"].detach())
    before, after = seen
    changed = [1, 2] if edit is Ablate else [0, 3]
    kept = [0, 3] if edit is Ablate else [1, 2]
    wanted = torch.zeros(4) if replacement == 0.0 else torch.tensor(replacement)
    assert torch.equal(after[:, :3], before[:, :3])
    assert torch.equal(after[:, 3:, kept], before[:, 3:, kept])
    assert (after[:, 3:, changed] == wanted[changed]).all()


@pytest.mark.usefixtures("unchecked")
def test_a_module_instead_of_its_name() -> None:
    model = small_resnet()
    for pattern in (model.block1, ["stem", model.block1], [model.block1]):
        with pytest.raises(SiteError, match=r"got a \w+ itself, whose name is 'block1'"):
            find_sites(model, pattern)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="got a Sequential itself, whose name is unknown here"):
        find_sites(model, nn.Sequential(nn.ReLU()))  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="expected names of modules, or a Site; got 3"):
        find_sites(model, [3])  # type: ignore[list-item]
