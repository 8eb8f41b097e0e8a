"""Texts and tokens as inputs of a language model."""

from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.data import Inputs, load_data


@dataclass(frozen=True)
class Letters:
    """Every letter a token, its number in the alphabet; embedded as that number and its square."""

    context: int | None = None

    def tokens(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def prepare(self, tokens: Tensor) -> Tensor:
        ids, real = (tokens, None) if tokens.ndim == 2 else tokens.unbind(-1)
        columns = [ids, ids**2] if real is None else [ids * real, ids**2 * real, real]
        return torch.stack(columns, -1).float()


def texts(folder: Path, content: str, query: str = "", context: int | None = None) -> Inputs:
    (folder / "a.txt").write_text(content)
    return load_data(f"text:{folder / 'a.txt'}{query}", language=Letters(context))


def tokens(folder: Path, query: str = "", **arrays: numpy.ndarray) -> Inputs:
    numpy.savez(folder / "a.npz", **arrays)
    return load_data(f"tokens:{folder / 'a.npz'}{query}", language=Letters())


def test_a_line_is_a_text_and_its_last_token_the_label(tmp_path: Path) -> None:
    found = texts(tmp_path, "abcd\n\nbbbz\n")
    assert (found.ids, found.labels.tolist()) == (("1", "3"), [3, 25])
    assert found.load(0).tolist() == [[0, 0], [1, 1], [2, 4]]


def test_only_ends_of_lines_end_a_text(tmp_path: Path) -> None:
    found = texts(tmp_path, "\ufeffab\x0cc\u2028d\r\nef\n")
    assert found.ids == ("1", "2")
    assert found.load(0)[:, 0].tolist() == Letters().tokens("ab\x0cc\u2028")


def test_shorter_texts_are_padded_on_the_left(tmp_path: Path) -> None:
    found = texts(tmp_path, "abcd\ncb\n")
    assert found.load(0).tolist() == [[0, 0, 1], [1, 1, 1], [2, 4, 1]]
    assert found.load(1).tolist() == [[0, 0, 0], [0, 0, 0], [2, 4, 1]]
    assert found.labels.tolist() == [3, 1]


def test_long_texts_are_cut_into_windows_that_overlap(tmp_path: Path) -> None:
    found = texts(tmp_path, "abcdefg\nxy\n", "?length=3&stride=2")
    assert found.ids == ("1:0", "1:2", "2")
    assert found.labels.tolist() == [3, 5, 24]
    assert found.load(1)[:, 0].tolist() == [2, 3, 4]


def test_what_is_in_no_window_is_counted(tmp_path: Path) -> None:
    assert texts(tmp_path, "abcd\ncb\n").notes == ()
    found = texts(tmp_path, "abcdefgh\nx\nabcdef\nabcd\n", "?length=3&stride=3")
    assert found.ids == ("1:0", "1:3", "3", "4")  # not h of 1 (the label of none), not e of 3
    assert found.notes == (
        "1 of 4 texts have no token before their label, and are left out",
        "the ends of 2 of 4 texts, 3 tokens in all, fill no window of 3, and are left out",
    )
    assert found.select([0]).notes == found.notes


def test_windows_of_any_length_hold_what_stands_in_the_text(tmp_path: Path) -> None:
    text = "thequickbrownfox"
    for length in range(1, len(text) + 3):
        for stride in (1, 2, 5):
            found = texts(tmp_path, text, f"?length={length}&stride={stride}")
            for row, name in enumerate(found.ids):
                start = int(name.partition(":")[2] or 0)
                shown = [int(n) for n in found.load(row)[:, 0]]
                assert shown == Letters().tokens(text)[start : start + len(shown)]
                assert found.labels[row] == Letters().tokens(text)[start + len(shown)]


def test_whole_texts_without_labels(tmp_path: Path) -> None:
    found = texts(tmp_path, "abcd\n", "?labels=none")
    assert found.labels is None
    assert found.load(0)[:, 0].tolist() == [0, 1, 2, 3]


def test_tokens_of_a_file(tmp_path: Path) -> None:
    rows = numpy.array([[1, 2, 3, 4], [-1, -1, 5, 6]])
    found = tokens(tmp_path, tokens=rows, ids=numpy.array(["one", "two"]))
    assert (found.ids, found.labels.tolist()) == (("one", "two"), [4, 6])
    assert found.load(1).tolist() == [[0, 0, 0], [0, 0, 0], [5, 25, 1]]
    found = tokens(tmp_path, tokens=rows.astype("uint8")[:1], labels=numpy.array([7]))
    assert (found.ids, found.labels.tolist(), found.load(0)[:, 0].tolist()) == (
        ("0",), [7], [1, 2, 3, 4],
    )  # fmt: skip


def test_the_fingerprint_is_of_the_tokens_whatever_the_place(tmp_path: Path) -> None:
    both = [tmp_path / "one", tmp_path / "two"]
    for folder in both:
        folder.mkdir()
    same = [texts(folder, "abcd\ncb\n").fingerprint for folder in both]
    assert same[0] == same[1] != texts(both[0], "abcd\ncc\n").fingerprint


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"9 tokens are more than the 4 .*\?length=4"):
        texts(tmp_path, "abcdefghij\n", context=4)
    assert len(texts(tmp_path, "abcdefghij\n", "?length=4", context=4)) == 2
    with pytest.raises(DataError, match="no text of at least two tokens"):
        texts(tmp_path, "a\n\n")
    with pytest.raises(OptionError, match=r"length must be a number of tokens.*'-3'"):
        texts(tmp_path, "abc\n", "?length=-3")
    with pytest.raises(OptionError, match="labels must be next or none; got 'all'"):
        texts(tmp_path, "abc\n", "?labels=all")
    with pytest.raises(DataError, match="texts need a language model"):
        load_data(f"text:{tmp_path / 'a.txt'}")
    with pytest.raises(DataError, match="there is no such file"):
        load_data(f"text:{tmp_path / 'b.txt'}", language=Letters())
    with pytest.raises(DataError, match=r"cannot be read as tokens.*'tokens' of whole numbers"):
        tokens(tmp_path, tokens=numpy.ones((2, 3)))
    with pytest.raises(DataError, match=r"expected one id and one label.*2 texts, 1 labels"):
        tokens(tmp_path, tokens=numpy.ones((2, 3), int), labels=numpy.array([1]))
    one = {"tokens": numpy.arange(1, 9)[None], "labels": numpy.array([7])}
    with pytest.raises(OptionError, match="its labels are those of whole rows, which are not cut"):
        tokens(tmp_path, "?length=3", **one)
    with pytest.raises(DataError, match="label -2 of sample '0' is out of range"):
        tokens(tmp_path, **one | {"labels": numpy.array([-2])})
    with pytest.raises(DataError, match="text 0: -1, which is none, among its tokens"):
        tokens(tmp_path, tokens=numpy.array([[1, -1, 2]]))
