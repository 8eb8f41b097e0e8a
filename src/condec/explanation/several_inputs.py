"""The flow of a target from mode to mode, as the mean over several inputs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from condec.attribution import Method
from condec.attribution.targets import TargetLike
from condec.basis.checks import at_least
from condec.basis.errors import DataError
from condec.data import UNLABELLED, as_inputs
from condec.explanation.graph import Graph, graph_of, mean_graph
from condec.explanation.one_input import Explanation, explainer
from condec.explanation.parts import strongest
from condec.modes import Modes


def flow(
    model: nn.Module, data: Any, modes: Modes | Iterable[Modes], *,
    method: Method | None = None, target: TargetLike | None = None, n_modes: int = 8,
    prove: bool = True,
) -> Graph:  # fmt: skip
    """Work out how a target flows from mode to mode, as the mean over inputs: those of a class.

    Each input is explained by itself (`explain`), twice: first to find the modes that are shown,
    the strongest of every site by their mean size (the larger of what one adds and takes), then for
    their flows.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; it is not changed.
    data : as `as_inputs` takes it
        All of these are used; their labels are those of targets that need one.
    modes : several Modes
        Of two sites or more, each of which lies behind the one before.
    method, target, n_modes, prove
        As in `explain`.

    Returns
    -------
    Graph
        Means, with their standard errors over the inputs.

    Raises
    ------
    OptionError, SiteError, ModelError
        As `explain` and `Explanation.graph`.
    DataError
        As `explain`; it names the input.

    Examples
    --------
    >>> import condec, tempfile
    >>> _ = torch.manual_seed(0)
    >>> from condec.testing.models import small_resnet
    >>> model, images = small_resnet(), torch.rand(20, 1, 8, 8)
    >>> out = tempfile.mkdtemp()
    >>> store = condec.collect(model, images, "block*", out=f"{out}/store", progress=False)
    >>> modes = []
    >>> for site in store.sites:
    ...     fitted = condec.fit(condec.PCA(n_modes=1), store.matrix(site))
    ...     modes.append(condec.Modes.build(fitted.dictionary, store, site))
    >>> graph = condec.flow(model, images[:3], modes)
    >>> graph.n_inputs, list(graph.edges)
    (3, ['from', 'to', 'flow', 'error'])
    """
    at_least("flow", 1, n_modes=n_modes)
    inputs = as_inputs(data)
    one = explainer(model, modes, method, target, n_modes=1, prove=prove)

    def explained(number: int) -> Explanation:
        label = UNLABELLED if inputs.labels is None else int(inputs.labels[number])
        try:
            return one(inputs.batch([number]), None if label == UNLABELLED else label)
        except DataError as error:
            raise DataError(f"flow: input {inputs.ids[number]!r}: {error}") from error

    first = [[at.sizes for at in explained(number).by_site] for number in range(len(inputs))]
    means = [torch.stack(sizes).mean(0) for sizes in zip(*first, strict=True)]
    shown = [strongest(sizes, n_modes) for sizes in means]
    graphs = []
    for number in range(len(inputs)):
        found = explained(number)
        by_site = [
            at.showing(these, others=len(at.sizes) > len(these))
            for at, these in zip(found.by_site, shown, strict=True)
        ]
        graphs.append(graph_of(found.batch, by_site, found.method))
    return mean_graph(graphs)
