"""The links of the chain that packages bring, by the entry points that they declare.

.. code-block:: toml

    [project.entry-points."condec.links"]
    mine = "my_package:LINK"

`condec.run.links` has the links of condec itself. `condec.retina` comes in as any package does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from condec.basis import registry

if TYPE_CHECKING:
    from condec.run.run import Outcome, Run

LINKS: Final = ("collect", "stats", "fit", "control", "map", "explain", "report")
"""Links of condec itself, in order; those of packages come before the report."""
OF_IMAGES: Final = ("control", "map", "explain")
"""Links that are left out by default where a package has links for that kind of data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """A link of the chain that a package brings.

    `name` is that of the entry point, of the command ``condec NAME RUN``, and of its section
    ``[NAME]``. `function` does it in a `Run`, with the first line of its docstring as the
    command's help; it finds its section, of the frozen dataclass `options`, in
    ``run.plan.options[name]``. `kinds` are kinds of data (``"movie"`` of ``movie:FILE``) for which
    it is in the default chain, where control, map and explain then are not. `check` raises, before
    the first pass of a run, what keeps the link from being done with its model, data and plan.
    """

    name: str
    function: "Callable[[Run], Outcome]"
    options: type | None = None
    kinds: tuple[str, ...] = ()
    check: "Callable[[Run], object] | None" = None


@cache
def brought() -> dict[str, Link]:
    """Import the links that installed packages bring, by name.

    Raises DependencyError: one is declared and cannot be imported.
    """
    return {name: registry.find("condec.links", name) for name in registry.names("condec.links")}


def default_options() -> dict[str, Any]:
    """Return the sections of these links, by name, with their defaults."""
    return {name: link.options() for name, link in brought().items() if link.options is not None}


def link_names() -> tuple[str, ...]:
    """List all links, in the order of the chain."""
    return (*LINKS[:-1], *registry.names("condec.links"), LINKS[-1])


def default_links(source: str) -> tuple[str, ...]:
    """List what ``condec run`` does with data from a source, unless it is told.

    >>> default_links("folder:photos")
    ('collect', 'stats', 'fit', 'control', 'map', 'explain', 'report')
    """
    kind = source.partition(":")[0]
    more = {name for name, link in brought().items() if kind in link.kinds}
    left_out = OF_IMAGES if more else ()
    return tuple(n for n in link_names() if n in more or (n in LINKS and n not in left_out))
