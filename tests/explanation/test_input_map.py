"""Input maps, integrated: complete for every part, and the same as a plain loop."""

import pytest
import torch

import condec
from condec.testing.models import small_resnet


@pytest.fixture(scope="module")
def model():
    return small_resnet().double()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(30, 1, 6, 5, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def modes(model, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("maps") / "store"
    target = condec.Logit(1)
    store = condec.collect(model, images, "block*", out=out, target=target, progress=False)
    found = []
    for site in ("block1", "block2"):
        fitted = condec.fit(condec.PCA(n_modes=3), store.matrix(site, sign="concat"))
        found.append(condec.Modes.build(fitted.dictionary, store, site, "concat"))
    return found


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("spacing", ["uniform", "fitted"])
def test_maps_add_up_to_the_contribution_of_every_part(model, images, modes, row, spacing):
    method = condec.IntegratedGradients(steps=64, spacing=spacing)
    found = condec.explain(model, images[row : row + 1], modes, method=method)
    for at in found.by_site:
        made = found.input_maps(at.site)
        assert made.maps.shape == (len(at.parts), 1, 6, 5)
        for part, missed in zip(at.parts, made.missed.tolist(), strict=True):
            size = max(part.adds, -part.takes, 0.01 * abs(found.change))
            assert abs(missed) <= 0.01 * size, part.name


def test_maps_are_those_of_a_loop_over_points_and_entries(model, images, modes):
    steps, x = 3, images[:1]
    found = condec.explain(model, x, modes, method=condec.IntegratedGradients(steps=steps))
    made = found.input_maps("block1", ["left over", str(found["block1"].modes[0].id)])
    for part, got in zip(made.parts, made.maps, strict=True):
        slopes = []
        for k in range(steps + 1):
            point = (x * k / steps).requires_grad_()
            h = model.block1(torch.relu(model.stem(point)))
            (g,) = torch.autograd.grad(model.head(model.block2(h).mean((2, 3)))[0, 1], h)
            h = model.block1(torch.relu(model.stem(point)))
            slope = torch.zeros_like(x)
            for entry in range(h.numel()):
                (row,) = torch.autograd.grad(h.flatten()[entry], point, retain_graph=True)
                slope += part.weights.flatten()[entry] * g.flatten()[entry] * row
            slopes.append(slope)
        expected = sum(
            x / steps * (slopes[k] + slopes[k - 1]) / 2 for k in range(1, steps + 1)
        )  # fmt: skip
        torch.testing.assert_close(got, expected[0])


def test_more_steps_than_the_explanation_has(model, images, modes):
    found = condec.explain(model, images[:1], modes, method=condec.IntegratedGradients(steps=64))
    coarse = condec.explain(model, images[:1], modes, method=condec.IntegratedGradients(steps=2))
    names = [part.name for part in coarse["block2"].modes]
    torch.testing.assert_close(
        coarse.input_maps("block2", names, steps=64).maps, found.input_maps("block2", names).maps
    )


def test_what_has_no_maps_is_refused(model, images, modes):
    found = condec.explain(model, images[:1], modes, method=condec.ActGrad())
    with pytest.raises(condec.OptionError, match="needs a method that goes along a path of the in"):
        found.input_maps("block1")
    found = condec.explain(model, images[:1], modes)
    with pytest.raises(condec.OptionError, match="block1: there is no part 'mode 99'"):
        found.input_maps("block1", ["mode 99"])
    with pytest.raises(condec.OptionError, match="give the name of one part, at least"):
        found.input_maps("block1", [])
    with pytest.raises(condec.OptionError, match="input_maps: steps must be at least 1; got 0"):
        found.input_maps("block1", steps=0)
