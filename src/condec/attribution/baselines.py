"""Baselines: where the path of integrated gradients begins.

All live in the model's *input* space, after preprocessing: zero is the mean colour of an image
that was normalised, and not black.
"""

import math
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.options import Option, digest_of
from condec.data import as_inputs
from condec.network import PackedInput, hold

if TYPE_CHECKING:
    import condec.data


class Baseline(Option, ABC):
    """The start of the path of integrated gradients, in the model's input space."""

    __slots__ = ()

    @property
    def n_draws(self) -> int:
        """Number of baselines; results are averaged over them."""
        return 1

    @abstractmethod
    def make(self, inputs: Tensor, draw: int = 0) -> Tensor:
        """Make baseline number `draw` of a batch: [1, ...] for all samples, or [sample, ...]."""

    def start(self, model: nn.Module, inputs: Tensor, draw: int = 0) -> Tensor:
        """Make a baseline for a model: where inputs hold what must not move, that is put back."""
        return hold(model, inputs, self.make(inputs, draw))

    def for_model(self, model: nn.Module) -> "Baseline":
        """Return the baseline that a model takes in this one's place; itself for most."""
        return self

    @property
    def is_fitted(self) -> bool:
        """Tell whether the baseline needs nothing more from a data set."""
        return True

    def fit(self, data: "condec.data.Inputs") -> "Baseline":
        """Take what the baseline needs from a data set; itself if nothing."""
        return self


@final
@dataclass(frozen=True, slots=True)
class Zeros(Baseline):
    """Zero in the model's input space: after normalisation, the mean colour and not black.

    Embeddings of tokens have no such zero: of a language model it stands for `MeanToken`. What is
    literally zero there is ``Constant(0.0)``.
    """

    def for_model(self, model: nn.Module) -> Baseline:
        """Return the mean token, of models that embed tokens."""
        embeds = isinstance(model, PackedInput) and model.mean_token is not None
        return MeanToken() if embeds else self

    def make(self, inputs: Tensor, draw: int = 0) -> Tensor:
        """Return zeros of shape [1, ...]."""
        return torch.zeros_like(inputs[:1])


@final
@dataclass(frozen=True, slots=True)
class ZeroTokens(Baseline):
    """Zero embeddings; the last channel, which says where padding is, stays as it is.

    For prompts of several lengths, see `condec.models.language.LanguageModel`.
    """

    def make(self, inputs: Tensor, draw: int = 0) -> Tensor:
        """Return zeros and the last channel of the inputs, shape [sample, token, channel]."""
        start = torch.zeros_like(inputs)
        start[..., -1] = inputs[..., -1]
        return start


@final
@dataclass(frozen=True, slots=True)
class MeanToken(Baseline):
    """The mean of the embeddings of all tokens, at every position; padding stays as it is.

    Where language models begin if no baseline is named. It needs the model, and so works with
    whatever attributes; `make` alone raises OptionError, as does a model that embeds no tokens.
    """

    def make(self, inputs: Tensor, draw: int = 0) -> Tensor:
        """Raise OptionError: the mean is that of a model's tokens."""
        raise OptionError("MeanToken: the mean is of a model's tokens; use start(model, inputs)")

    def start(self, model: nn.Module, inputs: Tensor, draw: int = 0) -> Tensor:
        """Return the mean at every position, shape [1, ...], or [sample, ...] with padding."""
        mean = model.mean_token if isinstance(model, PackedInput) else None
        if mean is None:
            raise OptionError(
                f"MeanToken: {type(model).__name__} embeds no tokens; take another baseline, such "
                "as Zeros or Samples"
            )
        start = torch.zeros_like(inputs[:1])
        start[..., : len(mean)] = mean.to(start)
        return hold(model, inputs, start)


@final
@dataclass(frozen=True, slots=True)
class Constant(Baseline):
    """The same value everywhere, or one value a channel.

    Parameters
    ----------
    value : float or tuple of float
        In the model's input space; a tuple has one entry for each channel (axis 1). For black
        in an image normalised by mean and std, give ``-mean / std``.

    Raises
    ------
    OptionError
        A value is not finite; or, at the first batch, the inputs have another number of channels.
    """

    value: float | tuple[float, ...]

    def __post_init__(self) -> None:
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        if not all(map(math.isfinite, values)):
            raise OptionError(f"Constant: value must be finite; got {self.value}")

    def make(self, inputs: Tensor, draw: int = 0) -> Tensor:
        """Return the constant, shape [1, ...]."""
        values = inputs.new_tensor(self.value)
        if values.ndim == 1:
            if len(values) != inputs.shape[1]:
                raise OptionError(
                    f"Constant: {len(values)} values, but the inputs have {inputs.shape[1]} "
                    f"channels (shape {tuple(inputs.shape)})"
                )
            values = values.view(1, -1, *(1 for _ in inputs.shape[2:]))
        return values.expand(1, *inputs.shape[1:]).clone()


