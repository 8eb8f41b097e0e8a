"""Where in a network to look: names of modules, and which axes are units there.

A *site* is one place in a model where activations are read or edited. Its text form is

    GLOB[:input][#CALL][@channels|@features|@heads|@tokens|@positions]

with several patterns joined by commas. ``*``, ``?`` and ``[1-4]`` match inside one
dotted part of a module name, ``**`` also across dots:

>>> Site.parse("blocks.3.attn.proj:input@heads(4)")
Site(name='blocks.3.attn.proj', tap='input', units=Units(layout='heads', n_heads=4), call=None)
>>> Site.parse("layer1.0.relu#1").key
'layer1.0.relu#1'
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from condec.errors import OptionError, SiteError

Tap = Literal["output", "input"]
Layout = Literal["channels", "features", "heads", "tokens", "positions"]
LAYOUTS: Final[tuple[str, ...]] = get_args(Layout)

_PATTERN: Final = re.compile(
    r"(?P<glob>[^:#@]+)(?::(?P<tap>input|output))?(?:#(?P<call>\d+))?"
    r"(?:@(?P<layout>[a-z]+)(?:\((?P<heads>\d+)\))?)?"
)
_HEAD_COUNTS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")


@dataclass(frozen=True, slots=True)
class Units:
    """Which axes of an activation are units; all others but ``sample`` are positions.

    Parameters
    ----------
    layout : {"channels", "features", "heads", "tokens", "positions"}
        ``channels``: (sample, channel, *space), one unit a channel.
        ``features``: (sample, ..., feature), one unit an entry of the last axis.
        ``heads``: (sample, token, head * dim), one unit a head.
        ``tokens``: (sample, token, feature), one unit a token.
        ``positions``: (sample, channel, *space), one unit a place, row by row.
    n_heads : int, optional
        Number of heads; for ``heads`` only.

    Raises
    ------
    OptionError
        Unknown layout, or a number of heads missing, superfluous or below 1.
    """

    layout: Layout
    n_heads: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise OptionError(
                f"Units: layout must be one of {', '.join(LAYOUTS)}; got {self.layout!r}"
            )
        if (self.layout == "heads") != (self.n_heads is not None):
            raise OptionError(
                "Units: n_heads belongs to layout 'heads' and to no other; got "
                f"layout={self.layout!r}, n_heads={self.n_heads}"
            )
        if self.n_heads is not None and self.n_heads < 1:
            raise OptionError(f"Units: n_heads must be at least 1; got {self.n_heads}")

    @staticmethod
    def default(ndim: int) -> "Units":
        """Layout read off the rank of an activation: 4 and above are channels, 2 and 3 features."""
        return Units("channels") if ndim >= 4 else Units("features")

    def expand(self, activation: Tensor) -> Tensor:
        """View in which every unit is one index of the unit axes (splits heads from their dims)."""
        self._check(activation.shape)
        if self.n_heads is None:
            return activation
        return activation.reshape(*activation.shape[:-1], self.n_heads, -1)

    def axes(self, ndim: int) -> tuple[int, ...]:
        """Unit axes of an expanded activation of `ndim` axes."""
        match self.layout:
            case "features":
                return (ndim - 1,)
            case "heads":
                return (ndim - 2,)
            case "positions":
                return tuple(range(2, ndim))
            case _:
                return (1,)

    def count(self, shape: Sequence[int]) -> int:
        """Number of units in an activation of `shape` (with its sample axis)."""
        self._check(shape)
        if self.n_heads is not None:
            return self.n_heads
        number = 1
        for axis in self.axes(len(shape)):
            number *= int(shape[axis])
        return number

    def positions(self, shape: Sequence[int]) -> int:
        """Number of entries of one sample's activation that belong to one unit."""
        entries = 1
        for size in shape[1:]:
            entries *= int(size)
        return entries // max(self.count(shape), 1)

    def broadcast(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Lay one value a unit over an activation of `shape`, ready to broadcast.

        Parameters
        ----------
        values : Tensor of shape [unit]
        shape : shape of the activation, with its sample axis

        Returns
        -------
        Tensor with as many axes as the activation; axes that are not units have size 1.
        """
        n_units = self.count(shape)
        if values.shape != (n_units,):
            raise OptionError(
                f"{self.layout}: expected one value for each of {n_units} units; "
                f"got shape {tuple(values.shape)}"
            )
        if self.n_heads is not None:
            values = values.repeat_interleave(int(shape[-1]) // self.n_heads)
            return values.view(*(1 for _ in shape[:-1]), -1)
        axes = self.axes(len(shape))
        return values.view(*(int(size) if i in axes else 1 for i, size in enumerate(shape)))

    def _check(self, shape: Sequence[int]) -> None:
        lowest = {"features": 2, "channels": 2, "heads": 3, "tokens": 3, "positions": 3}
        if len(shape) < lowest[self.layout]:
            raise SiteError(
                f"layout {self.layout!r} needs an activation of at least {lowest[self.layout]} "
                f"axes; got shape {tuple(shape)}. Choose another layout after '@'."
            )
        if self.n_heads is not None and int(shape[-1]) % self.n_heads:
            raise SiteError(
                f"layout 'heads': the last axis ({shape[-1]}) is not a multiple of "
                f"{self.n_heads} heads; got shape {tuple(shape)}"
            )

    def __str__(self) -> str:
        return self.layout if self.n_heads is None else f"{self.layout}({self.n_heads})"


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model.

    Parameters
    ----------
    name : str
        Path of the module, as in ``model.named_modules()``.
    tap : {"output", "input"}
        What the module returns, or its first tensor argument.
    units : Units, optional
        Which axes are units. By default read off the rank of the activation.
    call : int, optional
        Which call of the module in one forward pass, from 0; needed where a module is
        called more than once.
    """

    name: str
    tap: Tap = "output"
    units: Units | None = None
    call: int | None = None

    @property
    def key(self) -> str:
        """Text form, unique in a model: what stores, reports and the command line use."""
        tap = ":input" if self.tap == "input" else ""
        call = "" if self.call is None else f"#{self.call}"
        units = "" if self.units is None else f"@{self.units}"
        return f"{self.name}{tap}{call}{units}"

    @staticmethod
    def parse(text: str) -> "Site":
        """Read the text form of one site; heads must carry their number.

        Raises
        ------
        OptionError
            The text does not follow the grammar.
        """
        parsed = _match(text)
        heads = parsed["heads"]
        units = parsed["layout"] and Units(_layout(parsed), int(heads) if heads else None)
        return Site(parsed["glob"], _tap(parsed), units or None, _call(parsed))

    def __str__(self) -> str:
        return self.key


def find_sites(model: nn.Module, pattern: str | Site | Iterable[str | Site]) -> tuple[Site, ...]:
    """Sites of a model that match a pattern.

    Parameters
    ----------
    model : torch.nn.Module
    pattern : str, Site, or several of them
        For example ``"layer[1-4].*"`` or ``"blocks.*.attn.proj:input@heads"``. The number
        of heads is taken from the nearest enclosing module that knows it, or written out:
        ``@heads(12)``.

    Returns
    -------
    tuple of Site
        In the order in which the modules were registered, which is the order of execution
        in the usual networks; `contribute` and `collect` put them in true execution order.

    Raises
    ------
    SiteError
        A pattern matches no module (the nearest names are listed), or the number of heads
        is not known.
    OptionError
        A pattern does not follow the grammar.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> [site.name for site in find_sites(small_resnet(), "block*")]
    ['block1', 'block2']
    """
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    found: dict[Site, None] = {}
    for part in _parts(pattern):
        sites = [part] if isinstance(part, Site) else _expand(model, part)
        for site in sites:
            if site.name not in order:
                raise _no_match(model, site.name)
            found[site] = None
    return tuple(sorted(found, key=lambda site: order[site.name]))


def find_site(sites: Iterable[Site], wanted: "Site | str") -> Site:
    """The one of `sites` that is meant: an equal site, its key, or its module's name.

    Raises
    ------
    SiteError
        None, or more than one, fits.
    """
    sites = tuple(sites)
    for fits in (
        [s for s in sites if s == wanted or s.key == str(wanted)],
        [s for s in sites if s.name == str(wanted)],
    ):
        if len(fits) == 1:
            return fits[0]
    keys = [s.key for s in sites]
    near = difflib.get_close_matches(str(wanted), keys, n=3, cutoff=0.0)
    problem = "names more than one site" if fits else "is not among the sites"
    raise SiteError(f"{str(wanted)!r} {problem}; nearest of {len(keys)}: {', '.join(near)}")


def _parts(pattern: str | Site | Iterable[str | Site]) -> list[str | Site]:
    if isinstance(pattern, Site):
        return [pattern]
    if not isinstance(pattern, str):
        return [part for several in pattern for part in _parts(several)]
    # Commas inside [...] belong to the glob.
    parts = [part.strip() for part in re.split(r",(?![^\[\]]*\])", pattern)]
    return [part for part in parts if part] or [pattern]


def _match(text: str) -> re.Match[str]:
    parsed = _PATTERN.fullmatch(text)
    if parsed is None or (parsed["layout"] and parsed["layout"] not in LAYOUTS):
        raise OptionError(
            f"site pattern {text!r}: expected GLOB[:input][#CALL][@LAYOUT] with LAYOUT one of "
            f"{', '.join(LAYOUTS)}, for example 'blocks.*.attn.proj:input@heads'"
        )
    return parsed


def _tap(parsed: re.Match[str]) -> Tap:
    return "input" if parsed["tap"] == "input" else "output"


def _layout(parsed: re.Match[str]) -> Layout:
    return next(layout for layout in get_args(Layout) if layout == parsed["layout"])


def _call(parsed: re.Match[str]) -> int | None:
    return None if parsed["call"] is None else int(parsed["call"])


def _expand(model: nn.Module, text: str) -> list[Site]:
    parsed = _match(text)
    regex = re.compile(_glob_to_regex(parsed["glob"]))
    names = [name for name, _ in model.named_modules() if name and regex.fullmatch(name)]
    if not names:
        raise _no_match(model, parsed["glob"])
    return [Site(n, _tap(parsed), _units(model, n, parsed), _call(parsed)) for n in names]


def _units(model: nn.Module, name: str, parsed: re.Match[str]) -> Units | None:
    if not parsed["layout"]:
        return None
    if parsed["layout"] != "heads":
        return Units(_layout(parsed))
    return Units("heads", int(parsed["heads"]) if parsed["heads"] else _heads_above(model, name))


def _heads_above(model: nn.Module, name: str) -> int:
    parts = name.split(".")
    for end in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        for attribute in _HEAD_COUNTS:
            heads = getattr(module, attribute, None)
            if isinstance(heads, int):
                return heads
    raise SiteError(
        f"{name}: no enclosing module says how many heads it has (looked for "
        f"{', '.join(_HEAD_COUNTS)}); write the number, for example '{name}@heads(12)'"
    )


def _glob_to_regex(glob: str) -> str:
    """Glob over dotted names: ``*`` and ``?`` stay inside one part, ``**`` does not."""
    out = []
    for token in re.findall(r"\*\*|\*|\?|\[[^\]]*\]|.", glob):
        match token:
            case "**":
                out.append(".*")
            case "*":
                out.append("[^.]*")
            case "?":
                out.append("[^.]")
            case _ if token.startswith("[") and token.endswith("]") and len(token) > 2:
                body = token[1:-1].replace("\\", r"\\")
                out.append(f"[^{body[1:]}]" if body.startswith("!") else f"[{body}]")
            case _:
                out.append(re.escape(token))
    return "".join(out)


def _no_match(model: nn.Module, glob: str) -> SiteError:
    names = [name for name, _ in model.named_modules() if name]
    near = difflib.get_close_matches(glob, names, n=5, cutoff=0.0)
    return SiteError(
        f"no module of {type(model).__name__} matches {glob!r}; nearest of {len(names)} names: "
        f"{', '.join(near)}. 'condec inspect' lists them all."
    )


def units_of(site: Site, activation: torch.Tensor) -> Units:
    """Units of a site, read off the activation's rank where the site leaves them open."""
    return site.units or Units.default(activation.ndim)
