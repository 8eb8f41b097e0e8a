"""What lies after a site, run by itself.

One full forward pass of a batch keeps what is needed to run what lies after a site again, with
another activation there; several versions of the batch are stacked along the sample axis. There
are two ways to do it:

- ``graph``: the modules around the site are traced by `torch.fx`, and the graph is cut at the
  site. What does not depend on the site is kept from the full pass; what does is run again,
  module by module.
- ``replay``: the model's own code runs again, and modules that ended before the site are
  answered from memory. It needs no trace.

That a way works is tried once for every shape of batch, with two versions, before a `Suffix` is
handed out: with nothing changed, the output must be the model's own.

Examples
--------
>>> import torch
>>> from condec.sites import Site
>>> from condec.testing.models import small_resnet
>>> suffix = split_at(small_resnet(), torch.ones(2, 1, 5, 5), Site("block1"))
>>> bool(torch.equal(suffix.run(suffix.activation), suffix.output))
True
"""

from condec.network.suffix.split import Cut, Route, Suffix, split_at
from condec.network.suffix.versions import Change, Layout, Place

__all__ = ["Change", "Cut", "Layout", "Place", "Route", "Suffix", "split_at"]
