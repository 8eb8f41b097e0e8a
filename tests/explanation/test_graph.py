"""Graphs: flows from part to part that add up, in networks where they are known, too."""

import itertools

import numpy
import pytest
import torch
from torch import nn

import condec
from condec.attribution import Samples
from condec.dictionary import Dictionary
from condec.testing.models import routed_mlp, small_resnet

SITES = ("relu", "block1", "block2")
FEW = condec.IntegratedGradients(steps=2)


@pytest.fixture(scope="module")
def model():
    return small_resnet().double()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(20, 1, 6, 6, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def modes(model, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("graph") / "store"
    sites, target = [*SITES, "block1.conv1"], condec.Logit(1)
    store = condec.collect(model, images, sites, out=out, target=target, progress=False)
    return {site.key: fitted(store, site.key, condec.PCA(n_modes=3)) for site in store.sites}


def fitted(store, site, learner, sign="sum"):
    config = condec.TrainConfig(held_out=0.0)
    found = condec.fit(learner, store.matrix(site, sign=sign), config=config)
    return condec.Modes.build(found.dictionary, store, site, sign)


def known(store, site, atoms):
    dictionary = Dictionary(condec.NMF(n_modes=len(atoms)), {"atoms": atoms}, 1.0)
    return condec.Modes.build(dictionary, store, site)


def flows(graph, start, end):
    """Flows between two sites, [from, to], as a frame of part names."""
    name = graph.nodes.set_index("name")
    edges = graph.edges.assign(
        a=graph.edges["from"].map(name["site"]), b=graph.edges["to"].map(name["site"]),
        start=graph.edges["from"].map(name["part"]), end=graph.edges["to"].map(name["part"]),
    )  # fmt: skip
    chosen = edges[(edges["a"] == start) & (edges["b"] == end)]
    return chosen.pivot(index="start", columns="end", values="flow")


def parts(table):
    """Leave out what is missed, or goes past a site."""
    rest = ["quadrature", "past it"]
    return table.drop(index=rest, columns=rest, errors="ignore")


def nets(graph, site):
    return graph.nodes[graph.nodes["site"] == site].set_index("part")["net"]


def close(one, other, **tolerance):
    numpy.testing.assert_allclose(one.to_numpy(), other[one.index].to_numpy(), **tolerance)


@pytest.mark.parametrize(
    "method",
    [
        condec.IntegratedGradients(steps=4),
        condec.IntegratedGradients(steps=4, spacing="power:2"),
        condec.IntegratedGradients(steps=3, baseline=condec.Constant(0.5)),
    ],
    ids=str,
)
def test_what_a_part_sends_to_a_cut_is_what_it_contributes(model, images, modes, method):
    found = condec.explain(model, images[:1], [modes[s] for s in SITES], method=method)
    graph = found.graph()
    for a, b in itertools.pairwise(SITES):
        close(parts(flows(graph, a, b)).sum(axis=1), nets(graph, a), rtol=1e-9, atol=1e-12)
    close(flows(graph, "block2", "target").sum(axis=1), nets(graph, "block2"), rtol=1e-12)


@pytest.mark.parametrize("spacing", ["uniform", "fitted"])
def test_what_comes_to_a_part_from_a_cut_tends_to_what_it_contributes(
    model, images, modes, spacing
):
    method = condec.IntegratedGradients(steps=64, spacing=spacing)
    graph = condec.explain(model, images[:1], [modes[s] for s in SITES], method=method).graph()
    for a, b in itertools.pairwise(SITES):
        size = float(graph.nodes.loc[graph.nodes["site"] == b, ["adds", "takes"]].abs().sum().sum())
        close(parts(flows(graph, a, b)).sum(axis=0), nets(graph, b), atol=0.01 * size)


def test_steps_are_doubled_and_baselines_averaged_as_for_contributions(model, images, modes):
    two = [modes[s] for s in SITES[1:]]
    auto = condec.IntegratedGradients(steps="auto", tolerance=0.05)
    exact = condec.IntegratedGradients(steps=64)
    found, expected = (condec.explain(model, images[:1], two, method=m) for m in (auto, exact))
    one, other = (flows(e.graph(), "block1", "block2") for e in (found, expected))
    numpy.testing.assert_allclose(one, other, atol=5e-2 * float(other.abs().to_numpy().sum()))
    draws = condec.IntegratedGradients(steps=3, baseline=Samples(n_samples=2, values=images[4:6]))
    graph = condec.explain(model, images[:1], two, method=draws).graph()
    table = parts(flows(graph, "block1", "block2"))
    close(table.sum(axis=1), nets(graph, "block1"), rtol=1e-9)


@pytest.mark.parametrize("spacing", ["uniform", "fitted"])
def test_everything_adds_up_with_what_is_missed_and_what_goes_past(model, images, modes, spacing):
    sites = ("relu", "block1.conv1", "block1", "block2")
    method = condec.IntegratedGradients(steps=3, spacing=spacing)
    found = condec.explain(model, images[:1], [modes[s] for s in sites], method=method)
    graph = found.graph()
    net = graph.nodes.set_index("name")["net"]
    for side, but in (("from", "target"), ("to", "relu")):
        sums = graph.edges.groupby(side)["flow"].sum()
        inside = [name for name in net.index if not name.startswith(but)]
        close(sums[inside], net, atol=1e-12)
    assert net["target"] == pytest.approx(found.change)
    assert net["block2: quadrature"] == pytest.approx(found["block2"].misses)


def test_parts_add_up_on_both_sides(model, images, modes):
    found = condec.explain(model, images[:1], [modes[s] for s in SITES])
    fine, coarse = (parts(flows(found.graph(n_modes=n), "relu", "block1")) for n in (3, 1))
    assert len(fine) > len(coarse)
    whole = float(fine.to_numpy().sum())
    assert float(coarse.to_numpy().sum()) == pytest.approx(whole, abs=1e-12)
    shown = [name for name in coarse.columns if name.startswith("mode")]
    numpy.testing.assert_allclose(coarse[shown].sum(axis=0), fine[shown].sum(axis=0), atol=1e-12)


def test_past_a_site_that_does_not_cut_flows_what_the_rest_lacks(model, images, modes):
    sites = ("relu", "block1.conv1", "block1", "block2")
    method = condec.IntegratedGradients(steps=64)
    graph = condec.explain(model, images[:1], [modes[s] for s in sites], method=method).graph()
    past = "block1.conv1: past it"
    come, gone = (graph.edges[graph.edges[s] == past]["flow"] for s in ("to", "from"))
    net = nets(graph, "block1.conv1")["past it"]
    size = float(come.abs().sum())
    assert abs(net) > 0.1 * abs(nets(graph, "target")["target"])
    assert come.sum() == pytest.approx(net, abs=0.01 * size)
    assert gone.sum() == pytest.approx(net, abs=0.01 * size)


def test_side_branches_after_one_another_are_passed_by_the_same_flow(model, images, modes):
    """Both convolutions of a block: what goes past the one goes past the other."""
    out = modes["block1"].store.path.with_name("branches")
    store = condec.collect(
        model, images, ["block1.conv1", "block1.conv2"], out=out, target=condec.Logit(1),
        progress=False,
    )  # fmt: skip
    several = [fitted(store, site.key, condec.PCA(n_modes=2)) for site in store.sites]
    graph = condec.explain(model, images[:1], several).graph()
    past = [f"{site.key}: past it" for site in store.sites]
    edges = graph.edges.set_index(["from", "to"])["flow"]
    ends = graph.edges.groupby("to")["flow"].sum()
    assert edges[past[0], past[1]] != 0
    assert edges[past[1], "target"] == pytest.approx(ends[past[1]], abs=1e-12)
    assert ends["target"] == pytest.approx(nets(graph, "target")["target"], abs=1e-12)


@pytest.mark.parametrize("route", [(1, 2, 0), (0, 1)])
def test_nothing_flows_between_pathways_that_do_not_mix(tmp_path, route):
    n, gains = len(route), [1.0, 0.5, 2.0][: len(route)]
    model = routed_mlp(route, gains=gains).double()
    labels = torch.arange(9) % n  # the pathway of the input that is strong
    x = 0.1 + 0.1 * torch.rand(9, 2 * n, dtype=torch.float64)
    x += torch.eye(n, dtype=torch.float64).repeat_interleave(2, 1)[labels]
    store = condec.collect(
        model, (x, labels), ["1", "3"], out=tmp_path / "store", target=condec.Sum(), progress=False
    )
    atoms = torch.eye(n).repeat_interleave(2, 1)
    graph = condec.explain(model, x[:1], [known(store, s, atoms) for s in ("1", "3")]).graph()
    table, net = flows(graph, "1", "3"), nets(graph, "1")
    for start in range(n):
        for end in range(n):
            flow = table.loc[f"mode {start}", f"mode {end}"]
            known_flow = net[f"mode {start}"] if route[start] == end else 0.0
            assert flow == pytest.approx(known_flow, rel=1e-6, abs=1e-12)
    assert net["mode 0"] > 0.01
    goes_with = graph.nodes.set_index("name")["label"]
    assert [goes_with[f"1: mode {p}"] for p in range(n)] == [*range(n)]
    assert [goes_with[f"3: mode {p}"] for p in route] == [*range(n)]
    drawn = [text.get_text() for text in graph.figure([f"way {p}" for p in range(n)]).axes[0].texts]
    assert any(text.startswith("mode 0 \N{MIDDLE DOT} way 0 ") for text in drawn)


def test_a_linear_network_has_a_closed_form(tmp_path):
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)).double().eval()
    x, target = torch.rand(25, 5, dtype=torch.float64), condec.Logit(1)
    store = condec.collect(model, x, ["0", "1"], out=tmp_path / "s", target=target, progress=False)
    modes = [fitted(store, site, condec.PCA(n_modes=2)) for site in ("0", "1")]
    found = condec.explain(model, x[:1], modes)
    a, b = (torch.stack([part.weights for part in found[s].parts]) for s in ("0", "1"))
    start = torch.zeros(1, 5, dtype=torch.float64)
    moved = (model[0](x[:1]) - model[0](start))[0]
    expected = torch.einsum("mi,i,ji,nj,j->mn", a, moved, model[1].weight, b, model[2].weight[1])
    table = parts(flows(found.graph(), "0", "1"))
    names = [[part.name for part in found[s].parts] for s in ("0", "1")]
    numpy.testing.assert_allclose(table.loc[names[0], names[1]], expected.detach(), atol=1e-12)


