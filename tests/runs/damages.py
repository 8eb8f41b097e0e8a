"""Damages to one file, each of them drawn; `other` is the same file of another run or store."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Damage = Callable[[Path, random.Random, Path], object]


def flip(file: Path, draw: random.Random, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, draw: random.Random, other: Path) -> None:
    os.truncate(file, draw.randrange(file.stat().st_size))


def empty(file: Path, draw: random.Random, other: Path) -> None:
    os.truncate(file, 0)


def scramble(file: Path, draw: random.Random, other: Path) -> None:
    file.write_bytes(draw.randbytes(file.stat().st_size))


def overwrite(file: Path, draw: random.Random, other: Path) -> None:
    content = bytearray(file.read_bytes())
    start = draw.randrange(len(content))
    part = draw.randbytes(min(16, len(content) - start))
    content[start : start + len(part)] = part
    file.write_bytes(content)


def append(file: Path, draw: random.Random, other: Path) -> None:
    file.write_bytes(file.read_bytes() + draw.randbytes(draw.randrange(1, 64)))


def delete(file: Path, draw: random.Random, other: Path) -> None:
    file.unlink()


def into_folder(file: Path, draw: random.Random, other: Path) -> None:
    file.unlink()
    file.mkdir()


def loop(file: Path, draw: random.Random, other: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def swap(file: Path, draw: random.Random, other: Path) -> None:
    """Exchange with a file of the same folder, or of the same name in a folder beside it."""
    near = {*file.parent.iterdir(), *file.parent.parent.glob(f"*/{file.name}")} - {file}
    if files := sorted(path for path in near if path.is_file()):
        chosen = draw.choice(files)
        mine, theirs = file.read_bytes(), chosen.read_bytes()
        file.write_bytes(theirs)
        chosen.write_bytes(mine)


def exchange(file: Path, draw: random.Random, other: Path) -> None:
    if other.is_file():
        shutil.copyfile(other, file)


def forbid(file: Path, draw: random.Random, other: Path) -> None:
    file.chmod(0)


DAMAGES: tuple[Damage, ...] = (
    flip, truncate, empty, scramble, overwrite, append, delete, into_folder, loop, swap, exchange,
)  # fmt: skip
if os.geteuid():  # root may read everything
    DAMAGES += (forbid,)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two readings gave the same numbers."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, np.ndarray | torch.Tensor) and isinstance(b, np.ndarray | torch.Tensor):
            x, y = np.asarray(a), np.asarray(b)
            return bool(np.array_equal(x, y, equal_nan=x.dtype.kind == "f"))
        return bool(a.equals(b) if hasattr(a, "equals") else a == b)

    return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
