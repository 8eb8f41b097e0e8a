"""Parts that packages bring, found by the entry points that they declare.

A package that declares, in its ``pyproject.toml``,

.. code-block:: toml

    [project.entry-points."condec.models"]
    mine = "my_package:load"

is asked for the model ``mine:...``. `condec.retina` comes in by the same door.
"""

from importlib import metadata
from typing import Any, Literal

from condec.basis.errors import DependencyError

Group = Literal["condec.models", "condec.data", "condec.links", "condec.pages"]
"""What can be brought: models, data, links of the chain, pages of the report."""


def names(group: Group) -> tuple[str, ...]:
    """List the names that installed packages declare in a group, sorted."""
    return tuple(sorted({point.name for point in metadata.entry_points(group=group)}))


def find(group: Group, name: str) -> Any:
    """Import what a package declares under a name; None where no package does.

    Raises DependencyError: it is declared and cannot be imported.
    """
    for point in metadata.entry_points(group=group, name=name):
        try:
            return point.load()
        except Exception as error:
            package = "" if point.dist is None else f" of the package {point.dist.name}"
            raise DependencyError(
                f"{group} {name!r}{package}: its entry point {point.value} does not import "
                f"({type(error).__name__}: {error}); mend that package, or uninstall it"
            ) from error
    return None