@final
@dataclass(frozen=True, slots=True)
class Blur(Baseline):
    """Each image, blurred by a Gaussian: what is left out is detail, not colour.

    Parameters
    ----------
    sigma : float
        Standard deviation in pixels; the kernel ends at 3 sigma, edges are repeated.

    Raises
    ------
    OptionError
        `sigma` is not positive; or, at the first batch, inputs without space axes.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise OptionError(f"Blur: sigma must be positive and finite; got {self.sigma}")

    def make(self, inputs: Tensor, draw: int = 0) -> Tensor:
        """Blur inputs of shape [sample, channel, *space]."""
        if inputs.ndim < 3:
            raise OptionError(
                "Blur: expected inputs of shape [sample, channel, *space]; got "
                f"{tuple(inputs.shape)}"
            )
        from scipy.ndimage import gaussian_filter

        sigmas = (0.0, 0.0, *(self.sigma for _ in inputs.shape[2:]))
        images = inputs.detach().double().cpu().numpy()
        blurred = gaussian_filter(images, sigmas, mode="nearest", truncate=3.0)
        return torch.from_numpy(blurred).to(inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FromData(Baseline):
    """Baselines that are taken from a data set, once; of shorter texts their last tokens."""

    n_samples: int = 256
    values: Tensor | None = field(default=None, repr=False, compare=False)
    digest: str = field(default="", init=False)

    def __post_init__(self) -> None:
        at_least(type(self).__name__, 1, n_samples=self.n_samples)
        object.__setattr__(self, "digest", digest_of(self.values))

    @abstractmethod
    def of(self, samples: Tensor) -> "Baseline":
        """Take what is needed from samples, shape [n, ...]."""

    @abstractmethod
    def one(self, draw: int) -> Tensor | None:
        """Return the values of baseline number `draw`, of the shape of one input, if there are."""

    def make(self, inputs: Tensor, draw: int = 0) -> Tensor:
        """Return what was taken, shape [1, ...]; OptionError where inputs have another shape."""
        return self._checked(self.one(draw), inputs)

    def start(self, model: nn.Module, inputs: Tensor, draw: int = 0) -> Tensor:
        """Make a baseline for a model; of texts as many last tokens as they have.

        DataError: the texts are longer than those that the baseline was taken from.
        """
        mean = model.mean_token if isinstance(model, PackedInput) else None
        values = self.one(draw)
        if mean is None or values is None or values.ndim != 2 or values.shape[1] < len(mean):
            return Baseline.start(self, model, inputs, draw)
        longest, length, dim = len(values), inputs.shape[1], len(mean)
        if length > longest:
            raise DataError(
                f"{type(self).__name__}: the baseline was taken from texts of {longest} tokens, "
                f"and this one has {length}; give one of at most {longest}, or another baseline"
            )
        start = torch.zeros_like(inputs[:1])
        start[..., :dim] = values[-length:, :dim].to(inputs)
        return hold(model, inputs, start)

    @property
    def is_fitted(self) -> bool:
        """Tell whether the values are there."""
        return self.values is not None

    def fit(self, data: "condec.data.Inputs") -> "Baseline":
        """Take what is needed from a data set, once; unreadable samples are left out."""
        if self.is_fitted:
            return self
        inputs = as_inputs(data)
        n_rows, found = min(self.n_samples, len(inputs)), []
        for row in torch.linspace(0, len(inputs) - 1, n_rows).round().long().tolist():
            with suppress(DataError):
                found.append(inputs.load(row))
        if not found:
            raise DataError(f"{inputs.name}: none of {n_rows} samples can be read for the baseline")
        return self.of(torch.stack(found))

    def _checked(self, values: Tensor | None, inputs: Tensor) -> Tensor:
        """Values of one baseline, shape [1, ...]."""
        name, shape = type(self).__name__, inputs.shape[1:]
        if values is None:
            raise OptionError(
                f"{name}: the baseline has no values yet. collect takes them from its data; "
                f"otherwise use {name}().fit(condec.as_inputs(data)) or give values=..."
            )
        if values.shape != shape:
            raise OptionError(
                f"{name}: expected values of the shape of one input, {tuple(shape)}; got "
                f"{tuple(values.shape)}"
            )
        return values[None].to(inputs)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mean(_FromData):
    """The mean input of a data set.

    Parameters
    ----------
    n_samples : int
        Samples that the mean is taken of, spread evenly over the data set; all, if there are fewer.
    values : Tensor of the shape of one input, optional
        `collect` takes it from its data; for `contribute` give it, or ``Mean().fit(data)``.
        OptionError at a batch where it is missing, or of another shape.
    """

    def of(self, samples: Tensor) -> "Baseline":
        """Take the mean, summed in float64."""
        return replace(self, values=samples.mean(0, dtype=torch.float64))

    def one(self, draw: int) -> Tensor | None:
        """Return the mean."""
        return self.values


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Samples(_FromData):
    """Several samples of a data set, results averaged over them: expected gradients.

    The number of passes grows by the number of baselines (Erion et al. 2021 draw one baseline
    and one point of the path at a time; here every baseline gets its whole path).

    Parameters
    ----------
    n_samples : int
        How many, spread evenly over the data set.
    values : Tensor of shape [n_samples, ...], optional
        `collect` takes them from its data; for `contribute` give them, or ``Samples().fit(data)``.
        OptionError at a batch where they are missing, or of another shape.
    """

    n_samples: int = 8

    def __post_init__(self) -> None:
        _FromData.__post_init__(self)
        if self.values is not None and len(self.values) != self.n_samples:
            raise OptionError(
                f"Samples: n_samples={self.n_samples}, but {len(self.values)} values are given"
            )

    @property
    def n_draws(self) -> int:
        """One for each of the samples."""
        return self.n_samples

    def of(self, samples: Tensor) -> "Baseline":
        """Take all of them."""
        return replace(self, n_samples=len(samples), values=samples)

    def one(self, draw: int) -> Tensor | None:
        """Return one of the samples."""
        return None if self.values is None else self.values[draw]
