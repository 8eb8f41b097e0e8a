"""Inputs of language models: texts, or numbers of tokens, cut into windows.

A sample is a window of tokens that the model is to continue; its label is the token that came next.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.files import reading
from condec.data.arrays import as_labels
from condec.data.inputs import UNLABELLED, Inputs, bytes_of

PADDING: Final = -1
"""Stands in files of tokens where there is none."""
Text = tuple[str, Tensor, int | None]
"""Its id, its tokens, and the label of a whole one; None for the token that came last."""


@runtime_checkable
class Language(Protocol):
    """What is asked of a language model; `condec.LanguageModel` is one."""

    @property
    def context(self) -> int | None:
        """Tokens that the model takes at most, where it says so."""

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text."""

    def prepare(self, tokens: Tensor) -> Tensor:
        """Embed tokens [sample, token], or [sample, token, 2] with 1 for those that are real."""


def from_texts(file: Path, keys: Mapping[str, str], language: Language | None) -> Inputs:
    """Read a file of text, one text a line; empty lines are passed over."""
    language = _needed(language, f"text:{file}")
    with reading(file, "text in UTF-8", "Give a file with one text a line.", DataError):
        lines = file.read_text("utf-8-sig").split("\n")
    label = _label(keys)
    texts = [
        (str(number), torch.tensor(language.tokens(line)), label)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    return _inputs(str(file), texts, keys, language)


def from_tokens(file: Path, keys: Mapping[str, str], language: Language | None) -> Inputs:
    """Read an ``.npz`` file: ``tokens`` [text, token], -1 for none, and, if there, ``ids``.

    Where it holds ``labels``, the tokens that followed, every row is one sample as it stands.
    """
    language = _needed(language, f"tokens:{file}")
    expected = "Expected numpy's .npz with an array 'tokens' of whole numbers, [text, token]."
    with reading(file, "tokens", expected, DataError), file.open("rb") as opened:
        arrays = dict(np.load(opened, allow_pickle=False))
        tokens = torch.from_numpy(arrays["tokens"].astype(np.int64, casting="safe"))
        rows, _ = tokens.shape
    given, ids = arrays.get("labels"), arrays.get("ids", np.arange(rows))
    labels: list[int | None] = [_label(keys)] * rows
    if given is not None:
        if keys.keys() & {"length", "stride"}:
            raise OptionError(
                f"data tokens:{file}: its labels are those of whole rows, which are not cut: "
                "expected no length or stride; leave them out, or the labels in the file"
            )
        labels = as_labels(file.name, given).tolist()
    if len(labels) != rows or ids.shape != (rows,):
        problem = f"{rows} texts, {len(labels)} labels, ids of shape {ids.shape}"
        raise DataError(f"{file}: expected one id and one label for every text; got {problem}")
    texts = []
    for name, row, label in zip(ids, tokens, labels, strict=True):
        real = (row != PADDING).nonzero().flatten()
        if len(real) and int(real[-1] - real[0]) >= len(real):
            raise DataError(f"{file}: text {name}: {PADDING}, which is none, among its tokens")
        texts.append((str(name), row[real], label))
    return _inputs(str(file), texts, keys, language)


def _needed(language: Language | None, source: str) -> Language:
    if language is None:
        raise DataError(
            f"data {source!r}: texts need a language model, model = 'huggingface:NAME' (in Python "
            "load_data(..., language=model)); this model is none"
        )
    return language


def _label(keys: Mapping[str, str]) -> int | None:
    labels = {"next": None, "none": UNLABELLED}
    if (given := keys.get("labels", "next")) not in labels:
        raise OptionError(f"data: labels must be next or none; got {given!r}")
    return labels[given]


def _number(keys: Mapping[str, str], name: str, default: int) -> int:
    given = keys.get(name, str(default))
    if not given.isdecimal() or not 0 < int(given) <= 1_000_000:
        raise OptionError(f"data: {name} must be a number of tokens, from 1 on; got {given!r}")
    return int(given)


def _inputs(
    name: str, texts: Sequence[Text], keys: Mapping[str, str], language: Language
) -> Inputs:
    """Cut texts into windows of one length, shorter ones padded on the left."""
    longest = max((len(tokens) - (label is None) for _, tokens, label in texts), default=1)
    length = _number(keys, "length", max(longest, 1))
    stride = _number(keys, "stride", length)
    if language.context is not None and min(length, longest) > language.context:
        raise OptionError(
            f"{name}: {min(length, longest)} tokens are more than the {language.context} that the "
            f"model takes; cut the texts into windows, ?length={language.context}"
        )
    windows = [one for text in texts for one in _windows(text, length, stride)]
    if not windows:
        raise DataError(f"{name}: no text of at least two tokens, one of which is the label")
    width = max(len(tokens) for _, tokens, _ in windows)
    padded = any(len(tokens) < width for _, tokens, _ in windows)

    def read(row: int) -> Tensor:
        tokens = windows[row][1]
        if not padded:
            return tokens
        found = torch.zeros(width, 2, dtype=torch.int64)
        found[width - len(tokens) :] = torch.stack([tokens, torch.ones_like(tokens)], 1)
        return found

    def stored(rows: Iterable[int]) -> Iterator[bytes]:
        return (bytes_of(windows[row][1]) for row in rows)

    labels = torch.tensor([label for _, _, label in windows])
    ids = tuple(one for one, _, _ in windows)
    known = None if bool((labels == UNLABELLED).all()) else labels
    return Inputs(
        name, ids, read, known, preprocess=language.prepare, stored=stored,
        notes=tuple(_left_out(texts, length, stride)),
    )  # fmt: skip


def _left_out(texts: Sequence[Text], length: int, stride: int) -> Iterator[str]:
    """Say how many texts and tokens are in no window."""
    ends = [len(tokens) - (label is None) for _, tokens, label in texts]
    if short := sum(end < 1 for end in ends):
        yield f"{short} of {len(ends)} texts have no token before their label, and are left out"
    if rests := [rest for end in ends if end > length and (rest := (end - length) % stride)]:
        yield (
            f"the ends of {len(rests)} of {len(ends)} texts, {sum(rests)} tokens in all, fill no "
            f"window of {length}, and are left out"
        )


def _windows(text: Text, length: int, stride: int) -> Iterator[Text]:
    """Yield the windows of a text: all tokens but the last, which is its label, or parts of them.

    The id of a window in a longer text is that of the text with the number of its first token.
    """
    name, tokens, label = text
    end = len(tokens) - (label is None)
    starts = range(0, max(end - length, 0) + 1, stride)
    for start in starts if end > 0 else ():
        stop = min(start + length, end)
        following = int(tokens[stop]) if label is None else label
        yield name if len(starts) == 1 else f"{name}:{start}", tokens[start:stop], following
