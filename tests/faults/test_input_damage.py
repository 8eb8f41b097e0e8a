"""Files of inputs and weights, damaged: read as they are, refused with their name, or other pixels.

Seeded. ``pytest tests/faults/test_input_damage.py -m slow -s`` prints what became of every kind.
A damage that leaves a valid file with other content (a pixel, a letter of a label) cannot be
noticed: these files are not condec's and carry no digest. Nothing may end in an error of a
dependency.
"""

# ruff: noqa: PT017

import hashlib
import json
import os
import random
import resource
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from condec.basis.errors import CondecError, DataError, ModelError, OptionError
from condec.data import load_data, read_names
from condec.models.library import load_weights, read_state
from condec.retina import Recording, read_recording, write_recording
from condec.retina.models.checkpoint import load_checkpoint, save_checkpoint
from condec.retina.models.network import RetinaCheckpoint, RetinaLayout, RetinaNetwork
from condec.run import config

pytestmark = pytest.mark.usefixtures("unchecked")  # as users have it
PICTURES = ("png", "jpg", "webp", "gif", "bmp", "ppm", "tif")
SLOW, QUICK = 400, 6


@dataclass(frozen=True)
class Kind:
    """A kind of file: how a sound one is made, and everything in it read."""

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]


def picture(path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    options = {"exif": exif} if path.suffix in (".jpg", ".png", ".webp") else {}
    options |= {"compression": "tiff_lzw"} if path.suffix == ".tif" else {}
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)


def seen(path: Path) -> Any:
    inputs = load_data(f"folder:{path.parent}", orientation="exif")
    return inputs.load(0).numpy().tobytes(), inputs.fingerprint


def arrays(path: Path) -> None:
    save = np.savez_compressed if path.stem == "packed" else np.savez
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    names = {"class_names": ["a", "b", "c"], "ids": list("vwxyz")}
    save(path, images=images, labels=np.arange(5) % 3, **names)  # type: ignore[arg-type]


def of_arrays(path: Path) -> Any:
    inputs = load_data(f"npz:{path}")
    return inputs.batch(range(len(inputs))), inputs.ids, inputs.label_names, inputs.labels


def table(path: Path) -> None:
    for name in "ab":
        picture(path.parent / "photos" / f"{name}.png")
    path.write_text("file,label,name\na.png,0,cat\nb.png,1,dog\n", encoding="utf-8")


def of_table(path: Path) -> Any:
    inputs = load_data(f"folder:{path.parent / 'photos'}", csv=path)
    return inputs.ids, inputs.labels, inputs.label_names


def movie(path: Path) -> None:
    rng = np.random.default_rng(0)
    if path.suffix == ".npz":
        frames = torch.from_numpy(rng.normal(size=(30, 4, 4))).float()
        write_recording(path, Recording(movie=frames, rates=torch.ones(30, 2), cells=("a", "b")))
        return
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            group = file.create_group(split)
            group["time"] = np.arange(30) * 0.01
            pixels = rng.integers(0, 256, (30, 4, 4), dtype=np.uint8)
            group.create_dataset("stimulus", data=pixels, compression="gzip", fletcher32=True)
            group["response/firing_rate_10ms"] = rng.random((2, 30))


def of_movie(path: Path) -> Any:
    read = read_recording(path)
    return read.movie, read.rates, read.cells, read.scaling, read.seconds_per_frame


def weights(path: Path) -> None:
    torch.manual_seed(0)
    state = torch.nn.Linear(5, 3).state_dict()
    if path.suffix == ".pt":
        torch.save(state, path)  # noqa: TID251
    else:
        save_file(state, path)


def of_weights(path: Path) -> Any:
    model = torch.nn.Linear(5, 3)
    load_weights(model, path)
    return model.weight, model.bias


def checkpoint(path: Path) -> None:
    layout = RetinaLayout(n_cells=2, image_shape=(4, 9, 10), channels=(2, 2), kernels=(3, 3, 3))
    torch.manual_seed(0)
    network = RetinaNetwork(layout).eval()
    save_checkpoint(path, RetinaCheckpoint(network=network, cells=("a", "b"), scaling=(0.0, 1.0)))


