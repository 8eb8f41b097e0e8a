"""Weights that hold edits: the logits are those under `edited`."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from condec.basis.errors import DataError, ModelError, OptionError, SiteError
from condec.edits import Ablate, Donors, Erase, Preserve, Project, Scale, Steer, baked, edited
from condec.testing.contracts import count_hooks
from condec.testing.models import small_resnet


class Zoo(nn.Module):
    """Every kind of module whose weights can hold edits, one after another."""

    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.group = nn.GroupNorm(2, 4)
        self.grouped = nn.Conv2d(4, 4, 2, groups=2)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.norm1 = nn.BatchNorm1d(6)
        self.conv3 = nn.Conv3d(1, 2, (3, 1, 1))
        self.norm3 = nn.BatchNorm3d(2)
        self.linear = nn.Linear(8, 5)
        self.layer = nn.LayerNorm(5)
        self.last = nn.Linear(5, 3)
        generator = torch.Generator().manual_seed(0)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator)
                tensor.data.copy_(values.abs() + 0.1 if tensor.ndim < 2 else values)
        self.eval()

    def forward(self, x):
        x = self.grouped(self.group(self.norm2(self.conv2(x)).tanh()))  # 4 x 4 x 4
        x = self.norm1(self.conv1(x.flatten(2)).tanh())  # 6 x 14
        x = self.norm3(self.conv3(x[:, None, :, :, None]).tanh())  # 2 x 4 x 14 x 1
        return self.last(self.layer(self.linear(x.mean(3).flatten(1))).tanh())


OUTPUTS = [
    "conv2", "norm2", "group@channels", "grouped", "conv1@channels", "norm1@channels", "conv3",
    "norm3", "linear@features", "layer@features", "last@features",
]  # fmt: skip
INPUTS = ["linear:input@features", "last:input@features"]


def run(model, edits, x):
    with torch.no_grad(), edited(model, edits):
        return model(x)


@pytest.mark.parametrize("site", OUTPUTS)
def test_constants_at_outputs_are_exact_to_the_bit(site):
    model, x = Zoo(), torch.randn(3, 1, 5, 5)
    for kind in (Ablate, Preserve):
        for value in (0.0, 0.75):
            edit = kind(site, units=[1], replacement=value)
            expected = run(model, edit, x)
            assert not torch.equal(expected, model(x))
            if kind is Ablate:
                assert torch.equal(baked(model, edit, inputs=x)(x), expected)
            else:
                torch.testing.assert_close(
                    baked(model, edit, inputs=x)(x), expected, rtol=0, atol=1e-6
                )


@pytest.mark.parametrize("site", [*OUTPUTS, *INPUTS])
def test_logits_are_those_under_the_edits(site):
    model, x = Zoo().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    values = [0.5, -1.0, 2.0, 0.25, 1.0, -0.5, 1.5, 3.0][: n_units(model, site)]
    unit = min(len(values), 4) - 1
    for edits in (
        [Ablate(site, units=[unit], replacement=values)],
        [Preserve(site, units=[unit], replacement=values)],
        [Scale(site, units=[unit], factor=-1.5)],
        [Scale(site, units=[unit, 0], factor=[0.5, 3.0])],
        [Scale(site, units=[unit], factor=2.0), Ablate(site, units=[0], replacement=0.5)],
        [Ablate(site, units=[0], replacement=0.5), Scale(site, units=[0], factor=3.0)],
    ):
        expected = run(model, edits, x)
        torch.testing.assert_close(baked(model, edits, inputs=x)(x), expected, rtol=0, atol=1e-9)
    assert all(torch.equal(weights[name], v) for name, v in model.state_dict().items())


def n_units(model, site):
    name, _, tap = site.partition("@")[0].partition(":")
    module = model.get_submodule(name)
    return module.in_features if tap else len(module.weight)


@pytest.mark.parametrize("site", [*OUTPUTS, *INPUTS])
def test_what_is_added_goes_into_biases(site):
    model, x = Zoo().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    direction = torch.arange(1.0, 1.0 + n_units(model, site))
    added = Steer(site, direction=direction, strength=-0.5, norm="own")
    edits = [Scale(site, units=[0], factor=0.25), added]
    if ":input" in site:  # both are of the module's own bias
        edits = [added]
    torch.testing.assert_close(
        baked(model, edits, inputs=x)(x), run(model, edits, x), rtol=0, atol=1e-9
    )


def test_several_sites_and_both_sides_of_one_module():
    model, x = Zoo().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    edits = [
        Scale("linear:input@features", units=[0, 3], factor=0.5),
        Ablate("linear@features", units=[2], replacement=1.5),
        Ablate("linear:input@features", units=[3], replacement=-2.0),
        Ablate("norm2", units=[0]),
        Preserve("layer@features", units=[1, 4], replacement=0.5),
    ]
    torch.testing.assert_close(
        baked(model, edits, inputs=x)(x), run(model, edits, x), rtol=0, atol=1e-9
    )
    assert torch.equal(baked(model, [], inputs=x)(x), model(x))


def test_single_precision_to_a_millionth():
    model, x = Zoo(), torch.randn(8, 1, 5, 5)
    for site in (*OUTPUTS, *INPUTS):
        edit = Scale(site, units=[0], factor=1.3)
        torch.testing.assert_close(
            baked(model, edit, inputs=x)(x), run(model, edit, x), rtol=1e-5, atol=1e-6
        )


def test_copy_is_apart_and_has_no_hooks():
    model, x = Zoo(), torch.randn(2, 1, 5, 5)
    made = baked(torch.compile(model, backend="eager"), Ablate("conv2", units=[0]), inputs=x)
    assert type(made) is Zoo
    assert count_hooks(made) == 0
    assert made.last.weight.data_ptr() != model.last.weight.data_ptr()
    assert made.state_dict().keys() == model.state_dict().keys()
    assert made.conv2.weight.requires_grad


def test_edits_in_force_are_not_copied():
    model, x, edit = Zoo(), torch.randn(2, 1, 5, 5), Ablate("norm2", units=[1])
    with edited(model, Ablate("conv2", units=[0])):
        with pytest.raises(ModelError, match=r"this Zoo has edits in force.*leave the context"):
            baked(model, edit, inputs=x)
        model(x)
    assert count_hooks(baked(model, edit, inputs=x)) == 0
    with pytest.raises(ModelError, match="training mode"):
        baked(Zoo().train(), edit, inputs=x)
    with pytest.raises(DataError, match="at least one sample"):
        baked(model, edit, inputs=x[:0])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


class Renormalised(nn.Module):
    """Divides the weights by their length before it uses them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(16.0).view(4, 4).sin())

    def forward(self, x):
        weight = self.layer.weight
        return self.layer(x) / weight.norm()


