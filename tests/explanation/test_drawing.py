"""Pictures of explanations: they say the sum, every part, and where; of any kind of input."""

import numpy as np
import pytest
import torch
from torch import nn

import condec
from condec.explanation.drawing import ground_of
from condec.figures import save_figure
from condec.figures.style import NEGATIVE, POSITIVE
from condec.testing.models import small_resnet

# Twenty inputs leave modes dead on those held out.
pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")


def explained(model, inputs, sites, folder, labels=None):
    data = inputs if labels is None else torch.utils.data.TensorDataset(inputs, labels)
    store = condec.collect(model, data, sites, out=folder / "store", progress=False)
    modes = []
    for site in store.sites:
        fitted = condec.fit(condec.PCA(n_modes=3), store.matrix(site, sign="concat"))
        modes.append(condec.Modes.build(fitted.dictionary, store, site, "concat"))
    return condec.explain(model, inputs[:1], modes)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(20, 1, 8, 8, generator=generator), torch.arange(20) % 3
    return explained(small_resnet(), images, "block*", tmp_path_factory.mktemp("run"), labels)


def words(figure):
    found = [text.get_text() for axis in figure.axes for text in axis.texts]
    found += [label.get_text() for axis in figure.axes for label in axis.get_yticklabels()]
    return found + [axis.get_title(loc="left") for axis in figure.axes]


def test_it_says_the_sum_and_every_part(found):
    figure = found.figure(label_names=["cat, a cat", "dog", "bird"], n_maps=2)
    said = "\n".join(words(figure))
    assert f"change: {found.change:+.4g}" in said
    assert "prediction: " in said
    assert "a cat" not in said
    for at in found.by_site:
        for part in at.parts:
            assert part.name in said
            assert f"{part.net:+.3g}".replace("-", "\N{MINUS SIGN}") in said
    assert said.count("sum") == 4
    assert said.count("= the change") == 2
    assert "r 0." in said
    assert said.count("units") == 4, "two maps a site"


def test_bars_are_what_parts_add_and_take(found):
    figure = found.figure(n_maps=0)
    bars = next(axis for axis in figure.axes if axis.get_label().startswith("block1"))
    at = found["block1"]
    widths = [patch.get_width() for patch in bars.patches]
    shown = [value for part in at.parts for value in (part.adds, part.takes)]
    assert widths[: len(shown)] == pytest.approx(shown)
    assert sum(widths[-2:]) == pytest.approx(found.change, rel=1e-4)
    colours = [patch.get_facecolor()[:3] for patch in bars.patches[:2]]
    assert [f"#{bytes(round(255 * c) for c in one).hex()}".upper() for one in colours] == [
        POSITIVE, NEGATIVE,
    ]  # fmt: skip
    assert not any("units" in word for word in words(figure))


def test_all_maps_have_one_scale_for_a_hundredth_of_the_picture(found):
    figure = found.figure(picture=np.zeros((16, 16, 3)), n_maps=1)
    maps = [axis.images[1].get_array() for axis in figure.axes if len(axis.images) == 2]
    densities = [at.modes[0].places.numpy() * 64 / 100 for at in found.by_site]
    scale = np.percentile(np.abs(densities), 99.5)
    for drawn, density in zip(maps, densities, strict=True):
        alpha = np.clip(np.abs(density) / scale, 0, 1)
        np.testing.assert_allclose(drawn[..., 3], 0.92 * alpha, rtol=1e-6)


def test_the_same_bytes_every_time(found, tmp_path):
    first, again = (save_figure(found.figure(), tmp_path / f"{i}.svg") for i in "ab")
    assert first.read_bytes() == again.read_bytes()
    masked = found.figure(masked=True)
    save_figure(masked, tmp_path / "a.png")
    assert sum("stand out where a map is large" in word for word in words(masked)) == 1


def test_checks_are_drawn_with_line_and_rank(found):
    checked = found.check()
    figure = checked.figure()
    assert len(figure.axes) == 2
    said = words(figure)
    for row in checked.summary.itertuples():
        assert f"slope {row.slope:.2f}, rank {row.rank_correlation:.2f}" in said
    frame = checked.frame[checked.frame["site"] == "block1"]
    points = figure.axes[0].lines[1]
    np.testing.assert_allclose(points.get_xdata(), frame["said"])
    np.testing.assert_allclose(points.get_ydata(), frame["part_removed"])


class Sequences(nn.Module):
    """Tokens with features, as a language model has them; or channels of a signal."""

    def __init__(self, *, signal: bool) -> None:
        super().__init__()
        self.signal = signal
        self.site = nn.Conv1d(2, 4, 3, padding=1) if signal else nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.site(x).relu().mean(2 if self.signal else 1))


def test_texts_and_signals_and_rows(tmp_path):
    torch.manual_seed(0)
    text = explained(Sequences(signal=False).eval(), torch.rand(20, 9, 6), "site", tmp_path / "t")
    figure = text.figure(text="some text", n_maps=1)
    assert sum(word.get_text() == "s" for axis in figure.axes for word in axis.texts) == 2
    assert "for a token" in "".join(axis.get_xlabel() for axis in figure.axes)
    with pytest.raises(condec.DataError, match="text: expected 9 characters or tokens, one for ea"):
        text.figure(text="too short"[:3] * 4)
    with pytest.raises(condec.DataError, match="give a picture or a text, not both"):
        text.figure(text="some text", picture=np.zeros((4, 4)))
    signal = explained(Sequences(signal=True).eval(), torch.rand(20, 2, 30), "site", tmp_path / "s")
    assert "1 % of the signal" in "".join(axis.get_xlabel() for axis in signal.figure().axes)
    flat = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).eval()
    rows = explained(flat, torch.rand(20, 5), "0", tmp_path / "r")
    assert not any("units" in word for word in words(rows.figure()))


def test_the_input_itself_is_the_picture_where_none_is_given():
    image = torch.tensor([[-1.0, 0.0], [1.0, 3.0]])
    assert ground_of(image[None, None], None, None).picture[..., 0].tolist() == [
        [0, 64],
        [128, 255],
    ]
    assert ground_of(image.expand(1, 3, 2, 2), None, None).picture.shape == (2, 2, 3)
    assert ground_of(image.expand(1, 5, 2, 2), None, None).picture.shape == (2, 2, 1)
    assert ground_of(image.expand(1, 1, 7, 2, 2), None, None).picture.shape == (2, 2, 1)
    assert ground_of(torch.ones(1, 4), None, None).picture is None