def of_checkpoint(path: Path) -> Any:
    found = load_checkpoint(path)
    return found.layout, found.cells, found.scaling, *found.network.state_dict().values()


def plan(path: Path) -> None:
    path.write_text('sites = "block*"\n[collect]\nmethod = "ig:20"\ntarget = "top1"\n', "utf-8")


def names(path: Path) -> None:
    path.write_text('["zero", "one", "\N{SNOWMAN}"]', encoding="utf-8")


KINDS = {
    **{f"pictures/a.{suffix}": Kind(picture, seen) for suffix in PICTURES},
    "a.npz": Kind(arrays, of_arrays),
    "packed.npz": Kind(arrays, of_arrays),
    "a.npy": Kind(lambda p: np.save(p, np.ones((3, 4, 4), np.uint8)), of_arrays),
    "a.csv": Kind(table, of_table),
    "names.json": Kind(names, read_names),
    "run.toml": Kind(plan, config.read),
    "movie.npz": Kind(movie, of_movie),
    "movie.h5": Kind(movie, of_movie),
    "weights.safetensors": Kind(weights, of_weights),
    "weights.pt": Kind(weights, of_weights),
    "retina.safetensors": Kind(checkpoint, of_checkpoint),
}


def digest(found: Any) -> str:
    """Hash what was read."""
    if isinstance(found, tuple | list):
        return hashlib.sha256("".join(map(digest, found)).encode()).hexdigest()
    if isinstance(found, torch.Tensor):
        return hashlib.sha256(
            str(found.dtype).encode() + found.detach().numpy().tobytes()
        ).hexdigest()
    return hashlib.sha256(repr(found).encode()).hexdigest()


def damaged(rng: random.Random, path: Path, content: bytes, others: list[bytes]) -> str:
    """Damage a file in one way, and return which."""
    path.unlink()
    at, to = sorted((rng.randrange(len(content)), rng.randrange(len(content))))
    if at == to:
        to += 1
    ways: dict[str, bytes | None] = {
        "cut off": content[:at],
        "a bit": content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
        "some bytes": content[:at] + rng.randbytes(min(to - at, 16)) + content[min(to, at + 16) :],
        "a piece lost": content[:at] + content[to:],
        "zeros": content[:at] + bytes(to - at) + content[to:],
        "a piece twice": content[:to] + content[at:],
        "garbage": rng.randbytes(rng.randint(1, 400)),
        "another kind": rng.choice(others),
        "empty": b"", "gone": None, "a folder": None, "a loop": None,
    }  # fmt: skip
    weighted = ("empty", "gone", "a folder", "a loop") if rng.random() < 0.03 else tuple(ways)[:8]
    way = rng.choice(weighted)
    if way == "a folder":
        path.mkdir()
    elif way == "a loop":
        path.symlink_to(path.name)
    elif (now := ways[way]) is not None:
        path.write_bytes(now)
    return way


