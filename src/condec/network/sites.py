"""Sites: places in a network, by the names of modules, and which axes are units there.

A *site* is one place in a model where activations are read or edited. Its text form is

    GLOB[:input][#CALL][@LAYOUT[TOKENS]]

with LAYOUT one of channels, features, heads, tokens, positions, and TOKENS, where only some
count, a slice such as ``[1:]`` or one of ``[class]``, ``[register]``, ``[patch]``. Several
patterns are joined by commas, and ``preset:NAME`` is a whole set (`condec.network.presets`).
``*``, ``?`` and ``[1-4]`` match inside one dotted part of a module name, ``**`` also across dots.
``:input`` alone, without a GLOB, is the input of the model itself:

>>> Site.parse("blocks.3.attn.proj:input@heads(4)[1:]").units
Units(layout='heads', n_heads=4, tokens=(1, None))
>>> Site.parse("layer1.0.relu#1").key
'layer1.0.relu#1'
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import torch
from torch import nn

from condec.basis.checks import nearest
from condec.basis.errors import OptionError, SiteError
from condec.network.presets import KINDS, heads_above, preset_sites, tokens_above
from condec.network.units import LAYOUTS, Layout, Span, Units, read_span
from condec.network.unwrap import first_names, original

Tap = Literal["output", "input"]
Place = tuple[str, Tap, int]
"""A site without its units: a module's name, its side, and the number of its call."""

_PATTERN: Final = re.compile(
    r"(?P<glob>[^:#@]+|(?=:input))(?::(?P<tap>input|output))?(?:#(?P<call>\d{1,9}))?"
    r"(?:@(?P<layout>[a-z]+)(?:\((?P<heads>\d{1,9})\))?(?:\[(?P<tokens>[^\[\]]*)\])?)?"
)
_WILD: Final = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
_MOST_WILD: Final = 4
_PRESET: Final = re.compile(r"preset:(?P<name>[^@]*)(?:@(?P<layout>.*))?")


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model.

    Parameters
    ----------
    name : str
        Path of the module, as in ``model.named_modules()``; empty for the model itself.
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
    def place(self) -> Place:
        """Return where it is; a site that names no call means the only one."""
        return self.name, self.tap, self.call or 0

    @property
    def key(self) -> str:
        """Return the text form, unique in a model: that of stores and of the command line."""
        tap = ":input" if self.tap == "input" else ""
        call = "" if self.call is None else f"#{self.call}"
        units = "" if self.units is None else f"@{self.units}"
        return f"{self.name}{tap}{call}{units}"

    @staticmethod
    def parse(text: str) -> "Site":
        """Read the text form of one site; heads carry their number, tokens are a slice.

        OptionError where the text does not follow the grammar.
        """
        parsed = _match(text)
        heads, tokens = parsed["heads"], parsed["tokens"]
        if tokens in KINDS:
            raise OptionError(
                f"site {text!r}: which tokens are [{tokens}] is for a model to say; use "
                "find_sites, or write a slice such as [1:]"
            )
        span = None if tokens is None else read_span(tokens)
        return _site(parsed["glob"], parsed, int(heads) if heads else None, span)

    def __str__(self) -> str:
        return self.key


def find_sites(model: nn.Module, pattern: str | Site | Iterable[str | Site]) -> tuple[Site, ...]:
    """Find the sites of a model that match a pattern.

    Sites come in the order in which the modules were registered; `contribute` and `collect` put
    them in the order of execution. A module that stands in several places is one site, by the first
    of its names; each of them finds it.

    Parameters
    ----------
    model : torch.nn.Module
    pattern : str, Site, or several of them
        For example ``"layer[1-4].*"``, ``"blocks.*.attn.proj:input@heads"``,
        ``"blocks.*@features[patch]"`` or ``"preset:vit_heads"``. The number of heads, and
        which tokens are class, register and patch tokens, is taken from the nearest
        enclosing module that knows it, or written out: ``@heads(12)``, ``[1:]``.

    Raises
    ------
    SiteError
        No site is given, a pattern matches no module (the nearest names are listed), a preset
        does not fit (those that do are listed), or heads or tokens are not known.
    OptionError
        A pattern does not follow the grammar, or there is no such preset.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> [site.name for site in find_sites(small_resnet(), "block*")]
    ['block1', 'block2']
    """
    model = original(model)
    firsts = first_names(model)
    order = {name: i for i, name in enumerate(firsts)}
    found: dict[Site, None] = {}
    for part in _parts(pattern, model):
        sites = [part] if isinstance(part, Site) else _expand(model, part)
        for site in sites:
            if site.name not in order:
                raise _no_match(model, site.name)
            _refuse_heads_of_channels(model, site)
            found[replace(site, name=firsts[site.name])] = None
    if not found:
        raise SiteError("no site given; name at least one, for example 'layer[1-4].*'")
    return tuple(sorted(found, key=lambda site: order[site.name]))


