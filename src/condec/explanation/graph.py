"""Graphs of an output: how much of the target flows from every part of a site to those of the next.

For the parts m at a site A and n at the next one, B, with shares w of the activations there and the
gradient g of the target at B,

    flow(m, n) = sum over steps of (dh_A w_m) . d[ g . (w_n h_B) ] / dh_A

(g and w held fixed). Where B cuts the network, the flows from m make what m contributes, to
rounding where both are sums over the same points (uniform ones); where A does, the flows to n tend
to what n contributes as steps grow. What lacks is a node of its own: at a site that does not cut it
goes past the site, elsewhere the quadrature misses it. So everything adds up.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from condec.attribution import Contributions, Method
from condec.basis.errors import DataError, OptionError, SiteError
from condec.basis.records import short_repr
from condec.explanation.parts import SiteExplanation
from condec.explanation.segments import Segment, carry
from condec.modes import label_name

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

TARGET: Final = "target"
PAST, MISSED = "past it", "quadrature"
"""What no part of a site has of the target: at a site that does not cut the network, at others."""


@short_repr
@dataclass(frozen=True, eq=False)
class Graph:
    """How a target comes about: flows between the parts of consecutive sites, and into the target.

    Made by `Explanation.graph` for one input, by `condec.flow` as the mean over several.

    Attributes
    ----------
    nodes : pandas.DataFrame
        One row a part of a site, in execution order; the target last. Columns: name (site and
        part), site, part (``"past it"``: what flows past a site that does not cut the network;
        ``"quadrature"``: what is missed at others), label (that a mode goes with most in its store;
        -1 without), adds, takes, net (unit: that of the target), error (standard error of net over
        the inputs; NaN for one).
    edges : pandas.DataFrame
        Columns: from, to (names of nodes), flow (unit: that of the target), error.
    n_inputs : int
    """

    nodes: "pandas.DataFrame"
    edges: "pandas.DataFrame"
    n_inputs: int = 1

    def figure(self, names: Sequence[str] | None = None, *, width: float = 10.0) -> "Figure":
        """Draw it from left to right, a column a site, at most 40 nodes.

        Nodes are as high as what flows through them, edges as wide; colours tell what raises the
        target from what lowers it. The figure says which share of all flow it leaves out. `names`
        are those of labels, `width` is in inches. OptionError for more than 13 sites, or a width
        below 3.
        """
        from condec.figures.flows import flow_figure

        found = ["" if at < 0 else label_name(names, at) for at in self.nodes["label"].tolist()]
        if names is None:
            found = [text and f"label {text}" for text in found]
        return flow_figure(self.nodes.assign(goes_with=found), self.edges, self.n_inputs, width)


def graph_of(batch: Contributions, by_site: Sequence[SiteExplanation], method: Method) -> Graph:
    """Work out the flows between consecutive sites of one input.

    Raises
    ------
    OptionError
        Fewer than two sites, or the method does not go along a path of the input.
    SiteError
        Two sites are one place, or the later one does not depend on the earlier one.
    DataError
        The contributions were not made by `condec.contribute`.
    """
    import pandas

    if len(by_site) < 2:
        raise OptionError(
            f"graph: expected modes of two sites or more; got {len(by_site)}: "
            f"{', '.join(at.site.key for at in by_site)}. Explain with modes of a later one, too"
        )
    if batch.setup is None:
        raise DataError("graph: these contributions do not say what they were made from")
    pairs = list(itertools.pairwise(by_site))
    for a, b in pairs:
        if a.site.place == b.site.place:
            raise SiteError(
                f"graph: {a.site.key} and {b.site.key} are the same place, so nothing flows from "
                "one to the other; explain with modes of one of them"
            )
    shares = [torch.stack([part.weights for part in at.parts]) for at in by_site]
    segments = [Segment(a.site, b.site, w) for (a, b), w in zip(pairs, shares[1:], strict=True)]
    with torch.inference_mode(False):
        carried = carry(batch.setup, method, segments)
    change = float(batch.target[0]) - float(batch.target_baseline[0])
    rows, edges = list[tuple[object, ...]](), list[tuple[str, str, float]]()
    for at in by_site:
        rows += [
            (
                _name(at, part.name),
                at.site.key,
                part.name,
                part.best_label()[0],
                part.adds,
                part.takes,
                part.net,
            )
            for part in at.parts
        ]
        rest = float(_nets(at, change)[-1])
        sizes = max(rest, 0.0), min(rest, 0.0), rest
        rows.append((_names(at)[-1], at.site.key, MISSED if at.cut else PAST, -1, *sizes))
    rows.append((TARGET, TARGET, TARGET, -1, max(change, 0.0), min(change, 0.0), change))
    for (a, b), w, v in zip(pairs, shares[:-1], carried, strict=True):
        edges += _between(a, b, w.flatten(1) @ v.flatten(1).T, change)
    last = by_site[-1]
    into = zip(_names(last), _nets(last, change).tolist(), strict=True)
    edges += [(name, TARGET, value) for name, value in into]
    columns = ["name", "site", "part", "label", "adds", "takes", "net"]
    nodes = pandas.DataFrame(rows, columns=columns)
    flows = pandas.DataFrame(edges, columns=["from", "to", "flow"])
    return Graph(nodes.assign(error=math.nan), flows.assign(error=math.nan))


def _between(
    a: SiteExplanation, b: SiteExplanation, flows: Tensor, change: float
) -> list[tuple[str, str, float]]:
    """List the flows between two sites, with what goes past the one or the other, or is missed."""
    whole = flows.new_zeros(len(flows) + 1, flows.shape[1] + 1)
    whole[:-1, :-1] = flows
    leaves, comes = _nets(a, change), _nets(b, change)
    whole[:-1, -1] = leaves[:-1] - flows.sum(1)
    whole[-1, :-1] = comes[:-1] - flows.sum(0)
    whole[-1, -1] = comes[-1] - whole[:-1, -1].sum()
    return [
        (start, end, float(whole[m, n]))
        for m, start in enumerate(_names(a))
        for n, end in enumerate(_names(b))
    ]


def mean_graph(graphs: Sequence[Graph]) -> Graph:
    """Average graphs of the same nodes, with the standard errors of the means."""
    found = {}
    for which, columns in (("nodes", ["adds", "takes", "net"]), ("edges", ["flow"])):
        frames = [getattr(graph, which) for graph in graphs]
        values = torch.stack([torch.tensor(frame[columns].to_numpy()) for frame in frames])
        mean = frames[0].copy()
        mean[columns] = values.mean(0).numpy()
        spread = values[..., -1].std(0) if len(graphs) > 1 else values[0, :, -1] * math.nan
        mean["error"] = (spread / math.sqrt(len(graphs))).numpy()
        found[which] = mean
    return Graph(**found, n_inputs=len(graphs))


def _nets(at: SiteExplanation, change: float) -> Tensor:
    """Return what every part of a site contributes, and last what they lack of the change."""
    nets = torch.tensor([part.net for part in at.parts], dtype=torch.float64)
    return torch.cat([nets, change - nets.sum(0, keepdim=True)])


def _names(at: SiteExplanation) -> list[str]:
    return [_name(at, name) for name in (*(p.name for p in at.parts), MISSED if at.cut else PAST)]


def _name(at: SiteExplanation, part: str) -> str:
    return f"{at.site.key}: {part}"
