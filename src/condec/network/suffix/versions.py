"""Several versions of a batch in one pass: what both ways to run a suffix share."""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from condec.network.module_io import first_tensor, with_first_tensor
from condec.network.sites import Site

CallKey = tuple[str, int]
"""A module's name and the number of its call in one forward pass."""
Layout = Literal["views", "copies", "apart"]
Change = Callable[[Tensor], Tensor]
"""Makes another activation of one; it does not write to what it gets."""


@dataclass(frozen=True)
class Place:
    """A site without its units: a module, one call of it, and which side of it."""

    name: str
    tap: str
    call: int

    @staticmethod
    def of(site: Site) -> "Place":
        """Where a site is; one that names no call means the only one."""
        return Place(site.name, site.tap, site.call or 0)


@dataclass(frozen=True, eq=False)
class Pass:
    """One run of a suffix: the activation of all versions, and how the rest is made for them.

    Attributes
    ----------
    activation : Tensor of shape [n_versions * n_samples, ...]
    n_samples, n_versions : int
    layout : {"views", "copies", "apart"}
    changes : dict of Place to Change
        At later places.
    watch : Watch, optional
    """

    activation: Tensor
    n_samples: int
    n_versions: int
    layout: Layout
    changes: Mapping[Place, Change] = field(default_factory=dict)
    watch: "Watch | None" = None

    def spread(self, value: Any, *, silent: bool = False) -> Any:
        """The same structure for all versions: each of its tensors with a sample axis repeated.

        Of silent ones only the shape counts.
        """
        return map_tensors(value, lambda leaf: self._repeat(leaf, silent=silent))

    def at_site(self, value: Any, *, is_input: bool = False) -> Any:
        """What stands at the site, (args, kwargs) at an input, with the activation exchanged."""
        given = self.activation

        def exchange(_: Tensor) -> Tensor:
            return given

        # Exchanged first: an output may hold the same tensor twice.
        value = change_input(value, exchange) if is_input else change_first(value, exchange)
        return map_tensors(
            value, lambda leaf: leaf.clone() if leaf is given else self._repeat(leaf)
        )

    def _repeat(self, leaf: Tensor, *, silent: bool = False) -> Tensor:
        n, rest = self.n_versions, leaf.shape[1:]
        if leaf.ndim == 0 or len(leaf) != self.n_samples:
            return leaf.clone()
        if silent or (self.layout == "views" and n > 1):
            return leaf[:1].expand(n * len(leaf), *rest)
        return leaf.repeat(n, *(1 for _ in rest))


class Way(ABC):
    """Contract: one way to run what lies after a site, for one batch."""

    @abstractmethod
    def run(self, this: Pass) -> Tensor:
        """Output of the model for all versions.

        Raises
        ------
        ModelError
            The model fails, or goes another way than it did.
        """

    @abstractmethod
    def lean(self, used: frozenset[Hashable]) -> "Way":
        """The same without values that no operation of a pass works on, as `Watch` noted them."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, notes which kept values operations work on, and how much memory they need.

    Attributes
    ----------
    used : set
        Keys of kept values that an operation worked on.
    most_bytes : int
        Largest memory of one operation's tensors, parameters aside.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: set[Hashable] = set()
        self.most_bytes = 0
        self._keys: dict[int, set[Hashable]] = {}
        self._bytes: dict[Hashable, int] = {}
        self._kept: list[tuple[Tensor, int]] = []
        parts = [*model.parameters(), *model.buffers()]
        self._own = {address(part) for part in _strided(parts)}

    @property
    def held_bytes(self) -> int:
        """Memory of the kept values that are used, made for all versions."""
        return sum(self._bytes.get(key, 0) for key in self.used)

    @property
    def is_written(self) -> bool:
        """Whether an operation wrote to a kept value."""
        return any(leaf._version != version for leaf, version in self._kept)

    def note(self, key: Hashable, value: Any) -> None:
        """Remember where the tensors of a kept value are."""
        for leaf in tensors_of(value):
            # Kept, for memory that is free again would be taken for this value's.
            self._kept.append((leaf, leaf._version))
            self._keys.setdefault(address(leaf), set()).add(key)
            self._bytes[key] = self._bytes.get(key, 0) + leaf.untyped_storage().nbytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = _strided((args, kwargs))
        for leaf in given:
            self.used |= self._keys.get(address(leaf), set())
        sizes = {address(leaf): leaf.untyped_storage().nbytes() for leaf in given + _strided(out)}
        total = sum(size for where, size in sizes.items() if where not in self._own)
        self.most_bytes = max(self.most_bytes, total)
        return out


def address(tensor: Tensor) -> int:
    """Where a tensor's memory begins."""
    return tensor.untyped_storage().data_ptr()


def _strided(value: Any) -> list[Tensor]:
    leaves = _pytree.tree_leaves(value)
    return [x for x in leaves if isinstance(x, Tensor) and x.layout == torch.strided]


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of a structure, those in dataclasses too."""
    found: list[Tensor] = []

    def note(leaf: Tensor) -> Tensor:
        found.append(leaf)
        return leaf

    map_tensors(value, note)
    return found


def thin(leaf: Tensor) -> Tensor:
    """A tensor of the same shape with memory for one sample."""
    return leaf if leaf.ndim == 0 else leaf[:1].clone().expand(leaf.shape)


def change_first(value: Any, change: Change) -> Any:
    """An output with its one tensor changed."""
    tensor = first_tensor(value)
    return value if tensor is None else with_first_tensor(value, change(tensor))


def change_input(value: tuple[Any, Any], change: Change) -> tuple[Any, Any]:
    """Arguments and keyword arguments with the one tensor among them changed."""
    args, kwargs = value
    if first_tensor(args) is None:
        return args, change_first(kwargs, change)
    return change_first(args, change), kwargs


def map_tensors(value: Any, change: Change) -> Any:
    """The same structure, each of its tensors changed; one that stands there twice, once."""
    changed: dict[int, Tensor] = {}

    def leaf_of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
                return leaf
            made = copy.copy(leaf)
            for part in dataclasses.fields(leaf):
                part_of = _pytree.tree_map(leaf_of, getattr(leaf, part.name))
                object.__setattr__(made, part.name, part_of)
            return made
        if id(leaf) not in changed:
            changed[id(leaf)] = change(leaf)
        return changed[id(leaf)]

    return _pytree.tree_map(leaf_of, value)