def find_site(
    sites: Iterable[Site], wanted: "Site | str", units: Sequence[Units | None] = ()
) -> Site:
    """Find the one of `sites` that is meant: an equal site, its key, or its module's name.

    Any other spelling of the same place will do too: a layout left out, or written out (``@heads``,
    ``@features[patch]``) where the site has it, or has it by the `units` that are known of each of
    `sites`; and ``#0`` for the only call. SiteError where none, or more than one, fits.
    """
    sites = tuple(sites)
    known = dict(zip(sites, units or [None] * len(sites), strict=True))
    several: list[Site] = []
    for fits in (
        [s for s in sites if s == wanted or s.key == str(wanted)],
        [s for s in sites if _is_spelled(str(wanted), s, known[s])],
        [s for s in sites if s.name == str(wanted)],
    ):
        if len(fits) == 1:
            return fits[0]
        several += fits
    keys = [s.key for s in sites]
    near = nearest(str(wanted), keys, 3)
    problem = "names more than one site" if several else "is not among the sites"
    raise SiteError(f"{str(wanted)!r} {problem}; nearest of {len(keys)}: {', '.join(near)}")


def _is_spelled(text: str, site: Site, known: Units | None) -> bool:
    """Tell whether a text means a site, whose units may be known though it leaves them open."""
    parsed = _PATTERN.fullmatch(text)
    if parsed is None or (parsed["glob"], _tap(parsed)) != (site.name, site.tap):
        return False
    if parsed["call"] and int(parsed["call"]) != (site.call or 0):
        return False
    units = site.units or known
    if parsed["layout"] is None:
        return True
    if units is None or units.layout != parsed["layout"]:
        return False
    if parsed["heads"] and int(parsed["heads"]) != units.n_heads:
        return False
    return _same_tokens(parsed["tokens"], units.tokens)


def _tap(parsed: re.Match[str]) -> Tap:
    return "input" if parsed["tap"] == "input" else "output"


def _same_tokens(text: str | None, tokens: Span | None) -> bool:
    """Tell whether a text inside brackets means these tokens, as `tokens_above` gives kinds."""
    if text is None or tokens is None:
        return text is None and tokens is None
    first, last = tokens[0] or 0, tokens[1]
    if text in KINDS:
        return text == ("patch" if last is None else "register" if first else "class")
    span = read_span(text)
    return span is not None and (span[0] or 0, span[1]) == (first, last)


def match_sites(sites: Iterable[Site], patterns: str | Iterable[str]) -> tuple[Site, ...]:
    """Find those of `sites` that patterns fit, in their order, where there is no model.

    Patterns are keys of sites, or globs over keys or names of modules; a preset needs the model
    (`find_sites`). SiteError where one fits none of them.
    """
    sites = tuple(sites)
    found: set[Site] = set()
    for pattern in map(str, _parts(patterns)):
        regex = _regex(pattern)
        fits = {s for s in sites if s.key == pattern}
        fits = fits or {s for s in sites if _is_spelled(pattern, s, None)}
        fits = fits or {s for s in sites if regex.fullmatch(s.key) or regex.fullmatch(s.name)}
        if not fits:
            keys = ", ".join(site.key for site in sites)
            raise SiteError(f"{pattern!r} fits none of the sites; there are {keys}")
        found |= fits
    return tuple(site for site in sites if site in found)


def _parts(pattern: object, model: nn.Module | None = None) -> list[str | Site]:
    if isinstance(pattern, Site):
        return [pattern]
    if isinstance(pattern, nn.Module):  # some are iterable
        named = () if model is None else model.named_modules()
        name = next((repr(name) for name, module in named if module is pattern), "unknown here")
        raise SiteError(
            f"sites: expected the name of a module; got a {type(pattern).__name__} itself, whose "
            f"name is {name}"
        )
    if not isinstance(pattern, str):
        if not isinstance(pattern, Iterable):
            raise SiteError(f"sites: expected names of modules, or a Site; got {pattern!r}")
        return [part for several in pattern for part in _parts(several, model)]
    # Commas inside [...] belong to the glob.
    parts = [part.strip() for part in re.split(r",(?![^\[\]]*\])", pattern)]
    return [part for part in parts if part] or [pattern]


