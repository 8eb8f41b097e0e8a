"""Core-readout models of openretina, which need not be imported, as models of the retina."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from condec.basis.checks import at_least
from condec.basis.errors import ModelError, OptionError


class OpenRetina(nn.Module):
    """A core-readout model for one recording session, from a clip to one rate a cell.

    Such a model maps a movie [sample, channel, time, y, x] to rates [sample, time, cell], and
    takes the session as an argument of its call. Here a clip gives the rates at its last frame.

    Parameters
    ----------
    model : torch.nn.Module
        Its ``readout`` is a `torch.nn.ModuleDict` with one readout a session. It is ``model``
        in the names of sites: ``"model.core.features.*.nonlin"`` are the rectified maps of each
        layer, [sample, channel, time, y, x].
    session : str, optional
        Session whose cells are read out; may be left out where there is one only.
    channels : int
        Colour channels of the movie that the model takes, all with the same grey clip.

    Raises
    ------
    ModelError, OptionError
        The model has no readout of sessions, or gives something else than such rates; a session
        that it lacks, or no session where there are several.
    """

    def __init__(self, model: nn.Module, session: str | None = None, *, channels: int = 1) -> None:
        super().__init__()
        self.model = model
        self.session = _session(model, session)
        at_least("OpenRetina", 1, channels=channels)
        self.channels = channels
        self.train(model.training)

    @property
    def scaling(self) -> tuple[float, float] | None:
        """Return mean and standard deviation of the training movie, where the model says so."""
        info = getattr(self.model, "data_info", {}).get("movie_norm_dict", {})
        stats: Mapping[str, Any] = info.get(self.session, info.get("default", {}))
        mean, std = stats.get("norm_mean"), stats.get("norm_std")
        return None if mean is None or std is None else (float(mean), float(std))

    def forward(
        self, clip: Float[Tensor, "sample time y x"] | Float[Tensor, "sample channel time y x"]
    ) -> Float[Tensor, "sample cell"]:
        """Rates at the last frame; a clip with channels of its own is handed on as it is."""
        if clip.ndim == 4:
            clip = clip.unsqueeze(1).expand(-1, self.channels, -1, -1, -1)
        rates: Tensor = self.model(clip, data_key=self.session)
        if rates.ndim != 3 or not rates.shape[1]:
            raise ModelError(
                f"OpenRetina: expected rates [sample, time, cell] from a clip of {clip.shape[2]} "
                f"frames; got shape {tuple(rates.shape)}. Give longer clips: the model's kernels "
                "in time, and the frames that it cuts, use up some"
            )
        return rates[:, -1]


def _session(model: nn.Module, session: str | None) -> str:
    readout = getattr(model, "readout", None)
    if not isinstance(readout, nn.ModuleDict) or not len(readout):
        raise ModelError(
            "OpenRetina: expected a core-readout model, with a readout for each session; "
            f"{type(model).__name__} has {type(readout).__name__} as its readout"
        )
    sessions = list(readout)
    if session is None and len(sessions) == 1:
        return sessions[0]
    if session not in sessions:
        given = "none is named" if session is None else f"there is no {session!r}"
        raise OptionError(f"OpenRetina: {given}; sessions are {', '.join(sessions)}")
    return session
