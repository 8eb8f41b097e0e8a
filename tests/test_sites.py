"""Patterns find the right modules; layouts name the right axes; mistakes are explained."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from condec.errors import OptionError, SiteError
from condec.sites import Site, Units, find_site, find_sites
from condec.testing.models import small_resnet


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