class NotAlone(nn.Module):
    """Takes two samples or more, for it squeezes one away; folds their frames into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        """Return logits of [sample, frame, y, x]."""
        h = self.first(x.squeeze().flatten(0, 1)[:, None]).tanh()
        h = self.second(h).tanh().mean((-1, -2))
        return self.head(h.unflatten(0, x.shape[:2]).mean(1))


def test_models_that_fold_frames_and_take_no_single_sample(tmp_path):
    model = NotAlone().double().eval()
    x, target = torch.rand(6, 2, 5, 5, dtype=torch.float64), condec.Logit(0)
    sites = ["first", "second"]
    store = condec.collect(
        model, x, sites, out=tmp_path / "s", target=target, batch_size=3, progress=False
    )
    modes = [fitted(store, site, condec.PCA(n_modes=2)) for site in sites]
    graph = condec.explain(model, x[:1], modes).graph()
    table = parts(flows(graph, "first", "second"))
    close(table.sum(axis=1), nets(graph, "first"), rtol=1e-9, atol=1e-12)


def test_flow_of_several_inputs_is_the_mean_with_its_standard_error(model, images, modes):
    two = [modes[s] for s in SITES[1:]]
    x = images[:3]
    labelled = x, torch.tensor([0, 1, -1])
    graph = condec.flow(model, labelled, two, n_modes=3, method=FEW)
    one_by_one = [condec.explain(model, one[None], two, method=FEW).graph() for one in x]
    tables = [flows(g, "block1", "block2") for g in one_by_one]
    found = flows(graph, "block1", "block2")
    numpy.testing.assert_allclose(
        found.sum(axis=1), sum(t.sum(axis=1) for t in tables)[found.index] / 3, atol=1e-12
    )
    edge = graph.edges.iloc[0]
    name = edge["from"].removeprefix("block1: "), edge["to"].removeprefix("block2: ")
    values = numpy.array([t.loc[name] for t in tables])
    assert edge["flow"] == pytest.approx(values.mean())
    assert edge["error"] == pytest.approx(values.std(ddof=1) / 3**0.5)
    assert graph.n_inputs == 3
    assert condec.flow(model, x[:1], two, method=FEW).nodes["error"].isna().all()


def test_modes_of_several_inputs_are_the_strongest_by_mean_size(model, images, modes):
    two = [modes[s] for s in SITES[1:]]
    found = [condec.explain(model, x[None], two, method=FEW) for x in images[:2]]
    graph = condec.flow(model, images[:2], two, n_modes=1, method=FEW)
    for site in SITES[1:]:
        best = torch.stack([e[site].sizes for e in found]).mean(0).argmax()
        shown = nets(graph, site).index
        assert [part for part in shown if part.startswith("mode")] == [f"mode {best}"]
        assert "other modes" in shown


def test_bad_questions_are_refused(model, images, modes, tmp_path):
    x, two = images[:1], [modes[s] for s in SITES[1:]]
    with pytest.raises(condec.OptionError, match="two sites or more; got 1: block2"):
        condec.explain(model, x, modes["block2"]).graph()
    with pytest.raises(condec.OptionError, match=r"a path of the input.*ActGrad"):
        condec.explain(model, x, two, method=condec.ActGrad()).graph()
    with pytest.raises(condec.OptionError, match=r"a path of the input.*'layer'"):
        condec.explain(model, x, two, method=condec.IntegratedGradients(path="layer")).graph()
    with pytest.raises(condec.OptionError, match="n_modes must be at least 1; got 0"):
        condec.explain(model, x, two).graph(n_modes=0)
    with pytest.raises(condec.OptionError, match="flow: n_modes must be at least 1"):
        condec.flow(model, x, two, n_modes=0)
    broken = images[:2].clone()
    broken[1] = torch.nan
    with pytest.raises(condec.DataError, match=r"flow: input '1': .*NaN"):
        condec.flow(model, broken, two)


class Beside(nn.Module):
    """Two branches of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        """Return logits."""
        return self.head(self.left(x).tanh() * self.right(x))


def test_sites_beside_each_other_and_one_place_twice_are_refused(tmp_path):
    model = Beside().eval()
    x = torch.rand(10, 4)
    store = condec.collect(model, x, ["left", "right"], out=tmp_path / "s", progress=False)
    modes = [fitted(store, site, condec.PCA(n_modes=2)) for site in ("left", "right")]
    with pytest.raises(condec.SiteError, match=r"right does not depend on left.*modes of one"):
        condec.explain(model, x[:1], modes).graph()
    sequence = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = torch.rand(10, 1, 6)
    sites = ["0@channels", "0@positions"]
    store = condec.collect(sequence, x, sites, out=tmp_path / "t", progress=False)
    twice = [fitted(store, site, condec.PCA(n_modes=2)) for site in store.sites]
    with pytest.raises(condec.SiteError, match="are the same place"):
        condec.explain(sequence, x[:1], twice).graph()
