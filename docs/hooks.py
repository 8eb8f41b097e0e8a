"""What the site needs beyond Markdown: formulas drawn at build time, doctests set as code.

Formulas are written ``$...$`` and ``$$...$$`` on pages, and ``:math:`` and ``.. math::`` in
docstrings. Matplotlib's mathtext draws them as inline SVG while the site is built, so that a
page needs no script and no address outside the site. A formula that cannot be drawn ends the
build. Named in mkdocs.yml under ``hooks``.
"""

import html
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

_EM: Final = 16.0
_FONT: Final = FontProperties(size=_EM, math_fontfamily="stix")
_UNKNOWN: Final = (
    (r"\\tfrac(\d)(\d)", r"\\frac{\1}{\2}"),
    (r"\\tfrac", r"\\frac"),
    (r"\\sqrt ?(\w)", r"\\sqrt{\1}"),
    (r"\\([gl])e(?![a-zA-Z])", r"\\\1eq"),
)
"""TeX that mathtext does not know, and how it says the same."""
_FENCE: Final = re.compile(r"\s*(```+|~~~+)")
_INLINE: Final = re.compile(
    r":math:`(?P<role>[^`]+)`|(?P<code>(?P<ticks>`+).+?(?P=ticks))"
    r"|(?<![\\$\w])\$(?P<tex>[^\s$](?:[^$]*[^\s$])?)\$(?![\w$])",
    re.DOTALL,
)


def on_config(config: Any) -> Any:
    """Hand the extension to mkdocs; mkdocstrings then uses it for docstrings as well."""
    from markdown.extensions import Extension
    from markdown.preprocessors import Preprocessor

    class Formulas(Preprocessor):
        def run(self, lines: list[str]) -> list[str]:
            return convert(lines, self.md.htmlStash.store)

    class FormulaExtension(Extension):
        def extendMarkdown(self, md: Any) -> None:  # noqa: N802  # the name Markdown calls
            md.preprocessors.register(Formulas(md), "condec-formulas", 27)

    config["markdown_extensions"].append(FormulaExtension())
    return config


def convert(lines: list[str], store: Callable[[str], str]) -> list[str]:
    """Replace formulas by what `store` makes of their SVG, and fence bare doctests.

    >>> convert([">>> 1 + 1", "2"], str)
    ['```pycon', '>>> 1 + 1', '2', '```']
    """
    out: list[str] = []
    for is_code, block in _blocks(lines):
        if is_code:
            out.extend(block)
        elif block[0].lstrip().startswith(">>>"):
            out.extend(["```pycon", *block, "```"])
        else:
            out.extend(_convert_text("\n".join(block), store).split("\n"))
    return out


def formulas(text: str) -> Iterator[str]:
    """TeX of every formula in the text of a page or a docstring."""
    found: list[str] = []

    def keep(svg: str) -> str:
        found.append(html.unescape(svg.split('aria-label="')[1].split('"')[0]))
        return ""

    convert(text.split("\n"), keep)
    yield from found


@cache
def formula_svg(tex: str, *, display: bool = False) -> str:
    """One formula as inline SVG that takes the colour and size of the text around it."""
    plain = " ".join(tex.split())
    # Displayed fractions are set in full size, those of running text and \tfrac are not.
    known = re.sub(r"\\frac(?![a-zA-Z])", r"\\dfrac", plain) if display else plain
    for theirs, ours in _UNKNOWN:
        known = re.sub(theirs, ours, known)
    try:
        path = TextPath((0, 0), f"${known}$", prop=_FONT)
    except ValueError as error:
        raise ValueError(f"formula {plain!r} cannot be drawn: {error}") from error
    box = path.get_extents().padded(0.5)
    size = f"height:{box.height / _EM:.3f}em;vertical-align:{box.y0 / _EM:.3f}em"
    svg = (
        f'<svg class="formula" role="img" aria-label="{html.escape(plain)}" style="{size}" '
        f'viewBox="{box.x0:.2f} {-box.y1:.2f} {box.width:.2f} {box.height:.2f}">'
        f'<path fill="currentColor" d="{_outline(path)}"/></svg>'
    )
    return f'<div class="formula">{svg}</div>' if display else svg


def _blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Paragraphs and blank lines; fenced and indented code as blocks of their own."""
    block: list[str] = []
    fence = ""
    for line in lines:
        opened = _FENCE.match(line)
        if fence:
            block.append(line)
            if opened and opened[1].startswith(fence):
                yield True, block
                block, fence = [], ""
        elif opened or not line.strip():
            if block:
                yield False, block
            block, fence = ([line], opened[1]) if opened else ([], "")
            if not opened:
                yield True, [line]
        else:
            block.append(line)
    if block:
        yield bool(fence), block


def _convert_text(text: str, store: Callable[[str], str]) -> str:
    def display(found: re.Match[str]) -> str:
        return "\n\n" + store(formula_svg(found[1], display=True)) + "\n\n"

    def inline(found: re.Match[str]) -> str:
        tex = found["role"] or found["tex"]
        return found[0] if tex is None else store(formula_svg(tex))

    text = re.sub(r"^\s*\.\. math::\s*((?:.+\n?)+)", display, text, flags=re.MULTILINE)
    text = re.sub(r"^\s*\$\$(.+?)\$\$\s*$", display, text, flags=re.MULTILINE | re.DOTALL)
    return _INLINE.sub(inline, text)


def _outline(path: Path) -> str:
    """SVG path data; y grows downwards there."""
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    parts = []
    for points, code in path.iter_segments(simplify=False):
        if code == Path.CLOSEPOLY:
            parts.append("Z")
        else:
            pairs = (f"{x:.2f} {-y:.2f}" for x, y in points.reshape(-1, 2))
            parts.append(letters[code] + " ".join(pairs))
    return "".join(parts)
