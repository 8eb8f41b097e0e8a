"""Figures: what they show, what they refuse, and that they are the same every time."""

import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.figures.style import ACTIVATION, CONTRIBUTION, POSITIVE, RANKINGS
from condec.report import figures

SITES = [f"layer{i // 3 + 1}.{i % 3}" for i in range(9)]
EDITS = ("ablate", "preserve")


def statistics():
    grow, fall = np.linspace(0.3, 0.8, 9), np.linspace(0.4, 0.1, 9)
    columns = {"site": SITES, "units": [16] * 9, "sign_correlation": fall - 0.2}
    for name in ("hoyer", "dims95", "participation_ratio"):
        columns |= {f"{name}_contribution": grow, f"{name}_activation": fall}
    return pd.DataFrame(columns)


def curve():
    rows = [
        {
            "site": "layer1.0", "label": label, "label_name": name, "ranking": ranking,
            "edit": edit, "replacement": "zero", "fraction": fraction,
            "target_accuracy": 1 - fraction * steep, "off_accuracy": 1 - fraction / 10,
            "target_std": 0.1 if ranking == "random" else np.nan,
            "off_std": 0.1 if ranking == "random" else np.nan,
        }
        for label, name in enumerate(("cat", "dog"))
        for ranking, steep in (("modes", 0.9), ("mean_contribution", 0.5), ("random", 0.1))
        for edit in EDITS
        for fraction in (0.05, 0.25, 0.75)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def areas():
    rows = [
        {"site": s, "label_name": n, "ranking": r, "edit": e, "auc_difference": d}
        for s in SITES[:3]
        for n in ("cat", "dog")
        for r, d in (("modes", -0.5), ("mean_contribution", -0.3), ("random", 0.0))
        for e in EDITS
    ]
    return pd.DataFrame(rows)


def correlation():
    return torch.tensor([[0.9, 0.0], [0.1, 0.7], [-0.2, 0.4], [0.5, 0.1]])


def swept():
    rows = [
        {
            "site": site, "configuration": f"{learner} {width}x k={k}", "learner": learner,
            "modes_per_unit": width, "seed": seed, "l0": k * (1 + 0.1 * seed),
            "r2": 1 - rest / k / width + 0.01 * seed,
        }
        for site in SITES[:3]
        for learner, rest in (("topk", 0.5), ("sae", 1.5))
        for width in (1.0, 3.0)
        for k in (1, 2, 4, 8, 16)
        for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


MADE = {
    "pareto": lambda: figures.pareto_figure(swept()),
    "statistics": lambda: figures.layer_statistics_figure(statistics(), "hoyer"),
    "completeness": lambda: figures.completeness_figure(
        {"layer1.0": torch.linspace(0.9, 1.1, 50), "layer2.0": torch.tensor([torch.nan])}
    ),
    "history": lambda: figures.training_history_figure([1.0, 0.5, 0.2]),
    "histogram": lambda: figures.correlation_histogram_figure(
        {"modes": torch.rand(30), "single units": torch.rand(10) * 0.5}
    ),
    "density": lambda: figures.density_figure(
        {"training": torch.tensor([0.0, 0.01, 0.4, 1.0]), "held out": torch.tensor([0.0, 0.0, 0.3])}
    ),
    "stability": lambda: figures.stability_figure(
        torch.tensor([0.9, torch.nan, 0.4]),
        torch.tensor([0.8, torch.nan, 0.5]),
        torch.tensor([0.2, torch.nan, -0.1]),
    ),
    "heatmap": lambda: figures.correlation_heatmap_figure(
        correlation(), ["cat", "dog"], [3, 5, 8, 9]
    ),
    "control": lambda: figures.control_figure(curve(), edit="ablate", replacement="zero"),
    "auc": lambda: figures.auc_figure(areas(), edit="preserve"),
    "auc by label": lambda: figures.auc_figure(areas(), edit="ablate", by="label_name"),
    "map": lambda: figures.mode_map_figure(
        np.full((8, 8, 3), 90, np.uint8), {"total": torch.randn(3, 8, 8)}
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_same_bytes_every_time_and_nothing_from_outside(name, tmp_path):
    before = dict(mpl.rcParams)
    texts = []
    for turn in "ab":
        torch.manual_seed(1)
        path = figures.save_figure(MADE[name](), tmp_path / f"{turn}.svg")
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    assert not re.search(r"20\d\d-\d\d-\d\d|Matplotlib v", texts[0])
    assert not re.search(r"(?:href|src)\s*=\s*['\"](?:https?:)?//", texts[0])
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("end", ["png", "pdf"])
def test_other_formats_are_the_same_every_time(tmp_path, end):
    first = figures.save_figure(MADE["statistics"](), tmp_path / f"a.{end}").read_bytes()
    again = figures.save_figure(MADE["statistics"](), tmp_path / f"b.{end}").read_bytes()
    assert first == again
    assert first.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[end])
    assert not re.search(rb"Software|CreationDate|Producer|/Type3", first)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(OptionError, match=r"path ending in \.svg, \.png or \.pdf; got .*a\.eps"):
        figures.save_figure(MADE["history"](), tmp_path / "a.eps")


def lines(figure, colour):
    axis = figure.axes[0]
    return [line.get_ydata() for line in axis.lines if line.get_color() == colour]


def words(figure):
    return " ".join(text.get_text() for axis in figure.axes for text in axis.texts)


def test_statistics_draw_contributions_and_activations_in_their_colours():
    figure = figures.layer_statistics_figure(statistics(), "hoyer")
    np.testing.assert_allclose(lines(figure, CONTRIBUTION)[0], np.linspace(0.3, 0.8, 9))
    np.testing.assert_allclose(lines(figure, ACTIVATION)[0], np.linspace(0.4, 0.1, 9))
    assert "contributions" in words(figure)
    assert "Hoyer" in words(figure)


def meaning(n=3):
    names = ["cat", "unnamed", "dog"][:n]
    at = np.array([0.5, 0.1, 0.7])[:n]
    return pd.DataFrame({"id": [4, 7, 9][:n], "name": names, "property": ["cat", "dog", "dog"][:n],
                         "correlation": at, "low": at - 0.1, "high": at + 0.2})  # fmt: skip


def test_what_modes_stand_for_has_intervals_and_names_in_order(tmp_path):
    figure = figures.meaning_figure(meaning(), width=3.4)
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == [
        "dog, mode 9",
        "cat, mode 4",
        "unnamed (dog), mode 7",
    ]
    named, unnamed = axis.collections
    spans = [path.vertices[:, 0].tolist() for path in named.get_paths()]
    assert spans == [pytest.approx([0.6, 0.9]), pytest.approx([0.4, 0.7])]
    assert unnamed.get_paths()[0].vertices[:, 0].tolist() == pytest.approx([0.0, 0.3])
    for kind in ("pdf", "svg", "png"):
        assert figures.save_figure(figure, tmp_path / f"m.{kind}").stat().st_size > 2000
    assert "; 1 of 3 modes" in words(figures.meaning_figure(meaning(), most=1))
    with pytest.raises(DataError, match="meaning_figure: the table holds no such row"):
        figures.meaning_figure(meaning(0))


def test_bands_are_from_quartile_to_quartile():
    table = statistics().assign(sign_correlation_q25=-0.3, sign_correlation_q75=0.5)
    axis = figures.layer_statistics_figure(table, "sign_correlation").axes[0]
    (band,) = axis.collections
    (outline,) = band.get_paths()
    assert set(outline.vertices[:, 1]) == {-0.3, 0.5}
    assert not figures.layer_statistics_figure(statistics(), "sign_correlation").axes[0].collections


def test_names_at_line_ends_do_not_touch():
    table = statistics()
    table["hoyer_activation"] = table["hoyer_contribution"]
    figure = figures.layer_statistics_figure(table, "hoyer")
    named = {"contributions", "activations"}
    places = [t.xy[1] for t in figure.axes[0].texts if t.get_text() in named]
    assert len(places) == 2
    assert abs(places[0] - places[1]) > 0.08


def test_completeness_draws_the_median():
    figure = figures.completeness_figure({"a": torch.tensor([0.8, 1.0, 1.5])})
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots[0].get_xdata()[0] == pytest.approx(1.0)


def test_control_takes_means_over_labels_of_one_edit():
    table = curve()
    table.loc[table["label"] == 0, "target_accuracy"] -= 0.1
    table.loc[table["edit"] == "preserve", "target_accuracy"] = 7.0
    of = {"edit": "ablate", "replacement": "zero"}
    figure = figures.control_figure(table, **of)
    drawn = lines(figure, RANKINGS["modes"][1])
    np.testing.assert_allclose(drawn[0], 1 - 0.9 * np.array([0.05, 0.25, 0.75]) - 0.05)
    other = figures.control_figure(table, images="other", **of)
    (line,) = lines(other, RANKINGS["modes"][1])
    np.testing.assert_allclose(line, 1 - np.array([0.05, 0.25, 0.75]) / 10)
    assert other.axes[0].get_ylim()[0] == figure.axes[0].get_ylim()[0] < drawn[0].min()
    bands = figure.axes[0].collections
    assert len(bands) == 3, "a band for three rankings"
    heights = bands[0].get_paths()[0].vertices[:, 1]
    # Two labels 0.1 apart: their mean may be that of either.
    assert heights.max() == pytest.approx(drawn[0][0] + 0.05)
    assert heights.min() == pytest.approx(drawn[0][-1] - 0.05)


def test_the_band_of_a_single_label_is_that_of_its_images():
    table = curve()
    table = table[table["label"] == 0].assign(
        target_low=0.25, target_high=0.75, off_low=np.nan, off_high=np.nan
    )
    figure = figures.control_figure(table, edit="ablate", replacement="zero")
    heights = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert set(heights) == {0.25, 0.75}


def test_rankings_without_a_known_name_are_drawn_as_well():
    table = curve()
    table.loc[table["ranking"] == "random", "ranking"] = "my_order"
    names = figures.rankings_in(table["ranking"])
    assert list(names) == ["modes", "mean_contribution", "my_order"]
    assert names["my_order"][0] == "my order"
    figure = figures.control_figure(table, edit="ablate", replacement="zero")
    assert "my order" in {text.get_text() for text in figure.axes[0].texts}


def test_auc_bars_are_means_over_labels():
    table = areas()
    table.loc[table["label_name"] == "cat", "auc_difference"] -= 0.2
    figure = figures.auc_figure(table, edit="ablate")
    blue = [b for b in figure.axes[0].patches if mpl.colors.to_hex(b.get_facecolor()) == "#0072b2"]
    assert [bar.get_height() for bar in blue] == pytest.approx([-0.6] * 3)


def test_heatmap_orders_modes_by_their_best_label():
    figure = figures.correlation_heatmap_figure(correlation(), ["cat", "dog"], [3, 5, 8, 9])
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image[0], [0.9, 0.5, 0.1, -0.2])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: figures.layer_statistics_figure(statistics(), "hoier"), OptionError, "hoier"),
        (
            lambda: figures.layer_statistics_figure(statistics().iloc[:0], "hoyer"),
            DataError, "no such row",
        ),
        (lambda: figures.completeness_figure({}), DataError, "no site cuts the network"),
        (lambda: figures.training_history_figure([]), DataError, "history is empty"),
        (
            lambda: figures.correlation_histogram_figure({"modes": torch.tensor([torch.nan])}),
            DataError, "no finite correlations",
        ),
        (
            lambda: figures.correlation_heatmap_figure(correlation(), ["cat"], [1, 2, 3, 4]),
            DataError, r"4 modes x 1 labels, at least 1 x 1; got \(4, 2\)",
        ),
        (
            lambda: figures.control_figure(curve(), edit="ablate", replacement="mean"),
            DataError, "edit 'ablate', replacement 'mean': the table holds no such row",
        ),
        (lambda: figures.auc_figure(areas().iloc[:0], edit="ablate"), DataError, "no such row"),
        (
            lambda: figures.control_figure(curve(), edit="ablate", replacement="zero", images="x"),
            OptionError, "images must be one of own, other; got 'x'",
        ),
    ],
)  # fmt: skip
def test_nothing_to_draw(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- twins --------------------------------------------------------------------------------


def test_twins_are_dashed_lines_with_names():
    twin = statistics().sample(frac=1, random_state=0).assign(hoyer_contribution=0.25)
    plain = figures.layer_statistics_figure(statistics(), "hoyer")
    figure = figures.layer_statistics_figure(statistics(), "hoyer", twins={"random weights": twin})
    assert len(lines(plain, CONTRIBUTION)) == 1
    solid, dashed = (line for line in figure.axes[0].lines if line.get_color() == CONTRIBUTION)
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert list(solid.get_ydata()) == list(statistics()["hoyer_contribution"])
    assert list(dashed.get_ydata()) == [0.25] * 9
    # Sites of the twin's table in another order stand at their places.
    orange = lines(figure, ACTIVATION)[1]
    assert list(orange) == list(statistics()["hoyer_activation"])
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names.count("random weights") == 2
    assert "random weights" not in [text.get_text() for text in plain.axes[0].texts]


def test_the_one_line_of_the_sign_correlation_has_a_name_beside_a_twin():
    def names(**options):
        figure = figures.layer_statistics_figure(statistics(), "sign_correlation", **options)
        return {text.get_text() for text in figure.axes[0].texts}

    assert {"this network", "random weights"} <= names(twins={"random weights": statistics()})
    assert "this network" not in names()


def test_sites_that_a_twin_lacks_are_gaps():
    figure = figures.layer_statistics_figure(
        statistics(), "hoyer", twins={"random weights": statistics()[:4]}
    )
    assert np.isfinite(lines(figure, CONTRIBUTION)[1]).tolist() == [True] * 4 + [False] * 5


def test_a_third_histogram_has_a_colour_of_its_own():
    best = {name: torch.rand(20) for name in ("modes", "single units", "shuffled labels")}
    figure = figures.correlation_histogram_figure(best)
    named = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert len({named[name] for name in best}) == 3
    assert ACTIVATION not in named.values()


# --- one dictionary -------------------------------------------------------------------------


def test_density_counts_modes_by_half_powers_of_ten():
    # 0.01 and 0.1 are edges, and belong to the bins above them.
    train = torch.tensor([0.0, 0.0, 0.01, 0.02, 0.1, 0.4, 1.0])
    (axis,) = figures.density_figure({"training": train}).axes
    heights = [round(bar.get_height()) for bar in axis.patches]
    assert heights == [2, 0, 2, 0, 1, 2]  # dead, a gap, from 1 %, 3 %, 10 %, 32 %
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["dead", "1 %", "10 %", "100 %"]
    both = figures.density_figure({"training": train, "held out": torch.zeros(7)}).axes[0]
    assert [round(bar.get_height()) for bar in both.patches][6:] == [7, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "density", [{}, {"training": torch.zeros(0)}, dict.fromkeys("abc", torch.ones(2))]
)
def test_density_of_nothing(density):
    with pytest.raises(DataError, match="expected the densities of one or two splits"):
        figures.density_figure(density)


def test_stability_leaves_dead_modes_out():
    seeds = torch.tensor([0.9, 0.7, torch.nan])
    (axis,) = figures.stability_figure(seeds, seeds - 0.1, seeds - 0.5).axes
    words = [text.get_text() for text in axis.texts]
    assert {"other seeds", "median 0.80", "median 0.70", "chance", "median 0.30"} <= set(words)
    with pytest.raises(DataError, match="every mode is dead"):
        figures.stability_figure(*[torch.full((3,), torch.nan)] * 3)


def test_pareto_figure_draws_means_their_spread_and_the_front():
    table = swept()
    figure = figures.pareto_figure(table)
    assert len(figure.axes) == 3
    axis = figure.axes[0]
    front, *points = axis.lines
    # Of 20 configurations; those below 0 are outside the scale, and counted.
    assert [len(line.get_xdata()) for line in points] == [5] * 4
    looks = [(line.get_color(), line.get_marker()) for line in points]
    assert looks == [(c, m) for c in (CONTRIBUTION, POSITIVE) for m in "os"]
    spreads = [[end.tolist() for end in one.get_segments()[0]] for one in axis.collections[:2]]
    # L0 and 1 - R2 of the first configuration, from its one seed to its other.
    assert spreads[0] == pytest.approx(np.array([[1.0, 0.495], [1.1, 0.495]]))
    assert spreads[1] == pytest.approx(np.array([[1.05, 0.5], [1.05, 0.49]]))
    assert front.get_xdata().tolist() == pytest.approx([1.05, 2.1, 4.2, 8.4, 16.8])
    left = [1 - 0.005 - (1 - 0.5 / 3 / k) for k in (1, 2, 4, 8, 16)]
    assert front.get_ydata().tolist() == pytest.approx(left)
    assert any("1 of 20 below 0" in text.get_text() for text in axis.texts)
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["topk", "sae", "1x the units", "3x the units", "front", "over seeds"]


def test_pareto_figure_of_nothing():
    with pytest.raises(DataError, match="pareto_figure: the table holds no such row"):
        figures.pareto_figure(swept().iloc[:0])
    with pytest.raises(DataError, match="pareto_figure: the table has no column learner"):
        figures.pareto_figure(swept().drop(columns="learner"))
    with pytest.raises(DataError, match="pareto_figure: no fit has loadings"):
        figures.pareto_figure(swept().assign(l0=0.0))
