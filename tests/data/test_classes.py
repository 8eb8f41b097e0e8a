"""Numbers of classes: of folders and tables by name, of items by their own labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import condec
from condec.basis.errors import DataError
from condec.data import Inputs, as_inputs, load_data
from condec.data.classes import numbers_of_names
from condec.models.torchvision import import_torchvision


def photos(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(folder / file)
    return folder


def labels_of(inputs: Inputs) -> dict[str, int]:
    assert inputs.labels is not None
    return dict(zip(inputs.ids, inputs.labels.tolist(), strict=True))


# --- folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "__MACOSX", ".Trash", "@eaDir"])
def test_junk_folders_are_no_classes(tmp_path: Path, junk: str) -> None:
    photos(tmp_path, f"{junk}/a.png", f"cat/{junk}/b.png", "cat/a.png", "cat/._a.png", "dog/a.png")
    inputs = load_data(f"folder:{tmp_path}")
    assert labels_of(inputs) == {"cat/a.png": 0, "dog/a.png": 1}
    assert inputs.label_names == ("cat", "dog")


OUTPUTS = ("tench, Tinca tinca", "great white shark, white shark", "King_crab", "cock", "cock")


def test_folders_have_the_numbers_of_the_model(tmp_path: Path) -> None:
    photos(tmp_path, "king crab/a.png", "Tinca_Tinca/b.png", "white-shark/c.png", "d.png")
    inputs = load_data(f"folder:{tmp_path}", cells=OUTPUTS)
    wanted = {"Tinca_Tinca/b.png": 0, "white-shark/c.png": 1, "king crab/a.png": 2, "d.png": -1}
    assert labels_of(inputs) == wanted
    assert inputs.label_names == OUTPUTS


def test_own_label_names_come_before_those_of_the_model(tmp_path: Path) -> None:
    photos(tmp_path / "p", "b/a.png", "c/a.png")
    (tmp_path / "names.json").write_text(json.dumps(["a", "b", "c"]))
    inputs = load_data("folder:p", label_names="names.json", cells=OUTPUTS, folder=tmp_path)
    assert labels_of(inputs) == {"b/a.png": 1, "c/a.png": 2}


@pytest.mark.parametrize("name", ["goldfish", "cock"])
def test_a_name_that_fits_none_or_several_is_refused_with_both_lists(
    tmp_path: Path, name: str
) -> None:
    photos(tmp_path, f"{name}/a.png", "king crab/a.png")
    message = rf"1 of 2 classes .*: '{name}'. The 5 label names: 'tench, Tinca tinca', 'great white"
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{tmp_path}", cells=OUTPUTS)


def test_the_models_numbers_through_a_run(tmp_path: Path) -> None:
    """Digits 3 and 7 alone: outputs 3 and 7, not 0 and 1."""
    from condec.run import Run, config

    photos(tmp_path / "some", "7/a.png", "3/a.png")
    run = Run(config.from_dict({"sites": "block1", "data": {"source": "folder:some"}},
                               folder=tmp_path))  # fmt: skip
    assert labels_of(run.inputs) == {"3/a.png": 3, "7/a.png": 7}


@pytest.mark.parametrize("before", [(), ("background",)])
def test_synsets_of_imagenet(tmp_path: Path, before: tuple[str, ...]) -> None:
    import_torchvision()
    info = pytest.importorskip("timm.data").ImageNetInfo()
    names = (*before, *(info.index_to_description(i) for i in range(1000)))
    photos(tmp_path, "n01514668/a.png", "n02012849_crane/b.png", "n03126707 crane/c.png")
    inputs = load_data(f"folder:{tmp_path}", cells=names)
    wanted = [(7, "cock"), (134, "crane"), (517, "crane")]
    assert inputs.labels is not None
    for label, (number, name) in zip(inputs.labels.tolist(), wanted, strict=True):
        assert label == number + len(before)
        assert names[label].startswith(name)
    with pytest.raises(DataError, match="none of the label names"):
        load_data(f"folder:{tmp_path}", cells=names[::-1])


def test_torchvision_calls_imagenet_as_wordnet_does(tmp_path: Path) -> None:
    models = import_torchvision().models
    names = models.ResNet50_Weights.DEFAULT.meta["categories"]
    photos(tmp_path, "n01514668/a.png", "n02012849/b.png", "n03126707/c.png")
    assert list(labels_of(load_data(f"folder:{tmp_path}", cells=names)).values()) == [7, 134, 517]


def test_folders_whose_numbers_cannot_be_told(tmp_path: Path) -> None:
    photos(tmp_path / "numbers", "3/a.png", "7/a.png")
    with pytest.raises(DataError, match=r"folders '3', '7' would be numbered '0', '1'. Remove"):
        load_data(f"folder:{tmp_path / 'numbers'}")
    photos(tmp_path / "all", *(f"{n:02}/a.png" for n in range(11)))
    assert [*labels_of(load_data(f"folder:{tmp_path / 'all'}")).values()] == [*range(11)]
    photos(tmp_path / "gap", "a/a.png", "c/a.png")
    (tmp_path / "gap" / "b").mkdir()
    with pytest.raises(DataError, match="folders without an image, 'b', may be classes"):
        load_data(f"folder:{tmp_path / 'gap'}")
    assert [*labels_of(load_data(f"folder:{tmp_path / 'gap'}", cells="abc")).values()] == [0, 2]


class Three(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def test_numbers_by_the_alphabet_are_no_outputs_of_a_larger_model(tmp_path: Path) -> None:
    photos(tmp_path / "p", "cat/a.png", "dog/a.png")
    inputs = load_data(f"folder:{tmp_path / 'p'}")
    options: dict[str, Any] = {"method": condec.ActGrad(), "progress": False}
    message = r"2 classes \('cat', 'dog'\) have the numbers 0 to 1 .* the model has 3 outputs"
    with pytest.raises(DataError, match=message):
        condec.collect(Three().eval(), inputs, "linear", out=tmp_path / "a.zarr",
                       target=condec.Label(), **options)  # fmt: skip
    condec.collect(Three().eval(), inputs, "linear", out=tmp_path / "b.zarr", **options)
    inputs.check_outputs(2)


# --- tables ----------------------------------------------------------------------------------


def table(folder: Path, *labels: str) -> Path:
    photos(folder, *(f"{row}.png" for row in range(len(labels))))
    rows = "\n".join(f"{row}.png,{label}" for row, label in enumerate(labels))
    (folder / "t.csv").write_text(f"file,label\n{rows}\n")
    return folder


def test_numbers_of_tables(tmp_path: Path) -> None:
    inputs = load_data("folder:.", csv="t.csv", folder=table(tmp_path, "3.0", "", " 7", "+1", "-1"))
    assert [*labels_of(inputs).values()] == [3, -1, 7, 1, -1]


def test_names_of_tables_have_the_numbers_of_the_model(tmp_path: Path) -> None:
    folder = table(tmp_path, "white shark", "", "tench")
    inputs = load_data("folder:.", csv="t.csv", folder=folder, cells=OUTPUTS)
    assert [*labels_of(inputs).values()] == [1, -1, 0]


@pytest.mark.parametrize(("odd", "shown"), [("0.5", "0.5"), ("n/a", "n/a"), ("nan", "nan")])
def test_labels_of_tables_that_are_neither_numbers_nor_names(
    tmp_path: Path, odd: str, shown: str
) -> None:
    with pytest.raises(DataError, match=f"t.csv: labels: expected whole numbers.*'{shown}'. Leave"):
        load_data("folder:.", csv="t.csv", folder=table(tmp_path, "3", odd))


def test_numbers_of_a_table_are_not_numbered_by_the_alphabet(tmp_path: Path) -> None:
    """As pandas writes them where one is missing: label 10 stays 10, and class 2 is empty."""
    given = ["0.0", "10.0", "", "1.0 ", " 11.0", "3.0"]
    inputs = load_data("folder:.", csv="t.csv", folder=table(tmp_path, *given))
    assert [*labels_of(inputs).values()] == [0, 10, -1, 1, 11, 3]
    assert inputs.label_names is None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["1", "2", "3", "1O"], "'1O' in line 5, among '1', '2', '3', '1O'. Leave"),
        (["cat", "dog", "7", "dog"], "'7' in line 4"),
        (["1", "2.5"], "'2.5' in line 3"),
        (["1", "nan"], "'nan' in line 3"),
        (["cat", "NaN"], "'NaN' in line 3"),
        (["-inf", "inf"], "'-inf' in line 2"),
        (["cat/0.png", "cat/1.png"], "'cat/0.png' in line 2"),
        (["1", "200000000"], "'200000000' in line 3"),
        (["1", "9" * 400], "'9+' in line 3"),
        (["1", "\N{SUPERSCRIPT TWO}"], "'\N{SUPERSCRIPT TWO}' in line 3"),
        (["1", "-2"], "'-2' in line 3"),
    ],
)
def test_the_first_label_that_is_none_is_shown_with_its_line(
    tmp_path: Path, given: list[str], shown: str
) -> None:
    with pytest.raises(DataError, match=f"t.csv: labels: expected whole numbers.*got {shown}"):
        load_data("folder:.", csv="t.csv", folder=table(tmp_path, *given))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n0.png,1\n,2\n", "line 3 names no file"),
        ("label,file\n1,0.png\n2\n", "line 3 names no file"),
        ("file,label\n0.png,tench, Tinca tinca\n", "line 2 has 3 cells, and the first line 2; put"),
        ("file,label,label\n0.png,1,2\n", "several columns of one name; expected file,label"),
        (",label\n0.png,1\n", "no column 'file'; expected .* got ,label"),
        ('file,label\n0.png,"1\n1.png,2\n', "cannot be read as csv .Error: unexpected end of data"),
        ("file,label\n0.png,1\n1.png,2\n\n 0.png ,3\n", "lines 2 and 5 both name '0.png'"),
        (
            "file,label,name\n0.png,1,cat\n1.png,1,dog\n",
            "label 1 is 'cat' above and 'dog' in line 3",
        ),
        ("", "empty; expected the columns file,label"),
        ("file,label\n\0,1\n", "none of its 1 files is in"),
        (f"file,label\n{'a' * 300}.png,1\n", "none of its 1 files is in"),
    ],
)
def test_rows_that_are_not_as_the_first_line_says(tmp_path: Path, text: str, message: str) -> None:
    (table(tmp_path, "1", "2") / "t.csv").write_text(text)
    with pytest.raises(DataError, match=f"t.csv: {message}"):
        load_data("folder:.", csv="t.csv", folder=tmp_path)


def test_blank_columns_and_spaces_are_passed_over(tmp_path: Path) -> None:
    text = "file , label,,\n 0.png, 4 ,,\n1.png\n"
    (table(tmp_path, "1", "2") / "t.csv").write_text(text)
    assert labels_of(load_data("folder:.", csv="t.csv", folder=tmp_path)) == {
        "0.png": 4, "1.png": -1,
    }  # fmt: skip


def test_two_classes_that_mean_one_label_are_refused(tmp_path: Path) -> None:
    photos(tmp_path, "King_crab/a.png", "king crab/a.png")
    with pytest.raises(
        DataError, match=r"classes 'King_crab' and 'king crab' are both label 2, 'K"
    ):
        load_data(f"folder:{tmp_path}", cells=OUTPUTS)


def test_labels_that_no_table_has_room_for_are_refused() -> None:
    x = torch.ones(3, 2)
    for top in (1_000_000, 200_000_000, 2**62):
        message = f"label {top} of sample '1' is out of range; expected 0 to 999999, or -1"
        with pytest.raises(DataError, match=message):
            as_inputs((x, torch.tensor([0, top, 1])))
    assert as_inputs((x, torch.tensor([0, 999_999, 1]))).labels is not None


# --- data sets -------------------------------------------------------------------------------


class Items(Dataset[object]):
    """A data set of inputs with given labels, and any attributes."""

    def __init__(self, given: list[Any], **attributes: Any) -> None:
        self.given = given
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> object:
        return torch.ones(2), self.given[index]


def test_labels_are_those_of_the_items() -> None:
    data = Items([5, 3, 4], targets=[0, 0, 0], labels=[1, 1, 1])
    assert as_inputs(data).labels.tolist() == [5, 3, 4]  # type: ignore[union-attr]
    assert as_inputs(Subset(data, [2, 0])).labels.tolist() == [4, 5]  # type: ignore[union-attr]


def test_a_target_transform_is_honoured(tmp_path: Path) -> None:
    datasets = import_torchvision().datasets
    photos(tmp_path, "a/1.png", "b/1.png", "c/1.png")
    plain = datasets.ImageFolder(str(tmp_path))
    assert as_inputs(plain).labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert as_inputs(plain).label_names == ("a", "b", "c")
    turned = datasets.ImageFolder(str(tmp_path), target_transform=lambda label: 9 - label)
    for data, wanted in ((turned, [9, 8, 7]), (Subset(turned, [2, 0]), [7, 9])):
        inputs = as_inputs(data)
        assert inputs.labels.tolist() == wanted == [data[i][1] for i in range(len(data))]  # type: ignore[union-attr]
        assert inputs.label_names is None
    plain.samples = plain.samples[1:]  # its items come from these, not from targets
    assert as_inputs(plain).labels.tolist() == [1, 2]  # type: ignore[union-attr]


def test_labels_of_a_folder_are_not_read_from_its_images(tmp_path: Path) -> None:
    datasets = import_torchvision().datasets
    data = datasets.ImageFolder(str(photos(tmp_path, "a/1.png")), loader=lambda path: 1 / 0)
    assert as_inputs(data).labels.tolist() == [0]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST"])
def test_labels_that_items_take_from_a_list_are_not_read_from_pictures(name: str) -> None:
    """Those of data sets that change something on the way are."""
    kind = getattr(import_torchvision().datasets, name)
    data = kind.__new__(kind)  # as it is once its files are read
    data.data, data.targets = torch.zeros(3, 4, 4, dtype=torch.uint8), [2, 0, 1]
    data.data = data.data if name == "MNIST" else np.zeros((3, 4, 4, 3), np.uint8)
    data.transform, data.target_transform = lambda picture: 1 / 0, None
    assert as_inputs(data).labels.tolist() == [2, 0, 1]  # type: ignore[union-attr]
    data.target_transform = lambda label: 9 - label
    assert as_inputs(data).labels.tolist() == [7, 9, 8]  # type: ignore[union-attr]
    data.transform, data.target_transform = None, None
    data.__class__ = type("Own", (kind,), {"__getitem__": lambda self, i: (torch.ones(2), i)})
    assert as_inputs(data).labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "label", [2, np.int32(2), np.array(2), np.array([2]), torch.tensor(2), torch.tensor([2]), 2.0]
)
def test_whole_numbers_are_labels(label: Any) -> None:
    assert as_inputs(Items([label, None])).labels.tolist() == [2, -1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "label",
    [0.5, float("nan"), torch.tensor(0.5), "cat", torch.tensor([0, 1]), {"boxes": 1}, (1, 2)],
)
def test_other_labels_are_refused_where_they_arise(label: Any) -> None:
    with pytest.raises(DataError, match=r"item 1: label .* is neither a whole number nor a name"):
        as_inputs(Items([0, label]))


def test_names_of_classes_have_the_numbers_of_the_data_set() -> None:
    for attributes in ({"classes": ["dog", "cat"]}, {"class_to_idx": {"cat": 1, "dog": 0}}):
        inputs = as_inputs(Items(["cat", "dog", None], **attributes))
        assert inputs.labels.tolist() == [1, 0, -1]  # type: ignore[union-attr]
        assert inputs.label_names == ("dog", "cat")
    with pytest.raises(DataError, match=r"item 0: label 'fox' .* of its classes 'dog', 'cat"):
        as_inputs(Items(["fox"], classes=["dog", "cat"]))


def test_numbers_of_a_data_set_need_not_count_from_0() -> None:
    """They are not those of its list of names."""
    for numbers in ({"cat": 1, "dog": 2}, {"cat": 5, "dog": 0}):
        for labels in (["cat", "dog"], [*numbers.values()]):
            inputs = as_inputs(Items(labels, classes=["cat", "dog"], class_to_idx=numbers))
            assert inputs.labels.tolist() == [*numbers.values()]  # type: ignore[union-attr]
            assert inputs.label_names is None
    same = as_inputs(Items([0], classes=["pet"], class_to_idx={"cat": 0, "dog": 0}))
    assert same.label_names == ("pet",)


def test_signs_tell_classes_apart() -> None:
    assert numbers_of_names("x", ["C", "C++"], ["C++", "C"]).tolist() == [1, 0]
    assert numbers_of_names("x", ["-1", "+1"], ["+1", "-1"]).tolist() == [1, 0]
    for name in ("-1", "1.5"):
        with pytest.raises(DataError, match="none of the label names"):
            numbers_of_names("x", [name], ["1", "1-5"])


def test_names_in_a_file_have_the_numbers_of_its_classes(tmp_path: Path) -> None:
    x = np.zeros((2, 4), dtype=np.float32)
    np.savez(tmp_path / "a.npz", images=x, labels=["b", "a"], class_names=["a", "b"])
    assert [*labels_of(load_data("npz:a.npz", folder=tmp_path)).values()] == [1, 0]


def test_a_data_set_of_tensors_with_items_of_its_own() -> None:
    class Shifted(TensorDataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
            x, y = super().__getitem__(index)
            return x, y + 5

    data = Shifted(torch.ones(3, 2), torch.arange(3))
    assert as_inputs(data).labels.tolist() == [5, 6, 7]  # type: ignore[union-attr]


def test_labels_given_as_floats() -> None:
    x = torch.ones(3, 2)
    assert as_inputs((x, torch.tensor([0.0, 2.0, 1.0]))).labels.tolist() == [0, 2, 1]  # type: ignore[union-attr]
    for odd in (0.5, float("inf")):
        message = f"expected whole numbers as labels.*got 1 that are none, first {odd:g}"
        with pytest.raises(DataError, match=message):
            as_inputs((x, torch.tensor([0.0, odd, 1.0])))
