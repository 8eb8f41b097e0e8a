"""Inputs: every source, stable ids, pictures that match the model's view, and every message."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beartype import beartype
from PIL import Image
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from condec.basis.errors import DataError, OptionError
from condec.data import Inputs, as_inputs, images, load_data, scale_pixels, spread


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_image(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, three images, as png (lossless), one of them one folder deeper."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("cat/a.png", "cat/more/b.png", "dog/c.png")):
        save_image(folder / name, pixels(6, 8, 3, seed=number))
    (folder / "notes.txt").write_text("not an image")
    return folder


# --- sources ---------------------------------------------------------------------------------


def test_npz_of_pixels(tmp_path: Path) -> None:
    images = pixels(3, 4, 5, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=[2, 0, -1], class_names=["x", "y", "z"])
    inputs = load_data("npz:a.npz", folder=tmp_path)
    assert inputs.ids == ("0", "1", "2")
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [2, 0, -1]
    assert inputs.label_names == ("x", "y", "z")
    assert inputs.sample_shape == (3, 4, 5)
    wanted = torch.from_numpy(images[1]).permute(2, 0, 1) / 255
    assert torch.equal(inputs.load(1), wanted)
    assert torch.equal(inputs.batch([1, 0])[0], wanted)
    sample, label = inputs[0]
    assert label == 2
    assert torch.equal(sample, inputs.load(0))


def test_npz_of_floats_is_taken_as_it_is(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(2, 1, 3, 3))
    np.savez(tmp_path / "a.npz", images=images, ids=["left", "right"])
    inputs = load_data(f"npz:{tmp_path / 'a.npz'}", preprocess=lambda images: images / 0)
    assert inputs.ids == ("left", "right")
    assert inputs.labels is None
    assert inputs.load(1).dtype == torch.float32
    assert inputs.load(1).numpy() == pytest.approx(images[1], rel=1e-6)


def test_npy_and_grey_images(tmp_path: Path) -> None:
    images = pixels(2, 4, 4)
    np.save(tmp_path / "a.npy", images)
    inputs = load_data("npz:a.npy", folder=tmp_path)
    assert inputs.sample_shape == (1, 4, 4)
    picture = inputs.picture(1)
    assert picture.shape == (4, 4, 3)
    assert all(np.array_equal(picture[..., c].numpy(), images[1]) for c in range(3))


def test_folder_with_a_class_a_subfolder(photos: Path) -> None:
    inputs = load_data("folder:photos", folder=photos.parent)
    assert inputs.ids == ("cat/a.png", "cat/more/b.png", "dog/c.png")
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [0, 0, 1]
    assert inputs.label_names == ("cat", "dog")
    assert np.array_equal(inputs.picture(2).numpy(), pixels(6, 8, 3, seed=2))


def test_folder_without_subfolders_has_no_labels(tmp_path: Path) -> None:
    save_image(tmp_path / "b.png", pixels(4, 4, 3))
    save_image(tmp_path / "a.PNG", pixels(4, 4))
    inputs = load_data(f"folder:{tmp_path}")
    assert inputs.ids == ("a.PNG", "b.png")
    assert inputs.labels is None
    assert inputs.sample_shape == (3, 4, 4)


@pytest.mark.parametrize("written", ["key", "query"])
def test_folder_with_a_table(photos: Path, written: str) -> None:
    table = "file,label,name,other\ndog/c.png,3,a dog,1\ncat/a.png,1,a cat,2\n"
    (photos / "table.csv").write_text(table)
    if written == "key":
        inputs = load_data("folder:photos", csv="photos/table.csv", folder=photos.parent)
    else:
        inputs = load_data("folder:photos?csv=photos/table.csv", folder=photos.parent)
    assert inputs.ids == ("dog/c.png", "cat/a.png")
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [3, 1]
    assert inputs.label_names == ("0", "a cat", "2", "a dog")
    assert np.array_equal(inputs.picture(0).numpy(), pixels(6, 8, 3, seed=2))


def test_table_with_class_names_for_labels_and_gaps(photos: Path) -> None:
    (photos / "t.csv").write_text("file,label\ncat/a.png,zebra\ndog/c.png,\ncat/more/b.png,ape\n")
    inputs = load_data("folder:.", csv="t.csv", folder=photos)
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [1, -1, 0]
    assert inputs.label_names == ("ape", "zebra")


def test_table_without_labels(photos: Path) -> None:
    (photos / "t.csv").write_text("file\ncat/a.png\n")
    assert load_data("folder:.", csv="t.csv", folder=photos).labels is None


def test_label_names_from_a_list(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('["zero", "one"]')
    np.savez(tmp_path / "a.npz", images=pixels(2, 4, 4, 3), labels=[1, 0])
    inputs = load_data("npz:a.npz", label_names="names.json", folder=tmp_path)
    assert inputs.label_names == ("zero", "one")
    (tmp_path / "names.json").write_text('["zero"]')
    with pytest.raises(DataError, match=r"label 1 of sample '0' is out of range; expected 0 to 0"):
        load_data("npz:a.npz", label_names="names.json", folder=tmp_path)
    for content, message in (
        ("[", "cannot be read as json"),
        ("[1]", "[Ee]xpected a json list with"),
    ):
        (tmp_path / "names.json").write_text(content)
        with pytest.raises(DataError, match=f"names.json: .*{message}"):
            load_data("npz:a.npz", label_names="names.json", folder=tmp_path)


def test_limit_is_spread_over_the_set() -> None:
    everything = load_data("digits")
    few = load_data("digits", limit=5)
    assert few.ids == tuple(everything.ids[i] for i in (0, 179, 358, 538, 717))
    assert torch.equal(few.load(4), everything.load(717))
    assert few.labels is not None
    assert everything.labels is not None
    assert few.labels[4] == everything.labels[717]
    assert spread(3, 10) == [0, 1, 2]


# --- what users have -------------------------------------------------------------------------


def test_tensors_and_arrays() -> None:
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    assert as_inputs(x).load(2).dtype == torch.float64
    assert as_inputs((x, np.array([0, 1, 2]))).labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert as_inputs((x, None)).labels is None
    assert as_inputs(pixels(2, 4, 4, 3)).sample_shape == (3, 4, 4)
    assert as_inputs(torch.rand(3, 7)).sample_shape == (7,)
    inputs = as_inputs(x)
    assert as_inputs(inputs) is inputs
    assert as_inputs(TensorDataset(x, torch.tensor([5, 6, 7]))).labels.tolist() == [5, 6, 7]  # type: ignore[union-attr]


class Items(Dataset[object]):
    """A data set of given items; an exception among them is raised when it is read."""

    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


def test_data_set_of_pairs_and_its_subset() -> None:
    images = [torch.rand(3, 4, 4) for _ in range(3)]
    data = Items([(image, number + 5) for number, image in enumerate(images)])
    inputs = as_inputs(data)
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [5, 6, 7]
    assert torch.equal(inputs.load(1), images[1])
    part = as_inputs(Subset(data, [2, 0]))
    assert part.labels is not None
    assert part.labels.tolist() == [7, 5]
    assert torch.equal(part.load(0), images[2])


def test_data_set_of_pictures_without_labels() -> None:
    data = Items([Image.fromarray(pixels(4, 5, 3))])
    inputs = as_inputs(data)
    assert inputs.labels is None
    assert inputs.sample_shape == (3, 4, 5)


def test_bad_item_of_a_data_set_is_named_and_has_no_label() -> None:
    inputs = as_inputs(Items([(torch.rand(1, 2, 2), 4), OSError("disk gone")]))
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [4, -1]
    with pytest.raises(DataError, match="item 1: OSError: disk gone"):
        inputs.load(1)


# --- what the model sees ---------------------------------------------------------------------

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])


def normalise_and_crop(images: torch.Tensor) -> torch.Tensor:
    x = (images.float() / 255 - MEAN) / STD
    return x.permute(0, 3, 1, 2)[:, :, 1:5, 2:6]


def test_picture_undoes_the_scaling_and_keeps_the_crop() -> None:
    images = pixels(2, 6, 8, 3)
    inputs = as_inputs(images, preprocess=normalise_and_crop)
    assert inputs.sample_shape == (3, 4, 4)
    assert np.array_equal(inputs.picture(1).numpy(), images[1, 1:5, 2:6])


def test_picture_of_floats_is_stretched() -> None:
    inputs = as_inputs(torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4))
    assert inputs.picture(0)[0, 0].tolist() == [0, 0, 0]
    assert inputs.picture(0)[3, 3].tolist() == [255, 255, 255]
    assert as_inputs(torch.ones(1, 1, 2, 2)).picture(0).unique().tolist() == [0]
    assert as_inputs(torch.rand(1, 7, 2, 2)).picture(0).shape == (2, 2, 3)


def test_picture_of_a_preprocessing_without_fixed_colours() -> None:
    def whiten(images: torch.Tensor) -> torch.Tensor:
        x = scale_pixels(images)
        return x - x.mean((1, 2, 3), keepdim=True)

    images = np.array([[[10], [20]]], dtype=np.uint8)[None]
    assert as_inputs(images, preprocess=whiten).picture(0)[0, :, 0].tolist() == [0, 255]


def test_reading_changes_nothing() -> None:
    images = torch.from_numpy(pixels(2, 4, 4, 3))
    before = images.clone()
    inputs = as_inputs(images)
    inputs.load(0).add_(1)
    inputs.picture(0).add_(1)
    assert torch.equal(images, before)


def test_fingerprint_tells_data_and_preprocessing_apart() -> None:
    images = pixels(40, 4, 4, 3)
    labels = torch.zeros(40, dtype=torch.int64)
    other = images.copy()
    other[0, 0, 0, 0] ^= 1
    prints = [
        as_inputs(images).fingerprint,
        as_inputs(other).fingerprint,
        as_inputs((images, labels)).fingerprint,
        as_inputs((images, labels + 1)).fingerprint,
        as_inputs(images[:39]).fingerprint,
        as_inputs(images, preprocess=lambda x: scale_pixels(x) * 2).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert as_inputs(images.copy()).fingerprint == prints[0]


def test_fingerprint_sees_every_value_in_memory() -> None:
    first = torch.from_numpy(pixels(100, 4, 4, 3))
    other = first.clone()
    other[1, 2, 2, 0] ^= 1  # not among the 16 that are prepared
    assert as_inputs(first).fingerprint != as_inputs(other).fingerprint
    floats = torch.rand(100, 5).to(torch.bfloat16)
    changed = floats.clone()
    changed[99, 4] += 1
    assert as_inputs(floats).fingerprint != as_inputs(changed).fingerprint


def test_fingerprint_sees_preprocessing_that_keeps_black_and_white() -> None:
    given = pixels(3, 4, 4, 3)
    flipped = as_inputs(given, preprocess=lambda x: scale_pixels(x).flip(-1))
    assert flipped.fingerprint != as_inputs(given).fingerprint


def test_fingerprint_of_a_selection_is_of_its_samples_only() -> None:
    first = pixels(40, 4, 4, 3)
    other = first.copy()
    other[1] = 0
    rows = [0, 5, 39]
    one, same = (as_inputs(x).select(rows).fingerprint for x in (first, other))
    assert one == same
    assert (
        as_inputs(first).select([0, 1]).fingerprint != as_inputs(other).select([0, 1]).fingerprint
    )


def many_images(folder: Path, number: int = 40) -> Path:
    for row in range(number):
        save_image(folder / f"{row:02}.bmp", pixels(4, 4, 3, seed=row))
    return folder


def test_fingerprint_of_a_folder_sees_every_file_but_not_its_place(tmp_path: Path) -> None:
    folder = many_images(tmp_path / "one")
    before = load_data(f"folder:{folder}").fingerprint
    copied = shutil.copytree(folder, tmp_path / "two", copy_function=shutil.copyfile)
    assert load_data(f"folder:{copied}").fingerprint == before
    save_image(copied / "01.bmp", pixels(4, 4, 3, seed=99))  # of the same size
    assert load_data(f"folder:{copied}").fingerprint != before


def test_fingerprint_of_a_large_folder_sees_sizes_and_some_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "WHOLE_BYTES", 100)
    monkeypatch.setattr(images, "N_OPENED", 20)
    folder = many_images(tmp_path / "one")
    before = load_data(f"folder:{folder}").fingerprint
    save_image(folder / "01.bmp", pixels(4, 4, 3, seed=99))
    assert load_data(f"folder:{folder}").fingerprint == before  # neither opened nor prepared
    with (folder / "01.bmp").open("ab") as file:
        file.write(b"longer")
    longer = load_data(f"folder:{folder}").fingerprint
    assert longer != before
    save_image(folder / "06.bmp", pixels(4, 4, 3, seed=99))  # opened, not prepared
    assert load_data(f"folder:{folder}").fingerprint != longer


def test_fingerprint_of_a_data_set_reads_samples_beyond_those_prepared() -> None:
    items: list[object] = [torch.full((1, 2, 2), float(row)) for row in range(40)]
    changed = items.copy()
    changed[1] = torch.zeros(1, 2, 2)
    assert as_inputs(Items(items)).fingerprint != as_inputs(Items(changed)).fingerprint
    unreadable = [*items[:1], OSError("gone"), *items[2:]]
    assert as_inputs(Items(unreadable)).fingerprint != as_inputs(Items(items)).fingerprint


def test_batch_takes_a_tensor_of_indices() -> None:
    inputs = as_inputs(torch.rand(4, 3))
    found = beartype(Inputs.batch)(inputs, torch.tensor([2, 0]))
    assert torch.equal(found, inputs.batch([2, 0]))


# --- ids -------------------------------------------------------------------------------------


def test_ids_that_come_twice_are_refused_where_the_data_are_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(4, 2, 2, 3), ids=["a", "b", "c", "b"])
    message = r"a.npz: samples 1 and 3 have the same id, 'b'; ids tell samples apart"
    with pytest.raises(DataError, match=message):
        load_data("npz:a.npz", folder=tmp_path)
    inputs = as_inputs(torch.ones(3, 2))
    with pytest.raises(DataError, match="samples 0 and 1 have the same id, '2'"):
        inputs.select([2, 2])


@pytest.mark.parametrize("name", ["ids", "class_names"])
def test_names_that_are_no_list_are_refused(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(1, 2, 2, 3), **{name: np.array("only")})
    with pytest.raises(DataError, match=rf"a.npz: {name}: expected a list.*; got shape \(\)"):
        load_data("npz:a.npz", folder=tmp_path)


# --- orientation -----------------------------------------------------------------------------


def turned(file: Path, orientation: int) -> np.ndarray:
    """Save a picture that is to be turned when it is shown; return it as stored."""
    image = pixels(4, 6, 3)
    exif = Image.Exif()
    exif[274] = orientation
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, exif=exif)
    return image


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_orientation_is_that_of_the_library(tmp_path: Path, suffix: str) -> None:
    """6: shown turned to the right. A warning names the first picture, once."""
    image = turned(tmp_path / f"a.{suffix}", 6)
    turned(tmp_path / f"b.{suffix}", 8)
    stored = load_data(f"folder:{tmp_path}")
    message = f"a.{suffix}: its EXIF .*orientation 6.*as torchvision"
    with pytest.warns(UserWarning, match=message) as told:
        loaded = stored.batch([0, 1])
    assert loaded.shape == (2, 3, 4, 6)
    assert len(told) == 1
    shown = load_data(f"folder:{tmp_path}", orientation="exif")
    assert shown.load(1).shape == (3, 6, 4)
    if suffix == "png":
        assert np.array_equal(shown.picture(0).numpy(), np.rot90(image, -1))
    with pytest.warns(UserWarning, match="its EXIF says"):
        assert shown.fingerprint != load_data(f"folder:{tmp_path}").fingerprint


@pytest.mark.usefixtures("unchecked")
def test_an_orientation_that_is_none(tmp_path: Path) -> None:
    message = "data: orientation must be one of stored, exif; got 'up'"
    with pytest.raises(OptionError, match=message):
        load_data(f"folder:{tmp_path}", orientation="up")  # type: ignore[arg-type]


def test_upright_pictures_and_damaged_exif_are_as_before(tmp_path: Path) -> None:
    turned(tmp_path / "a.png", 1)
    Image.fromarray(pixels(4, 6, 3)).save(tmp_path / "b.jpg", exif=b"Exif\0\0nonsense")
    inputs = load_data(f"folder:{tmp_path}")
    assert inputs.batch([0, 1]).shape == (2, 3, 4, 6)
    # Pillow says nothing, or not of which file: how the picture is to be turned is lost.
    inputs = load_data(f"folder:{tmp_path}", orientation="exif")
    with pytest.warns(UserWarning, match=r"b\.jpg: its EXIF is damaged; it and .*Replace it"):
        assert inputs.batch([0, 1]).shape == (2, 3, 4, 6)


def test_orientation_of_a_run_is_the_models_unless_the_plan_says_so(tmp_path: Path) -> None:
    from condec.models import LoadedModel
    from condec.run import Run, config

    turned(tmp_path / "p" / "a.png", 6)
    data = {"source": "folder:p"}
    for said, of_model, shape in (
        ({}, "exif", (3, 6, 4)), ({"orientation": "stored"}, "exif", (3, 4, 6)),
        ({"orientation": "exif"}, "stored", (3, 6, 4)),
    ):  # fmt: skip
        run = Run(config.from_dict({"sites": "*", "data": data | said}, folder=tmp_path))
        run.__dict__["loaded"] = LoadedModel(torch.nn.Identity(), "x", orientation=of_model)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert run.inputs.sample_shape == shape


# --- messages --------------------------------------------------------------------------------


def test_corrupt_image_is_named_and_the_others_load(photos: Path) -> None:
    file = photos / "cat" / "more" / "b.png"
    file.write_bytes(file.read_bytes()[:60])
    inputs = load_data(f"folder:{photos}")
    with pytest.raises(DataError, match=r"cat/more/b.png: cannot be read as an image"):
        inputs.load(1)
    assert inputs.load(2).shape == (3, 6, 8)
    with pytest.raises(DataError, match=r"cat/more/b.png: cannot be read as an image"):
        inputs.batch([0, 1])


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0garbage", b"\x89PNG\r\n\x1a\nbroken"])
def test_files_that_only_look_like_images(photos: Path, content: bytes) -> None:
    (photos / "cat" / "a.png").write_bytes(content)
    inputs = load_data(f"folder:{photos}")
    with pytest.raises(DataError, match=r"cat/a.png: cannot be read as an image"):
        inputs.load(0)
    assert inputs.sample_shape == (3, 6, 8)  # that of the first readable one
    assert len(inputs.fingerprint) == 16


def test_image_too_large_for_pil_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PIL refuses more than twice as many, and warns below that, which is an error here.
    save_image(photos / "cat" / "a.png", pixels(50, 50, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    inputs = load_data(f"folder:{photos}")
    with pytest.raises(DataError, match=r"cat/a.png: cannot be read as an image .*exceeds limit"):
        inputs.load(0)
    assert inputs.load(2).shape == (3, 6, 8)


def test_no_readable_sample(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 samples can be read; the last: .*a.png"):
        _ = load_data(f"folder:{tmp_path}").sample_shape


def test_image_of_another_shape_is_named(photos: Path) -> None:
    save_image(photos / "dog" / "c.png", pixels(7, 8, 3))
    inputs = load_data(f"folder:{photos}")
    message = r"'dog/c.png' has shape \(3, 7, 8\); the first sample has \(3, 6, 8\). Resize"
    with pytest.raises(DataError, match=message):
        inputs.load(2)
    with pytest.raises(DataError, match=message):
        inputs.batch([0, 2])


def test_image_of_another_shape_than_the_model_takes(photos: Path) -> None:
    inputs = load_data(f"folder:{photos}", shape=(1, 8, 8))
    with pytest.raises(
        DataError, match=r"'cat/a.png' has shape \(3, 6, 8\); the model has \(1, 8, 8\)"
    ):
        inputs.load(0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, tmp_path: Path) -> None:
    images = np.zeros((3, 1, 2, 2), dtype=np.float32)
    images[1, 0, 0] = value
    np.savez(tmp_path / "a.npz", images=images, ids=["a", "b", "c"])
    inputs = load_data("npz:a.npz", folder=tmp_path)
    with pytest.raises(DataError, match=r"a.npz: sample 'b': 2 of 4 values are not finite"):
        inputs.load(1)
    assert inputs.load(2).shape == (1, 2, 2)


def test_empty_sets(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((0, 4, 4, 3), dtype=np.uint8))
    (tmp_path / "t.csv").write_text("file,label\n")
    (tmp_path / "nothing").mkdir()
    for source in ("npz:a.npz", "folder:nothing"):
        with pytest.raises(DataError, match="empty; expected at least one sample"):
            load_data(source, folder=tmp_path)
    with pytest.raises(DataError, match=r"t.csv: empty; expected the columns file,label"):
        load_data("folder:nothing", csv="t.csv", folder=tmp_path)
    with pytest.raises(DataError, match="Items: empty"):
        as_inputs(Items([]))
    with pytest.raises(DataError, match="data: empty"):
        as_inputs(torch.zeros(0, 3, 4, 4))


def test_labels_missing_where_needed() -> None:
    images = torch.rand(2, 1, 4, 4)
    message = "data: labels missing, and control needs them; give an array 'labels'"
    with pytest.raises(DataError, match=message):
        as_inputs(images).needed_labels("control")
    with pytest.raises(DataError, match=message):
        as_inputs((images, torch.tensor([-1, -1]))).needed_labels("control")
    assert as_inputs((images, torch.tensor([-1, 2]))).needed_labels("x").tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2], r"label 2 of sample '1' is out of range; expected 0 to 1 \(2 names\)"),
        ([-2, 0], r"label -2 of sample '0' is out of range; expected 0 to 1 \(2 names\), or -1"),
        ([0], "2 samples, but 1 labels"),
        ([0.5, 1.0], r"expected whole numbers as labels, .*; got 1 that are none, first 0.5"),
        ([[0], [1]], r"as labels, of shape \[sample\]; got torch.int64 of shape \(2"),
        (["a", "x"], r"label 'a' is neither .* of its classes 'x', 'y'"),
    ],
)
def test_labels_that_do_not_fit(labels: list[object], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(2, 4, 4, 3), labels=labels, class_names=["x", "y"])
    with pytest.raises(DataError, match=message):
        load_data("npz:a.npz", folder=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": pixels(2, 4, 4, 3)}, "no array 'images'; it has pictures"),
        ({"images": np.zeros((2, 4), dtype=np.int64)}, r"expected uint8 images .*got torch.int64"),
        ({"images": pixels(2, 4, 4, 9)}, r"expected uint8 images \[sample, y, x, channel\]"),
        ({"images": pixels(2, 4, 4, 3), "ids": ["a"]}, "2 samples, but 1 ids"),
        ({"images": np.array(["a", "b"])}, "images are not an array of numbers"),
        (
            {"images": np.array([{}, {}])},
            "as arrays .it holds Python objects, whose code condec never runs.*without pickle",
        ),
    ],
)
def test_arrays_that_are_no_images(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_data("npz:a.npz", folder=tmp_path)


def test_files_that_are_missing_or_damaged(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "wrong.csv").write_text("path,label\na,1\n")
    (tmp_path / "gone.csv").write_text("file,label\nx.png,1\ny.png,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    for source, csv, message in (
        ("npz:gone.npz", None, r"gone.npz: there is no such file"),
        ("npz:a.npz", None, r"a.npz: cannot be read as arrays"),
        ("folder:gone", None, r"gone: there is no such folder"),
        ("folder:photos", "no.csv", r"no.csv: there is no such file; expected csv"),
        ("folder:photos", "binary.csv", r"binary.csv: cannot be read as csv"),
        ("folder:photos", "wrong.csv", r"no column 'file'; expected file,label.*got path,label"),
        ("folder:photos", "gone.csv", r"gone.csv: none of its 2 files is in .*photos"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(source, csv=csv, folder=tmp_path)


@pytest.mark.parametrize(
    ("source", "extra", "message"),
    [
        ("cifar", {}, "data 'cifar': expected one of digits, npz:FILE"),
        ("npz:", {}, "expected one of digits"),
        ("digits:all", {}, "expected one of digits"),
        ("folder:a?table=b", {}, "expected no key but csv; got table"),
        ("npz:a.npz", {"csv": "b.csv"}, "a csv belongs to folder:DIR only; got csv='b.csv'"),
        ("digits", {"limit": 0}, "limit must be at least 1; got 0"),
    ],
)
def test_sources_that_are_not_understood(
    source: str, extra: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        load_data(source, **extra)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (lambda images: images, "expected 1 float samples from the preprocessing; got torch.uint8"),
        (lambda images: images[0].float() / 0, "expected 1 float samples"),
        (lambda images: {}["mean"], "preprocessing of sample '0', .* failed: KeyError: 'mean'"),
    ],
)
def test_preprocessing_that_fails(preprocess: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_inputs(pixels(1, 4, 4, 3), preprocess=preprocess).load(0)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [[1, 2, 3], "digits", object(), (1, 2, 3)])
def test_what_is_no_data(data: object) -> None:
    with pytest.raises(DataError, match="data: expected a tensor, a pair"):
        as_inputs(data)


def test_vectors_have_no_picture() -> None:
    with pytest.raises(DataError, match=r"sample '1' of shape \(7,\) is no picture"):
        as_inputs(torch.rand(2, 7)).picture(1)


def test_ids_are_as_many_as_samples_in_a_hand_made_set() -> None:
    inputs = Inputs("mine", ("a", "b"), lambda index: torch.full((2,), float(index)))
    assert inputs.batch([1, 0]).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert inputs[1][1] == -1
    assert json.loads(json.dumps(inputs.ids)) == ["a", "b"]
    assert inputs.select([1]).select([0]).ids == ("b",)


@pytest.mark.needs_shared
def test_real_photos_and_arrays(shared_data: Path) -> None:
    photos = load_data("folder:photos", csv="photos.csv", folder=shared_data / "imagenet")
    assert len(photos) == 120
    assert photos.label_names is not None
    assert photos.label_names[7] == "cock"
    assert photos.sample_shape == (3, 224, 224)
    cifar = load_data("npz:cifar10/test_2000.npz", folder=shared_data)
    assert cifar.label_names is not None
    assert (len(cifar), cifar.label_names[3]) == (2000, "cat")


# --- loaders, lists and mappings -------------------------------------------------------------


def pairs() -> list[tuple[torch.Tensor, int]]:
    return [(torch.full((2,), float(row)), row + 3) for row in range(5)]


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"drop_last": True}])
def test_a_loader_stands_for_its_data_set(options: dict[str, bool]) -> None:
    inputs = as_inputs(DataLoader(pairs(), batch_size=2, **options))  # type: ignore[arg-type]
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [3, 4, 5, 6, 7]
    assert [float(inputs.load(row)[0]) for row in range(5)] == [0, 1, 2, 3, 4]


def test_loaders_that_give_other_samples_than_their_data_set() -> None:
    data: Any = pairs()
    for loader in (
        DataLoader(data, collate_fn=lambda some: some),
        DataLoader(data, sampler=WeightedRandomSampler([1.0] * 5, 5)),
        DataLoader(data, sampler=RandomSampler(data, replacement=True)),
        DataLoader(data, sampler=SubsetRandomSampler([1, 2])),
    ):
        message = r"a sampler or collate_fn of its own .*condec.as_inputs\(loader.dataset\)"
        with pytest.raises(DataError, match=message):
            as_inputs(loader)


def test_a_data_set_in_turn_goes_through_a_list() -> None:
    class Stream(IterableDataset[object]):
        def __iter__(self) -> Iterator[object]:
            return iter(pairs())

    for data in (Stream(), DataLoader(Stream(), batch_size=2)):
        message = r"Stream gives its items in turn.*condec.as_inputs\(list\(data\)\)"
        with pytest.raises(DataError, match=message):
            as_inputs(data)
    assert as_inputs(list(Stream())).labels.tolist() == [3, 4, 5, 6, 7]  # type: ignore[union-attr]


def test_a_batch_of_a_loader_is_a_pair() -> None:
    batch = next(iter(DataLoader(pairs(), batch_size=3)))  # type: ignore[arg-type]
    assert isinstance(batch, list)
    inputs = as_inputs(batch)
    assert inputs.labels is not None
    assert (len(inputs), inputs.labels.tolist()) == (3, [3, 4, 5])


def test_items_that_are_mappings() -> None:
    rows = [{"pixel_values": x, "label": y} for x, y in pairs()]
    inputs = as_inputs(rows)
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [3, 4, 5, 6, 7]
    assert torch.equal(inputs.load(1), pairs()[1][0])
    assert as_inputs([{"x": x} for x, _ in pairs()]).labels is None
    whole = as_inputs({"x": torch.ones(2, 3), "labels": torch.tensor([4, 5])})
    assert whole.labels is not None
    assert whole.labels.tolist() == [4, 5]
    message = r"expected one input beside label or labels; got x, mask. A model of several inputs"
    with pytest.raises(DataError, match=message):
        as_inputs([{"x": torch.ones(2), "mask": torch.ones(2), "label": 1}])
    with pytest.raises(DataError, match=r"got x, mask. A model of several inputs.*SeveralInputs"):
        as_inputs([{"x": torch.ones(2), "mask": torch.ones(2)}]).load(0)


def test_tokens_name_what_embeds_them() -> None:
    message = r"got torch.int64 of shape .*condec.SeveralInputs.*condec.LanguageModel"
    with pytest.raises(DataError, match=message):
        as_inputs(torch.ones(2, 3, dtype=torch.int64))


def test_data_sets_of_other_libraries() -> None:
    """Those of Hugging Face are no torch data sets, and give mappings of pictures and labels."""

    class Rows:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": Image.fromarray(pixels(3, 3, 3, seed=index)), "label": 1 - index}

    inputs = as_inputs(Rows())
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [1, 0]
    assert np.array_equal(inputs.picture(1).numpy(), pixels(3, 3, 3, seed=1))
