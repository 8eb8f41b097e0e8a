"""Pictures as bytes, for the readers of tars and tables."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from condec.data import Inputs

NAMES = ("cat/a.png", "cat/b.png", "dog/c.png")


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels(seed)).save(content, "PNG")
    return content.getvalue()


PICTURES = {name: png(seed) for seed, name in enumerate(NAMES)}


def write_folder(folder: Path) -> Path:
    for name, content in PICTURES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def check_folder(inputs: Inputs, folder: Inputs) -> None:
    """See that inputs are those of the folder, whatever they were read from."""
    assert inputs.ids == folder.ids == NAMES
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [0, 0, 1]
    assert inputs.label_names == ("cat", "dog")
    assert inputs.fingerprint == folder.fingerprint
    assert np.array_equal(inputs.picture(2).numpy(), pixels(2))


def write_tar(file: Path, members: Mapping[str, bytes] = PICTURES, mode: str = "w") -> Path:
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file
