"""Writes the figures and pictures of a report, and says where they are."""

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

from condec.effects import MatrixQuantity
from condec.explanation import SiteMaps
from condec.figures.pixels import map_scale, overlay
from condec.figures.places import signed
from condec.figures.style import described
from condec.modes import label_correlation
from condec.report import figures
from condec.report.reading import DictionaryPart, RunPart, SitePart
from condec.report.sentences import matrices
from condec.report.words import fixed, twin_words
from condec.store import STATISTICS

PARTS: Final = ("total", "positive", "negative")
PLACES: Final = "contributes"
"""Name of the place maps, which come before the others."""
_JPEG_FROM: Final = 97
"""Pixels a side from which pictures are JPEG, a fifth of the size."""
_HEATMAP_MODES: Final = 400
_HEATMAP_LABELS: Final = 400
_MOST_LABELS: Final = 40
_UNITS_AT_ONCE: Final = 512
_MOST_DICTIONARIES: Final = 50
"""Dictionaries of a run that have charts: drawing takes most of the time of a report."""
_MATRICES: Final[tuple[MatrixQuantity, ...]] = ("accuracy", "logit")


@dataclass(frozen=True)
class Drawn:
    """A figure on a page: its file from the report's folder, what it shows, and a caption."""

    file: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure that is to be stored: its place on the page, the name of its file."""

    place: str
    name: str
    figure: Figure


@dataclass(frozen=True)
class Studio:
    """Stores figures and pictures in the folder of one report."""

    folder: Path

    def charts(self, drawn: Iterable[Chart], stem: str = "") -> dict[str, list[Drawn]]:
        """Store figures one after the other, and return them by place."""
        places: dict[str, list[Drawn]] = defaultdict(list)
        for one in drawn:
            places[one.place].append(self.figure(one.figure, f"{stem}{one.name}"))
        return places

    def figure(self, figure: Figure, name: str, alt: str = "") -> Drawn:
        """Store one figure; what it shows is said by its titles, if not by `alt`."""
        file = f"figures/{name}.svg"
        figures.save_figure(figure, self._place(file))
        return Drawn(file, alt or described(figure))

    def moving(self, pictures: Sequence[np.ndarray], stem: str, *, seconds: float) -> str:
        """Store pictures, uint8 [y, x, 3], as one that moves; return its file."""
        from PIL import Image

        first, *others = (Image.fromarray(pixels) for pixels in pictures)
        options: dict[str, Any] = {"append_images": others, "duration": 1000 * seconds, "loop": 0}
        first.save(self._place(f"{stem}.png"), "PNG", save_all=True, **options)
        return f"{stem}.png"

    def image(self, pixels: np.ndarray, stem: str) -> str:
        """Store one picture, small ones without loss, and return its file."""
        from PIL import Image

        large = max(pixels.shape[:2]) >= _JPEG_FROM
        file = f"{stem}.{'jpg' if large else 'png'}"
        if not (self.folder / file).exists():
            content = io.BytesIO()
            options = {"quality": 88, "subsampling": 0} if large else {}
            Image.fromarray(pixels).save(content, "JPEG" if large else "PNG", **options)
            self._place(file).write_bytes(content.getvalue())
        return file

    def picture(self, pixels: np.ndarray) -> str:
        """Store a picture of an input once, however many pages show it, and return its file."""
        content = repr(pixels.shape).encode() + pixels.tobytes()
        return self.image(pixels, f"pictures/{sha256(content).hexdigest()[:16]}")

    def _place(self, file: str) -> Path:
        place = self.folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


def parts_of(maps: SiteMaps) -> tuple[str, ...]:
    """List the maps that are shown, in the order of the rows."""
    return PARTS if maps.places is None else (PLACES, *PARTS)


def maps_of(maps: SiteMaps, place: int, number: int, sample: int) -> list[np.ndarray]:
    """Draw the maps of one input of a mode, in the order of `parts_of`.

    `number` counts the inputs that use it most, then the others; of these the first one is drawn.
    """
    picture, after = maps.pictures[sample].numpy(), number - maps.samples.shape[1]
    drawn = []
    if (values := _contributed(maps, place, number)) is not None:
        drawn.append(overlay(values, picture, scale=_scale(maps, place)))
    elif after >= 0 and maps.of_others is not None:
        drawn = figures.draw_maps([maps.of_others[place].flatten(0, 1)[after]], picture)
    if after >= 0:
        return drawn
    return drawn + figures.draw_maps([getattr(maps, p)[place, number] for p in PARTS], picture)


def others_of(maps: SiteMaps, place: int) -> dict[int, int]:
    """Return typical, drawn and counter-examples of a mode, by what `maps_of` calls them.

    Those that are among its strongest ones are left out.
    """
    strongest = maps.samples[place].tolist()
    found = [] if maps.others is None else maps.others[place].flatten().tolist()
    numbered = enumerate(found, len(strongest))
    return {sample: at for at, sample in numbered if sample >= 0 and sample not in strongest}


def _contributed(maps: SiteMaps, place: int, number: int) -> np.ndarray | None:
    """Return the place map of one input, as `maps_of` counts them; None where there are none."""
    if maps.places is None:
        return None
    after = number - maps.samples.shape[1]
    if after < 0 or maps.of_others is None:
        return maps.places[place, number].numpy()
    return maps.of_others[place].flatten(0, 1)[after].numpy()


def _scale(maps: SiteMaps, place: int) -> float:
    """Return the scale of all place maps of a mode, that of its strongest inputs."""
    return 1.0 if maps.places is None else map_scale([one.numpy() for one in maps.places[place]])


def tokens_of(maps: SiteMaps, place: int, number: int, words: Sequence[str]) -> list[list[str]]:
    """Return the tokens of a text, each with its colour and what the mode contributes there."""
    found, scale = _contributed(maps, place, number), _scale(maps, place)
    values = np.zeros(len(words)) if found is None else found
    colours = signed(values, scale)
    return [
        [word, f"rgba({255 * r:.0f},{255 * g:.0f},{255 * b:.0f},{a:.2f})", fixed(float(value))]
        for word, (r, g, b, a), value in zip(words, colours, values, strict=True)
        if word  # padding is not read
    ]


def snippet(tokens: list[list[str]], around: int = 60) -> list[list[str]]:
    """Return the end of a text, to which a mode contributes."""
    kept: list[list[str]] = []
    for token in reversed(tokens):
        around -= len(token[0])
        if around < 0:
            break
        kept.insert(0, token)
    return kept


def charts_of_run(run: RunPart) -> Iterator[Chart]:
    """Draw the figures of the first page: places statistics, completeness, control."""
    if run.statistics is not None:
        twins = {twin_words(t.twin): t.statistics for t in run.twins if t.statistics is not None}
        for one in STATISTICS:
            columns = [one.column(quantity) for quantity in one.of]
            if (
                not run.statistics[[c for c in columns if c in run.statistics]]
                .notna()
                .any(axis=None)
            ):
                continue  # of a run without labels, or of an earlier version
            figure = figures.layer_statistics_figure(run.statistics, one.name, twins=twins)
            yield Chart("statistics", one.name, figure)
    complete = {s.key: s.completeness for s in run.sites if s.completeness is not None}
    if complete:
        yield Chart("completeness", "completeness", figures.completeness_figure(complete))
    for learner in run.learners:
        found = [p.areas for _, p in run.parts if p.name == learner and p.areas is not None]
        if not found:
            continue
        of, end = (f", {learner}", f"-{learner}") if len(run.learners) > 1 else ("", "")
        groups = pandas.concat(found).groupby(["edit", "replacement"], sort=False)
        for (edit, replacement), rows in groups:
            figure = figures.auc_figure(rows, edit=str(edit), of=of)
            yield Chart("control", f"selectivity-{edit}-{replacement}{end}", figure)


def has_charts(run: RunPart, part: DictionaryPart) -> bool:
    """Tell whether charts of a dictionary are drawn: of many, for some, evenly over the sites."""
    parts = [one for _, one in run.parts]
    place, share = parts.index(part), _MOST_DICTIONARIES / len(parts)
    return share >= 1 or int((place + 1) * share) > int(place * share)


def charts_of_dictionary(
    run: RunPart, site: SitePart, part: DictionaryPart, rows: Sequence[int]
) -> Iterator[Chart]:
    """Draw the figures of one dictionary, its modes in the order of `rows`.

    Places: control, effects, steering, use, labels, training; none where not `has_charts`.
    """
    if not has_charts(run, part):
        return
    yield from _curves(part)
    for matrix in matrices(part, site.info.n_units):
        for quantity in _MATRICES:
            figure = figures.control_matrix_figure(matrix, run.hierarchy, quantity=quantity)
            yield Chart("effects", f"matrix-{matrix.edit}-{matrix.replacement}-{quantity}", figure)
    interactions, steering = part.tables.get("interactions"), part.tables.get("steering")
    if interactions is not None:
        yield Chart("effects", "interactions", figures.interactions_figure(interactions))
    if steering is not None:
        yield Chart("steering", "steering", figures.steering_figure(steering))
    used = {"training": part.density("train")}
    if part.has_held_out:
        used["held out"] = part.density("held_out")
    dead = torch.zeros(part.n_modes)
    shares = {name: dead.index_copy(0, part.modes.ids, values) for name, values in used.items()}
    yield Chart("use", "density", figures.density_figure(shares))
    stability, training = part.tables.get("stability"), part.training
    if stability is not None and stability["seed_cosine"].notna().any():
        columns = (stability[key].to_numpy() for key in ("seed_cosine", "half_cosine", "chance"))
        yield Chart("labels", "stability", figures.stability_figure(*map(torch.tensor, columns)))
    if part.has_labels:
        yield from _labels(run, part, rows[:_HEATMAP_MODES])
    if training is not None and training.history:
        yield Chart("training", "training", figures.training_history_figure(training.history))


def _curves(part: DictionaryPart) -> Iterator[Chart]:
    curve, areas = part.tables.get("control"), part.areas
    if curve is None or areas is None:
        return
    for edit, replacement in curve[["edit", "replacement"]].drop_duplicates().to_numpy():
        for images in figures.IMAGES:
            of: dict[str, Any] = {"edit": edit, "replacement": replacement, "images": images}
            yield Chart("control", "-".join(of.values()), figures.control_figure(curve, **of))
    for edit in areas["edit"].drop_duplicates() if areas["label"].nunique() <= _MOST_LABELS else ():
        rows = areas[areas["edit"] == edit]
        rows = rows[rows["replacement"] == rows["replacement"].iloc[0]]
        figure = figures.auc_figure(rows, edit=edit, by="label_name")
        yield Chart("control", f"{edit}-labels", figure)


def _labels(run: RunPart, part: DictionaryPart, rows: Sequence[int]) -> Iterator[Chart]:
    modes, labels = part.modes, part.modes.store.labels
    units = modes.store.rows(modes.site, modes.quantity, modes.sign).in_columns(_UNITS_AT_ONCE)
    single = [label_correlation(u.all(), labels, ~modes.held_out).max(1).values for u in units]
    best = {"modes": part.correlation.max(1).values, "single units": torch.cat(single)}
    shuffled = run.shuffled_best(part)
    if shuffled is not None:
        best["shuffled labels"] = shuffled
    yield Chart("labels", "correlations", figures.correlation_histogram_figure(best))
    present = sorted(set(labels[labels >= 0].tolist()))
    found, n_labels = part.correlation[list(rows)][:, present], len(present)
    if n_labels > _HEATMAP_LABELS:
        most = found.nan_to_num().max(0).values.topk(_HEATMAP_LABELS).indices.sort().values
        found, present = found[:, most], [present[place] for place in most.tolist()]
    names = [run.label(one) for one in present]
    figure = figures.correlation_heatmap_figure(found, names, rows, n_labels=n_labels)
    yield Chart("labels", "labels", figure)
    if (meaning := part.tables.get("meaning")) is not None:
        yield Chart("labels", "meaning", figures.meaning_figure(meaning))