def _match(text: str) -> re.Match[str]:
    parsed = _PATTERN.fullmatch(text)
    if parsed is None or (parsed["layout"] and parsed["layout"] not in LAYOUTS):
        raise OptionError(
            f"site pattern {text!r}: expected GLOB[:input][#CALL][@LAYOUT] with LAYOUT one of "
            f"{', '.join(LAYOUTS)}, for example 'blocks.*.attn.proj:input@heads', or preset:NAME"
        )
    tokens = parsed["tokens"]
    if tokens is not None and tokens not in KINDS and read_span(tokens) is None:
        raise OptionError(
            f"site pattern {text!r}: expected tokens as a slice such as [1:], or one of "
            f"{', '.join(f'[{kind}]' for kind in KINDS)}; got [{tokens}]"
        )
    return parsed


def _site(name: str, parsed: re.Match[str], heads: int | None, tokens: Span | None) -> Site:
    layout = next((one for one in get_args(Layout) if one == parsed["layout"]), None)
    units = None if layout is None else Units(layout, heads, tokens)
    return Site(name, _tap(parsed), units, None if parsed["call"] is None else int(parsed["call"]))


def _expand(model: nn.Module, text: str) -> list[Site]:
    """Find the sites of one pattern or preset in a model."""
    if preset := _PRESET.fullmatch(text):
        parts = preset_sites(model, preset["name"], preset["layout"])
        return [site for part in parts for site in _expand(model, part)]
    parsed = _match(text)
    regex = _regex(parsed["glob"])
    names = [name for name in first_names(model) if name and regex.fullmatch(name)]
    names = names if parsed["glob"] else [""]
    if not names:
        raise _no_match(model, parsed["glob"])
    found = []
    for name in names:
        heads = int(parsed["heads"]) if parsed["heads"] else None
        if parsed["layout"] == "heads" and heads is None:
            heads = heads_above(model, name, parsed["tap"] or "output")
        tokens = parsed["tokens"]
        if tokens is not None:
            tokens = tokens_above(model, name, tokens) if tokens in KINDS else read_span(tokens)
        found.append(_site(name, parsed, heads, tokens))
    return found


def _refuse_heads_of_channels(model: nn.Module, site: Site) -> None:
    """Refuse heads of a convolution, which lie along its channels; the last axis is of places."""
    if site.units is None or site.units.layout != "heads":
        return
    module = dict(model.named_modules())[site.name]
    if isinstance(module, nn.modules.conv._ConvNd):
        raise SiteError(
            f"{site.key}: heads are counted along the last axis, and {type(module).__name__} has "
            f"places there; its features are channels. Name {site.name}"
            f"{':input' if site.tap == 'input' else ''}@channels instead"
        )


def _regex(glob: str) -> re.Pattern[str]:
    """Translate a glob over dotted names: ``*`` and ``?`` stay inside one part, ``**`` does not."""
    out = []
    for token in re.findall(r"\*\*|\*|\?|\[[^\]]+\]|.", glob, re.DOTALL):
        if token.startswith("[") and token[1:-1] not in ("", "!", "^"):
            no, body = ("^", token[2:-1]) if token[1] in "!^" else ("", token[1:-1])
            out.append(f"[{no}{re.sub('(.)-(.)|(.)', _escaped, body, flags=re.DOTALL)}]")
        else:
            out.append(_WILD.get(token) or re.escape(token))
    # What follows several that may each take anything is tried after all that they may take.
    parts = glob.replace("**", "").split(".")
    wild = max(glob.count("**"), *(part.count("*") for part in parts))
    try:
        if wild > _MOST_WILD:
            raise re.error(f"{wild} wildcards in one part, of {_MOST_WILD} at most")
        return re.compile("".join(out))
    except re.error as error:
        raise OptionError(
            f"site pattern {glob!r}: {error.msg}; expected a glob such as 'layer[1-4].*'"
        ) from error


def _escaped(found: re.Match[str]) -> str:
    """Return a letter, or a range of letters, as it stands in a set of a regex."""
    return "-".join(re.escape(letter) for letter in found.groups() if letter)


def _no_match(model: nn.Module, glob: str) -> SiteError:
    names = [name for name, _ in model.named_modules() if name]
    near = nearest(glob, names, 5)
    return SiteError(
        f"no module of {type(model).__name__} matches {glob!r}; nearest of {len(names)} names: "
        f"{', '.join(near)}. 'condec inspect' lists them all."
    )


def units_of(site: Site, activation: torch.Tensor) -> Units:
    """Return a site's units, read off the activation's rank where the site leaves them open."""
    return site.units or Units.default(activation.ndim)