def test_all_calls_of_a_module_are_edited():
    model, x = Twice().eval(), torch.randn(2, 4)
    edits = [Ablate(f"layer#{call}@features", units=[1], replacement=0.5) for call in range(2)]
    assert torch.equal(baked(model, edits, inputs=x)(x), run(model, edits, x))


class Active(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def shared_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[1].weight = model[0].weight
    return model


def one(module):
    return lambda: nn.Sequential(module).eval()


IMAGES, ROWS = torch.randn(3, 1, 5, 5), torch.randn(3, 4)


@pytest.mark.parametrize(
    ("make_model", "edit", "x"),
    [
        (lambda: Renormalised().eval(), Ablate("layer", units=[0]), ROWS),
        (lambda: Twice().eval(), Ablate("layer#1@features", units=[0]), ROWS),
        (Zoo, Ablate("conv1@positions", units=[0], replacement=1.0), IMAGES),
        (Zoo, Ablate("norm2@positions", units=[0]), IMAGES),
        (one(nn.LayerNorm(4)), Ablate("0@features[1:]", units=[0]), torch.randn(3, 5, 4)),
        (one(Active(1)), Ablate("0", units=[0], replacement=-1.0), IMAGES),
    ],
)
def test_a_copy_that_computes_something_else_is_refused(make_model, edit, x):
    model = make_model()
    message = (
        r"weights of \w+ do not hold the edits: .* off by [\d.e+]+, where the largest is [\d.]+"
    )
    with pytest.raises(ModelError, match=message):
        baked(model, edit, inputs=x)


@pytest.mark.parametrize(
    ("make_model", "edit", "message"),
    [
        (Zoo, Ablate("norm2:input", units=[0]), "the input of a BatchNorm2d cannot be held"),
        (Zoo, Ablate("linear@features", units=[5]), "has 5 units, 0 to 4; there is no unit 5"),
        (Zoo, Ablate("none", units=[0]), "no module of Zoo matches 'none'"),
        (
            shared_weights,
            Ablate("1@features", units=[0]),
            "weights are shared by 0, 1, so",
        ),
        (small_resnet, Ablate("block1", units=[0]), "the output of a ResidualBlock cannot be held"),
        (one(nn.BatchNorm2d(4, affine=False)), Ablate("0", units=[0]), "no weight of its own"),
        (
            one(parametrizations.weight_norm(nn.Linear(4, 4))),
            Ablate("0@features", units=[0]),
            "no weight of its own",
        ),
        (one(nn.LayerNorm((3, 4))), Ablate("0@features", units=[0]), "several axes"),
        (
            one(nn.Conv2d(1, 4, 3, bias=False)),
            Ablate("0", units=[0], replacement=1.0),
            "has no bias to hold the replacement",
        ),
    ],
)
def test_what_weights_cannot_hold(make_model, edit, message):
    with pytest.raises(SiteError, match=message):
        baked(make_model().eval(), edit, inputs=IMAGES)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            Steer("conv2", direction=[1.0] * 4, strength=1.0),
            "only Ablate, Preserve, Scale, Project, Erase and Steer with norm='own'",
        ),
        (
            Steer("conv2", direction=[1.0] * 3, strength=1.0, norm="own"),
            "one entry for each of the module's 4 units; got 3",
        ),
        (
            Ablate("conv2", units=[0], replacement=Donors(torch.ones(1, 4, 5, 5))),
            "differ from sample to sample",
        ),
        (Ablate("conv2", units=[0], replacement=[1.0]), "the site's 4 units; got 1"),
    ],
)
def test_edits_that_weights_cannot_hold(edit, message):
    with pytest.raises(OptionError, match=message):
        baked(Zoo(), edit, inputs=IMAGES)


