"""An explanation as a run folder keeps it: what a page shows, without the network's tensors."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from condec.basis.errors import CondecError
from condec.basis.records import short_repr
from condec.explanation.graph import Graph
from condec.explanation.one_input import Explanation

if TYPE_CHECKING:
    import numpy

_MOST_OUTPUTS: Final = 5
_FLOWING: Final = 4
"""Modes of a site whose flows are kept."""


@short_repr
@dataclass(frozen=True, eq=False, kw_only=True)
class ExplainedInput:
    """One input, explained; in ``analysis/explained/<input>.npz`` of a run folder.

    Attributes
    ----------
    name : str
        Id of a collected input, or name of a file.
    why : str
        Why it was chosen, an `ExampleKind`; empty where it was asked for.
    label, prediction : int
        -1 where there is none.
    outputs : tuple of (int, float)
        The largest outputs, by their classes; empty where the output is no matrix of classes.
    of : mapping
        What is explained, as from `Target.to_dict`.
    target, target_baseline : float
        As in `Explanation`.
    sites : tuple of mapping
        One a site: ``key``, ``cut``, ``signs`` (that its dictionaries describe), ``net`` (sum of
        its contributions), and ``parts``, the rows of `Explanation.to_frame`, each with ``label``
        and ``correlation`` (of the label that fits its mode best on training rows; -1 and NaN
        without), ``removed`` (fall of the target without it, see `PartCheck`) and ``shape`` of its
        place map.
    flows : mapping
        ``nodes`` and ``edges`` of `Graph`, by their columns, of the strongest modes; empty where
        there is none.
    places : Tensor of shape [number]
        The values of all place maps, one after another.
    picture : Tensor of shape [y, x, 3]
        uint8; of no pixels where the input is no picture.
    signal : Tensor of shape [time], or None
    words : tuple of str
        The tokens of a text.
    """

    name: str
    why: str
    label: int
    prediction: int
    outputs: tuple[tuple[int, float], ...]
    of: Mapping[str, Any]
    target: float
    target_baseline: float
    sites: tuple[Mapping[str, Any], ...]
    flows: Mapping[str, Any]
    places: Tensor
    picture: Tensor
    signal: Tensor | None = None
    words: tuple[str, ...] = ()

    @property
    def change(self) -> float:
        """Change of the target from the baseline to the input."""
        return self.target - self.target_baseline

    def graph(self) -> Graph | None:
        """Return how the parts of every site feed those of the next, where that is known."""
        import pandas

        if not self.flows:
            return None
        return Graph(pandas.DataFrame(self.flows["nodes"]), pandas.DataFrame(self.flows["edges"]))

    def maps(self) -> list[list[Tensor]]:
        """Return the place maps, by site and part; those of parts without places are scalars."""
        shapes = [[tuple(part["shape"]) for part in site["parts"]] for site in self.sites]
        sizes = [torch.Size(shape).numel() for several in shapes for shape in several]
        flat = iter(torch.split(self.places, sizes))
        return [[next(flat).view(shape) for shape in several] for several in shapes]


def keep(
    found: Explanation, name: str, of: Mapping[str, Any], *,
    why: str = "", label: int = -1, picture: Tensor | None = None,
) -> ExplainedInput:  # fmt: skip
    """Keep an explanation, and what happens when its parts are removed; see `ExplainedInput`."""
    rows = found.to_frame()
    rows["removed"] = nan
    with suppress(CondecError):  # the network cannot be run from a site on
        fell = found.check().frame.set_index(["site", "part"])["part_removed"]
        keys = zip(rows["site"], rows["part"], strict=True)
        rows["removed"] = [fell.get(key, nan) for key in keys]
    ground = found.ground(picture)
    sites, places = list[dict[str, Any]](), list[Tensor]()
    for at in found.by_site:
        parts = rows[rows["site"] == at.site.key].drop(columns=["site", "cut"]).to_dict("records")
        own = [part.places for part in at.parts] + [torch.zeros(())] * (len(parts) - len(at.parts))
        best = [part.best_label("train") for part in at.parts] + [(-1, nan)]
        for part, (number, correlation), place in zip(parts, best, own, strict=False):
            part |= {"label": number, "correlation": correlation, "shape": list(place.shape)}
        places += own
        signs = sorted({share.modes.sign for share in at.shares})
        net = float(at.contribution.sum())
        sites.append(
            {"key": at.site.key, "cut": at.cut, "signs": signs, "net": net, "parts": parts}
        )
    flows: dict[str, Any] = {}
    with suppress(CondecError):  # one site only, or a method without a path
        graph = found.graph(n_modes=_FLOWING)
        flows = {name: getattr(graph, name).to_dict("list") for name in ("nodes", "edges")}
    flat = torch.cat([place.flatten() for place in places]).float()
    return ExplainedInput(
        name=name, why=why, label=label, prediction=found.prediction, outputs=_outputs(found),
        of=dict(of), target=found.target, target_baseline=found.target_baseline,
        sites=tuple(sites), flows=flows, places=flat,
        picture=_pixels(ground.picture), words=ground.text or (),
        signal=None if ground.signal is None else torch.from_numpy(ground.signal),
    )  # fmt: skip


def _pixels(picture: "numpy.ndarray | None") -> Tensor:
    if picture is None:
        return torch.zeros(0, 0, 3, dtype=torch.uint8)
    return torch.from_numpy(picture).expand(-1, -1, 3).contiguous()


def _outputs(found: Explanation) -> tuple[tuple[int, float], ...]:
    output = found.batch.output
    if found.prediction < 0 or output.ndim != 2:
        return ()
    largest = output[0].double().topk(min(_MOST_OUTPUTS, output.shape[1]))
    return tuple(zip(largest.indices.tolist(), largest.values.tolist(), strict=True))
