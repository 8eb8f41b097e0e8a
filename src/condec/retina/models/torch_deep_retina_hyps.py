"""Layout of a network from the arguments of torch-deep-retina's constructors."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from torch import Tensor

from condec.basis.errors import ModelError, OptionError
from condec.retina.models.layout import Positions, RetinaLayout

PositionsFrom = Literal["checkpoint", "centres"]
Hyps = Mapping[str, Any]

_NOT_READ: Final = {
    "one2one": "stacked convolutions channel by channel",
    "recurrent": "a recurrent network",
    "kinetic": "a kinetics layer",
    "collapsed": "cells that share maps",
}
"""Constructor arguments of the library that make networks of another kind."""


def layout_of(
    path: Path,
    model_type: str,
    hyps: Hyps,
    record: Mapping[str, Any],
    n_named: int,
    positions: PositionsFrom,
) -> RetinaLayout:
    """What the library's constructor builds; its defaults where hyps say nothing."""
    take = _Taker(path, hyps)
    _refuse(path, hyps)
    stated = {"img_shape": plain(record["img_shape"])} if "img_shape" in record else {}
    image = take.wholes("img_shape", _Taker(path, stated).wholes("img_shape", (40, 50, 50)))
    channels = take.wholes("chans", (8, 8))
    if model_type in ("VaryModel", "RetinotopicModel"):
        channels = channels[: take.whole("n_layers", 3) - 1]
    kernels = take.wholes("ksizes", (15, 11, 11))
    retinotopic = model_type == "RetinotopicModel"
    grabs = not retinotopic and take.flag("convgc", False)
    readout: Any = "one-hot" if retinotopic else "grabbed" if grabs else "linear"
    last = kernels[-1:] if retinotopic else kernels[len(channels) : len(channels) + 1]
    stacked = model_type == "LinearStackedBNCNN" or (
        model_type != "BNCNN" and take.flag("stackconvs", True)
    )
    norm = {1: "unit", 2: "channel"}.get(dimension := take.whole("bnorm_d", 1))
    if norm is None:
        raise ModelError(f"{path}: hyps['bnorm_d']: expected 1 or 2; got {dimension}")
    fields: dict[str, Any] = {
        "n_cells": take.whole("n_units", n_named or 5),
        "image_shape": _three(path, image),
        "channels": channels,
        "kernels": kernels[: len(channels)] + (() if readout == "linear" else last),
        "stack": take.each("stack_ksizes", (3,) * len(channels)) if stacked else None,
        "stack_channels": take.each("stack_chans", channels) if stacked else None,
        "dropout": take.number("drop_p", 0.0) if stacked else 0.0,
        "bias": take.flag("bias", True),
        "last_bias": take.flag("bias", True) if retinotopic else take.flag("gc_bias", False),
        "norm": norm,
        "absolute": model_type != "BNCNN",
        "momentum": take.number("bn_moment", 0.01),
        "noise": take.number("noise", 0.05),
        "readout": readout,
        "rate": "softplus" if retinotopic or take.flag("softplus", True) else "exp",
        "exponential": take.flag("inference_exp", False),
    }
    try:
        if grabs:
            fields["positions"] = _positions(path, fields, take.centres(), positions)
        return RetinaLayout(**fields)
    except OptionError as error:
        raise ModelError(f"{path}: hyps do not fit each other: {error}") from error


def _three(path: Path, image: tuple[int, ...]) -> tuple[int, int, int]:
    if len(image) != 3:
        raise ModelError(f"{path}: img_shape: expected frames, height and width; got {image}")
    return image


def _refuse(path: Path, hyps: Hyps) -> None:
    """Networks that this module does not build."""
    for key, what in _NOT_READ.items():
        if hyps.get(key):
            raise ModelError(f"{path}: hyps[{key!r}]: {what} cannot be read; expected False")
    if any(hyps.get("paddings") or ()):
        raise ModelError(
            f"{path}: hyps['paddings']: convolutions with padding cannot be read; expected zeros"
        )
    if hyps.get("activ_fxn", "ReLU") != "ReLU":
        raise ModelError(
            f"{path}: hyps['activ_fxn']: expected 'ReLU'; got {shown(hyps['activ_fxn'])}"
        )


