"""Parts that packages bring, found by the entry points that they declare.

A package that declares, in its ``pyproject.toml``,

.. code-block:: toml

    [project.entry-points."condec.models"]
    mine = "my_package:load"

is asked for the model ``mine:...``. `condec.retina` comes in by the same door.
"""

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any, Literal

from condec.basis.checks import nearest
from condec.basis.errors import DependencyError, OptionError

Group = Literal["condec.models", "condec.data", "condec.links", "condec.pages"]
"""What can be brought: models, data, links of the chain, pages of the report."""


@cache
def _points(group: Group) -> tuple[metadata.EntryPoint, ...]:
    """Look up what installed packages declare, once: it reads a file of each of them."""
    return tuple(metadata.entry_points(group=group))


def names(group: Group) -> tuple[str, ...]:
    """List the names that installed packages declare in a group, sorted."""
    return tuple(sorted({point.name for point in _points(group)}))


def find(group: Group, name: str) -> Any:
    """Import what a package declares under a name; None where no package does.

    Raises DependencyError: it is declared and cannot be imported.
    """
    for point in (one for one in _points(group) if one.name == name):
        try:
            return point.load()
        except Exception as error:
            package = "" if point.dist is None else f" of the package {point.dist.name}"
            raise DependencyError(
                f"{group} {name!r}{package}: its entry point {point.value} does not import "
                f"({type(error).__name__}: {error}); mend that package, or uninstall it"
            ) from error
    return None


def opener(what: str, text: str, here: Mapping[str, Any], group: Group) -> Any:
    """Return what opens ``NAME:REST``: as a table of condec has it, else as a package brings it.

    OptionError, which lists what there is, where neither has the name, or it lacks its rest.
    """
    name, _, rest = text.partition(":")
    written = next((one for one in here if one.partition(":")[0] == name), None)
    if written is None and (found := find(group, name)) is not None:
        return found
    if written is not None and bool(rest) == (":" in written):
        return here[written]
    known = (*here, *(f"{one}:..." for one in names(group)))
    near = nearest(name, (one.partition(":")[0] for one in known), cutoff=0.6)
    hint = f". Did you mean {near[0]!r}?" if near and near[0] != name else ""
    raise OptionError(f"{what} {text!r}: expected one of {', '.join(known)}{hint}")
