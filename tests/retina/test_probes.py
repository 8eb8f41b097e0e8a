"""Standard probes: all of them, at the size of the model, with the response to every frame."""

import pytest
import torch
from torch import nn

from condec.basis.errors import DataError, OptionError
from condec.figures.style import POSITIVE
from condec.retina import PROBES, Recording, probe, standard_probes
from condec.retina import figures as retina_figures
from condec.retina.responses import Responses


class Last(nn.Module):
    """Two cells: light of the last frame of the clip, and of the first."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip[:, [-1, 0]].mean((2, 3))


def ramp() -> Recording:
    course = torch.arange(1.0, 7.0)
    movie = course[:, None, None].expand(6, 3, 3).clone()
    return Recording(movie=movie, name="ramp", events={"at": course}, seconds_per_frame=0.02)


def test_every_probe_fits_the_model_and_its_clock() -> None:
    made = standard_probes((8, 12), seconds_per_frame=0.02)
    assert list(made) == list(PROBES) == [one.name for one in made.values()]
    for one in made.values():
        assert one.movie.shape[1:] == (8, 12)
        assert one.movie.abs().max() > 0
        assert one.seconds_per_frame == 0.02
        assert {len(course) for course in one.events.values()} == {len(one.movie)}


def test_a_field_that_is_not_square_shows_the_middle() -> None:
    square, tall = (standard_probes(size)["moving bar"].movie for size in ((30, 30), (30, 20)))
    assert torch.equal(tall, square[:, :, 5:25])
    wide = standard_probes((10, 14))["flashes"]
    assert wide.movie.shape[1:] == (10, 14)


def test_rates_follow_the_stimulus_from_its_first_frame_on() -> None:
    found = probe(Last().eval(), ramp(), 3, contrast=2.0, batch_size=4)
    # The response to a clip belongs to the frame after it: that of the last frame comes one later.
    assert found.rates[:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert found.rates[:, 1].tolist() == [0, 0, 0, 2, 4, 6]
    assert found.frames.tolist() == list(range(6))
    assert found.events[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert found.seconds[1] == pytest.approx(0.02)
    with pytest.raises(OptionError, match="contrast must not be 0"):
        probe(Last().eval(), ramp(), 3, contrast=0.0)


def test_figure_has_a_panel_for_every_probe() -> None:
    none = torch.zeros(0, 20)
    answers = {
        name: Responses(
            torch.rand(20, 3) * size, events, torch.arange(20), 0.01, ("a", "b", "c"), names, name
        )
        for name, size, events, names in (
            ("a", 1, torch.stack([torch.ones(20), torch.zeros(20)]), ("on", "off")),
            ("b", 5, none, ()),
            ("c", 2, none, ()),
        )
    }
    figure = retina_figures.probes_figure(answers)
    images = [image.get_array() for axis in figure.axes for image in axis.images]
    assert [image.shape for image in images] == [(3, 20)] * 3
    # Each on a scale of its own: one strong probe leaves no other one blank.
    assert [float(abs(image).max()) for image in images] == [pytest.approx(1.0)] * 3
    assert not images[0][:, 0].any()  # from the rate before it
    texts = [text for axis in figure.axes for text in axis.texts]
    assert {text.get_text() for text in texts} == {"on", "off"}
    assert POSITIVE in {text.get_color() for text in texts}
    with pytest.raises(DataError, match="no probes"):
        retina_figures.probes_figure({})