def test_factors_are_exact_in_double_precision():
    model, x = nn.Sequential(nn.Linear(4, 4)).double().eval(), torch.randn(3, 4).double()
    edit = Scale("0@features", units=[0, 2], factor=0.1)
    with edited(model, edit):
        expected = model(x)
    assert torch.allclose(baked(model, edit, inputs=x)(x), expected, rtol=1e-14, atol=1e-15)


MIXED = ["conv2", "conv1@channels", "conv3", "linear@features", "last@features", *INPUTS]


@pytest.mark.parametrize("site", MIXED)
def test_edits_of_directions_are_held_where_weights_mix_units(site):
    model, x = Zoo().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    width = n_units(model, site)
    d, r = torch.randn(2, width), torch.randn(2, width)
    for edit in (
        Project(site, directions=d[:1]),
        Erase(site, directions=d, readers=r, offsets=[0.5, -1.0]),
    ):
        expected = run(model, edit, x)
        assert not torch.allclose(expected, model(x), rtol=1e-3)
        torch.testing.assert_close(baked(model, edit, inputs=x)(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("site", ["norm2", "grouped", "layer@features"])
def test_edits_of_directions_are_refused_where_units_stay_apart(site):
    model, x = Zoo(), torch.randn(3, 1, 5, 5)
    edit = Project(site, directions=torch.ones(n_units(model, site)))
    with pytest.raises(SiteError, match=rf"Project\({site.partition('@')[0]}.*cannot mix them"):
        baked(model, edit, inputs=x)


def test_directions_of_another_width_are_refused_before_weights_change():
    with pytest.raises(OptionError, match="one entry for each of the module's 5 units; got 3"):
        baked(
            Zoo(), Project("last:input", directions=[1.0, 2.0, 3.0]), inputs=torch.ones(2, 1, 5, 5)
        )