def restored(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def all_damaged(folder: Path, number: int) -> None:
    """Damage every kind of file so many times, and print what became of it."""
    contents, sound = {}, {}
    for name, kind in KINDS.items():
        path = folder / name.replace("/", "-") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind.make(path)
        contents[path] = path.read_bytes()
        sound[path] = digest(kind.read(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\n{'file':22}{'damaged':>9}{'refused':>9}{'the same':>10}{'other content':>15}")
    for place, (path, kind) in enumerate(zip(contents, KINDS.values(), strict=True)):
        rng, counts = random.Random(place), [0, 0, 0]
        for _ in range(number):
            way = damaged(rng, path, contents[path], [*contents.values()])
            try:
                other = digest(kind.read(path)) != sound[path]
                counts[1 + other] += 1
            except CondecError as error:
                counts[0] += 1
                assert path.stem in str(error), (way, error)
            except Exception as error:
                problem = f"{path.name}, {way}: {type(error).__name__}: {error}"
                raise AssertionError(problem) from error
            restored(path, contents[path])
        assert digest(kind.read(path)) == sound[path]
        print(f"{path.name:22}{number:9,}{counts[0]:9,}{counts[1]:10,}{counts[2]:15,}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    # As users have it: PIL and torch warn of what is then refused.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_damages_are_refused_with_the_file(tmp_path: Path) -> None:
    all_damaged(tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_damages_are_refused_with_the_file(tmp_path: Path) -> None:
    all_damaged(tmp_path, SLOW)


@pytest.mark.parametrize("suffix", PICTURES)
def test_pictures_that_were_cut_off_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        DataError, match=rf"a.{suffix}: cannot be read as an image .*Replace it, or"
    ):
        load_data(f"folder:{tmp_path}").load(0)


# --- files that claim what they do not hold --------------------------------------------------


def claims_npy(path: Path) -> None:
    header = repr({"descr": "|u1", "fortran_order": False, "shape": (2**50, 2**10)}).encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n")


def claims_npz(path: Path) -> None:
    claims_npy(path.with_suffix(".npy"))
    with zipfile.ZipFile(path, "w") as file:
        file.write(path.with_suffix(".npy"), "images.npy")
    path.with_suffix(".npy").unlink()


def claims_safetensors(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def claims_tensor(path: Path) -> None:
    head = {"w": {"dtype": "F32", "shape": [2**29, 2**29], "data_offsets": [0, 2**60]}}
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def claims_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            group = file.create_group(split)
            group.create_dataset("stimulus", (2**40, 2**10, 2**10), "u1", chunks=(1, 64, 64))


def claims_png(path: Path) -> None:
    picture(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def claims_bmp(path: Path) -> None:
    picture(path)
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 100_000, 100_000)
    path.write_bytes(content)


def claims_layout(path: Path) -> None:
    layout = {"n_cells": 2**40, "image_shape": [4, 9, 10], "kernels": [3, 3, 3]}
    known = {"layout": layout, "cells": ["a"]}
    save_file({"w": torch.ones(1)}, path, {"condec_retina": json.dumps(known)})


@pytest.mark.parametrize(
    ("name", "make", "read", "kind", "message"),
    [
        ("a.npy", claims_npy, of_arrays, DataError, "cannot be read as arrays"),
        ("a.npz", claims_npz, of_arrays, DataError, "cannot be read as arrays"),
        ("a.safetensors", claims_safetensors, read_state, ModelError, "cannot be read as weights"),
        ("a.safetensors", claims_tensor, read_state, ModelError, "cannot be read as weights"),
        ("a.h5", claims_h5, of_movie, DataError, "says that it holds .* of which 0 are stored"),
        ("a.png", claims_png, seen, DataError, "cannot be read as an image .*DecompressionBomb"),
        ("a.bmp", claims_bmp, seen, DataError, "cannot be read as an image .*DecompressionBomb"),
        ("a.safetensors", claims_layout, of_checkpoint, ModelError, "expected 10,000 at most"),
    ],
)  # fmt: skip
def test_claims_take_no_memory(
    tmp_path: Path, name: str, make: Any, read: Any, kind: type[CondecError], message: str
) -> None:
    make(tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind, match=f"{name}: .*{message}"):
        read(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # 128 MiB


def test_names_nested_too_deep_are_refused(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"n.json: cannot be read as json .RecursionError"):
        read_names(tmp_path / "n.json")


def test_names_that_no_file_can_hold_are_refused(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text('["\\ud800"]')
    with pytest.raises(DataError, match=r"n.json: cannot be read as json .UnicodeEncodeError"):
        read_names(tmp_path / "n.json")


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    names(tmp_path / "n.json")
    (tmp_path / "n.json").chmod(0)
    if os.access(tmp_path / "n.json", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="Allow this user to use it"):
        read_names(tmp_path / "n.json")


def test_missing_weights_are_an_option(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no file"):
        load_checkpoint(tmp_path / "a.pt")
