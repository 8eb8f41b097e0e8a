"""Draw the rooms of condec and the imports between them, as they stand in the code.

    python docs/architecture.py             draws docs/assets/architecture.svg
    python docs/architecture.py --private   counts private attributes used outside their file

Rooms stand in the order of the layers in pyproject.toml, the lowest at the bottom. The number
where a room's row meets another's column says how many files of the one import the other.
"""

import argparse
import ast
import json
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "condec"
PICTURE = ROOT / "docs" / "assets" / "architecture.svg"

Imports = dict[str, dict[str, int]]


def layers() -> list[list[str]]:
    """Read the rooms of every layer, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def imports(source: Path = SOURCE) -> Imports:
    """Count, for every room, the files of it that import each other room."""
    found: dict[str, Counter[str]] = {}
    for file in sorted(source.rglob("*.py")):
        room = file.relative_to(source).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        parts = (name.split(".") for name in names if name.startswith("condec."))
        found.setdefault(room, Counter()).update({p[1] for p in parts} - {room})
    rooms = found.keys()
    return {r: {to: n for to, n in sorted(found[r].items()) if to in rooms} for r in sorted(rooms)}


def private(source: Path = SOURCE) -> Counter[str]:
    """Count, by file, private attributes and names used there and defined elsewhere."""
    found: Counter[str] = Counter()
    for file in sorted(source.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        used = [node for node in used if node.attr.startswith("_") and node.attr[-2:] != "__"]
        own = {
            n.attr for n in used if isinstance(n.value, ast.Name) and n.value.id in ("self", "cls")
        }
        own |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        taken = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names = [a.name for node in taken for a in node.names if a.name.startswith("_")]
        number = len(names) + sum(node.attr not in own for node in used)
        found[str(file.relative_to(source))] = number
    return +found


def drawn(picture: Path = PICTURE) -> Imports:
    """Read from a picture the imports that it shows."""
    text = ET.parse(picture).find(".//{http://purl.org/dc/elements/1.1/}description")
    return {} if text is None or text.text is None else json.loads(text.text)


def draw(picture: Path = PICTURE) -> None:
    """Draw a box for each room, from the top left down, and the imports of its files."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "condec", "svg.fonttype": "none", "font.size": 8.5})
    from matplotlib import pyplot as plt

    counts, rows = imports(), [(room, i) for i, layer in enumerate(layers()) for room in layer]
    rows = [(room, layer) for room, layer in rows if room in counts]
    place = {room: -number for number, (room, _) in enumerate(rows)}
    figure, axes = plt.subplots(figsize=(5.4, 4.7), layout="constrained")
    for room, layer in rows:
        y, others = place[room], counts[room]
        color = "#dbe7f3" if layer % 2 else "#e8e3f0"
        axes.fill_between((-y - 2.6, -y + 0.42), y - 0.36, y + 0.36, color=color, lw=0)
        axes.text(-y + 0.28, y, room, ha="right", va="center")
        if others:
            ends = [-place[other] for other in others]
            axes.plot((-y + 0.42, max(ends)), (y, y), color="#b6bfcc", lw=0.8, zorder=0)
        for other, number in others.items():
            up = {"arrowstyle": "-|>", "color": "#b6bfcc", "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
            end = (-place[other], place[other] + (0.36 if place[other] < y else -0.36))
            axes.annotate("", end, (-place[other], y), arrowprops=up, zorder=0)
            white = {"boxstyle": "circle,pad=0.12", "fc": "white", "ec": "#8b97a8", "lw": 0.6}
            axes.text(-place[other], y, str(number), ha="center", va="center", size=7, bbox=white)
    axes.set(xlim=(-2.7, len(rows) - 0.4), ylim=(-len(rows) + 0.5, 0.5))
    axes.axis("off")
    picture.parent.mkdir(exist_ok=True)
    about = {"Date": None, "Creator": None, "Description": json.dumps(counts)}
    figure.savefig(picture, metadata=about)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--source", type=Path, default=SOURCE)
    args = parser.parse_args()
    if args.private:
        found = private(args.source)
        print("\n".join(f"{number:4}  {file}" for file, number in found.most_common()))
        print(f"{found.total():4}  in all")
    else:
        draw()


if __name__ == "__main__":
    main()