def _positions(
    path: Path, fields: Mapping[str, Any], centres: Positions, positions: PositionsFrom
) -> Positions:
    """Places of the cells in the last map, and a warning where they are not at their centres.

    The library takes min(max(0, centre - h), H - 2 (h - 1)), with h = (K0 - 1) + (K1 - 1) +
    (K2 // 2 - 1) + 1; where H < 2 (h - 1) that is one negative number for all centres, which
    counts from the end.
    """
    kernels, (_, height, width) = fields["kernels"], fields["image_shape"]
    if len(kernels) != 3:
        raise ModelError(
            f"{path}: hyps['convgc']: units are grabbed after 3 convolutions; got {len(kernels)}"
        )
    half = kernels[0] + kernels[1] + kernels[2] // 2 - 2
    ends = [side - 2 * (half - 1) for side in (height, width)]
    rule = tuple(
        (min(max(0, row - half), ends[0]), min(max(0, column - half), ends[1]))
        for row, column in centres
    )
    probe = RetinaLayout(**{**fields, "positions": rule})
    sides = probe.maps[-1]
    stored = tuple((row % sides[0], column % sides[1]) for row, column in rule)
    true = probe.positions_of(centres)
    if positions == "centres":
        return true
    if stored != true:
        alike = len(set(stored)) == 1
        what = f"all {len(stored)} cells at place {stored[0]}" if alike else f"cells at {stored}"
        why = "" if min(ends) >= 0 else f"; {min(ends)} is below 0 and counts from the end"
        warnings.warn(
            f"{path.name}: reads {what} of maps of {sides[0]} x {sides[1]}, not at their centres "
            f"{centres}: the library's rule is min(max(0, centre - {half}), {height} - "
            f"{2 * (half - 1)}){why}. This is how the network was trained, and is kept; compare "
            "its rates with the recorded ones. positions='centres' reads at the cells' own "
            f"centres instead, {true}",
            stacklevel=4,
        )
    return stored


class _Taker:
    """Takes arguments of a constructor out of a mapping, and says which one is of another kind."""

    def __init__(self, path: Path, hyps: Hyps) -> None:
        self.path, self.hyps = path, hyps

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._take(key, default, "true or false", lambda v: v in (None, 0, 1)))

    def number(self, key: str, default: float) -> float:
        return float(self._take(key, default, "a number", is_number))

    def whole(self, key: str, default: int) -> int:
        return int(self._take(key, default, "a whole number", is_whole))

    def wholes(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self._take(key, default, "a list of whole numbers", _are_whole))

    def each(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """One number for every hidden convolution: a list, one for all, or None in its place."""

        def fits(value: Any) -> bool:
            listed = value if isinstance(value, list | tuple) else [value] * len(default)
            each = all(one is None or is_whole(one) for one in listed)
            return each and len(listed) >= len(default)

        value = self._take(key, default, f"a whole number or {len(default)} of them", fits)
        listed = value if isinstance(value, list | tuple) else [value] * len(default)
        pairs = zip(listed, default, strict=False)
        return tuple(usual if one is None else one for one, usual in pairs)

    def centres(self) -> Positions:
        expected = "a list of (row, column) of the cells, since units are grabbed (convgc)"
        found = self._take(
            "centers", None, expected,
            lambda v: isinstance(v, list | tuple) and all(_are_whole(c) and len(c) == 2 for c in v),
        )  # fmt: skip
        return tuple((row, column) for row, column in found)

    def _take(self, key: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        value = self.hyps.get(key, default)
        if not fits(value):
            raise ModelError(f"{self.path}: hyps[{key!r}]: expected {expected}; got {shown(value)}")
        return value


# --- values -------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Numbers, texts and containers in place of numpy's and torch's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(plain(part) for part in value)
    return value


def mapping(where: str, value: Any) -> dict[str, Any]:
    """Mapping with texts as keys, or an error that names what it is."""
    if not isinstance(value, dict):
        raise ModelError(f"{where}: expected a mapping; got {shown(value)}")
    return {str(key): part for key, part in value.items()}


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_whole(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_whole, value))


def shown(value: Any) -> str:
    """A value and its kind, for messages."""
    return "nothing" if value is None else f"{str(value)[:80]!r} ({type(value).__name__})"
