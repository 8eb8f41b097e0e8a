"""DeepLIFT at hidden sites, through Captum."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from condec.attribution.base import Attribution, Method, check_finite, wide
from condec.attribution.baselines import Baseline, Zeros
from condec.attribution.engine import Kept
from condec.attribution.targets import Label, Logit, Predicted, Target, TopK
from condec.basis.errors import DependencyError, ModelError, OptionError
from condec.basis.options import require
from condec.network import Site, check_samples, first_tensor, frozen_parameters, record, run_model

if TYPE_CHECKING:
    import condec.data


@final
@dataclass(frozen=True, slots=True)
class DeepLift(Method):
    r"""DeepLIFT, rescale rule: finite differences through every nonlinear module.

    .. math:: C = (h - h_0) \odot m, \qquad m_{in} = m_{out} \, \Delta out / \Delta in

    from the output down to the site (Shrikumar et al. 2017), computed by Captum's
    ``LayerDeepLift``. Two passes, and at sites that cut the network contributions add up to
    T(x) - T(x_0), where its limits are kept:

    - the rule holds for modules of torch (``ReLU``, ``Tanh``, ``Sigmoid``, ``Softplus``,
      max-pooling, ...), each called once. Functions, such as ``torch.relu``, and attention and
      normalisation over samples pass the plain gradient instead, and nothing adds up;
    - nonlinear modules must not work in place;
    - the target is one output of each sample: ``Logit``, ``Label``, ``Predicted`` or
      ``TopK(1)``, not of probabilities. The class is that of the input.

    Parameters
    ----------
    baseline : Baseline
        Gives x_0; several are averaged over.

    Raises
    ------
    DependencyError
        Captum is not installed.
    OptionError
        A target that is not one output of each sample.
    ModelError
        A nonlinear module is called more than once, or works in place.
    """

    baseline: Baseline = field(default_factory=Zeros)

    def __post_init__(self) -> None:
        require("DeepLift", "baseline", self.baseline, Baseline)

    @property
    def one_at_a_time(self) -> bool:
        """Yes: Captum changes modules, and warnings are a state of the whole process."""
        return True

    @property
    def n_passes(self) -> int:
        """Two for every baseline (input and baseline in one batch), and two around them."""
        return 2 + 2 * self.baseline.n_draws

    def fit(self, data: "condec.data.Inputs") -> Method:
        """With the baseline's values taken from the data set, if it needs any."""
        return replace(self, baseline=self.baseline.fit(data))

    def attribute(
        self,
        model: nn.Module,
        inputs: Tensor,
        sites: Sequence[Site],
        target: Target,
        labels: Tensor | None = None,
    ) -> Attribution:
        """Contributions of one batch; see `Method.attribute`."""
        captum = _import_captum()
        nonlinear = tuple(captum.attr._core.deep_lift.SUPPORTED_NON_LINEAR)
        activations, output = _look(model, inputs, sites, nonlinear)
        frozen = target.freeze(output, labels)
        index = _index(target, output, frozen)
        value = target.value(output, frozen)
        check_finite(value, "the target")
        starts = [
            self.baseline.make(inputs, draw).expand_as(inputs)
            for draw in range(self.baseline.n_draws)
        ]
        by_key = {site.key: site for site in sites}
        contribution = {}
        for key, h in activations.items():
            parts = [_lift(captum, model, inputs, start, by_key[key], index) for start in starts]
            contribution[key] = torch.stack(parts).to(wide(h)).mean(0)
        with torch.no_grad():
            # TopK would choose anew at the baseline; Captum keeps the class of the input.
            ends = [_picked(run_model(model, start), index) for start in starts]
        return Attribution(contribution, activations, output, value, torch.stack(ends).mean(0))


def _import_captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise DependencyError(
            "DeepLift needs captum, which is not installed: pip install 'condec[bench]'. "
            "IntegratedGradients needs nothing and answers the same question"
        ) from error
    return captum


def _look(
    model: nn.Module, inputs: Tensor, sites: Sequence[Site], nonlinear: tuple[type, ...]
) -> tuple[dict[str, Tensor], Tensor]:
    """Activations in execution order, and the output, of a model that DeepLIFT can work on."""
    names = [name for name, module in model.named_modules() if isinstance(module, nonlinear)]
    in_place = [n for n in names if getattr(model.get_submodule(n), "inplace", False)]
    if in_place:
        raise ModelError(
            f"DeepLift: {', '.join(in_place[:3])} work in place, so that what goes in is lost; "
            "set their inplace to False"
        )
    calls: Counter[str] = Counter()
    watched = [*sites, *(Site(name) for name in names)]
    with record(model, watched) as tape, torch.no_grad():
        output = run_model(model, inputs).detach()
    for (name, _), made in tape.calls.items():
        calls[name] = max(calls[name], len(made))
    again = [name for name in dict.fromkeys([*(s.name for s in sites), *names]) if calls[name] > 1]
    if again:
        raise ModelError(
            f"DeepLift: {', '.join(again[:3])} are called more than once in a forward pass, which "
            "Captum cannot tell apart; give every call a module of its own"
        )
    own = replace(tape, sites=tuple(sites))
    records = {key: h.detach() for key, h in own.records.items()}
    check_samples(records, len(inputs))
    return records, output


def _index(target: Target, output: Tensor, frozen: Tensor | None) -> Tensor:
    """The one output of each sample that the target is, shape [sample]."""
    plain = not getattr(target, "probability", False) and output.ndim == 2
    if isinstance(target, Kept):
        return _index(target.target, output, frozen)
    match target:
        case Logit(index=int(index)) if plain:
            return torch.full((len(output),), index, device=output.device)
        case Label() | Predicted() if plain and frozen is not None:
            return frozen
        case TopK(k=1) if plain:
            return output.argmax(1)
    raise OptionError(
        f"DeepLift: the target must be one logit of each sample (Logit, Label, Predicted or "
        f"TopK(1), without probability); got {target}"
    )


def _picked(output: Tensor, index: Tensor) -> Tensor:
    return output.to(wide(output)).gather(1, index[:, None]).squeeze(1)


def _lift(
    captum: Any, model: nn.Module, inputs: Tensor, start: Tensor, site: Site, index: Tensor
) -> Tensor:
    method = captum.attr.LayerDeepLift(_Plain(model), model.get_submodule(site.name))
    moving = inputs.detach().clone().requires_grad_()
    with warnings.catch_warnings(), frozen_parameters(model), _without_traces(model):
        warnings.simplefilter("ignore")
        try:
            found = method.attribute(
                moving, start, index, attribute_to_layer_input=site.tap == "input"
            )
        except (AssertionError, RuntimeError, AttributeError) as error:
            raise ModelError(
                f"DeepLift: Captum cannot go through {type(model).__name__} to {site.key}: {error}"
            ) from error
    found = found if isinstance(found, Tensor) else found[0]
    return found.detach()


@contextmanager
def _without_traces(model: nn.Module) -> Iterator[None]:
    """Captum leaves what went in and out on the modules; taken away again."""
    before = [(module, set(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, names in before:
            for name in set(vars(module)) - names:
                delattr(module, name)


class _Plain(nn.Module):
    """A model whose output is its one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """The output's tensor."""
        output = first_tensor(self.model(inputs))
        assert output is not None  # run_model has asked before
        return output
