"""Models of several inputs, as batches of mappings, tuples and lists give them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from condec.basis.errors import DataError, ModelError
from condec.data.arrays import LABEL_KEYS, as_labels, from_arrays
from condec.data.inputs import Inputs
from condec.network.packed import PackedInput

Fields = dict[str | int, Any]
"""Inputs of a model by the names of its arguments, or by their places."""
Shapes = dict[str | int, tuple[torch.Size, torch.dtype]]

_TOKENS, _EMBEDDED = "input_ids", "inputs_embeds"


class SeveralInputs(PackedInput):
    """A model of several inputs, as one of a single tensor.

    One input moves from the baseline to its value: the only one of floating type, or the one
    that `moves` names. Where none floats and there are ``input_ids``, their embeddings move, which
    the model then gets as ``inputs_embeds``. All other tensors belong to their samples and stay as
    they are; what is no tensor is handed on. Labels (``label``, ``labels``) are left out.

    The model is ``model`` in the names of sites.

    Parameters
    ----------
    model : torch.nn.Module
    batch : mapping, or sequence, of tensors [sample, ...]
        An example: what the model is called with, by name or in order. All batches have its
        shapes, but for the number of samples: pad tokens to one length.
    moves : str or int, optional
        The input that moves, where several are of floating type.

    Raises
    ------
    DataError
        Which input moves is not clear, tensors are not [sample, ...], or a batch does not fit the
        example.
    ModelError
        The model has no embeddings of its tokens.

    Examples
    --------
    >>> class Gated(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = nn.Linear(3, 2)
    ...     def forward(self, image, mask):
    ...         return self.linear(image) * mask
    >>> batch = {"image": torch.rand(4, 3), "mask": torch.tensor([[1], [0], [1], [1]])}
    >>> model = SeveralInputs(Gated().eval(), batch)
    >>> packed = model.pack(batch)
    >>> packed.shape, model(packed).shape, model.moving(packed).equal(batch["image"])
    (torch.Size([4, 4]), torch.Size([4, 2]), True)
    """

    def __init__(
        self, model: nn.Module, batch: Mapping[str, Any] | Sequence[Any],
        moves: str | int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        fields = _fields(batch)
        tensors = {key: value for key, value in fields.items() if isinstance(value, Tensor)}
        self._moves = _moving(tensors, moves)
        self._constants = {key: value for key, value in fields.items() if key not in tensors}
        self._shapes = _shapes(fields)
        self._places = tuple(fields)
        self._size = self._start(tensors[self._moves])[0].numel()
        self.train(model.training)

    def pack(self, batch: Mapping[str, Any] | Sequence[Any]) -> Tensor:
        """Make the input of this model, [sample, entry], of a batch like the example."""
        fields = _fields(batch)
        shapes = _shapes(fields)
        others = {key: value for key, value in fields.items() if key not in shapes}
        if shapes != self._shapes or others != self._constants:
            raise DataError(
                f"SeveralInputs: expected a batch like the example, {_shown(self._shapes)} and "
                f"{self._constants}; got {_shown(shapes)} and {others}. Pad tokens to one length"
            )
        parts = [self._start(fields[self._moves])]
        for key in shapes:
            if key != self._moves:
                parts.append(_exact(key, fields[key], parts[0]))
        return torch.cat([part.flatten(1) for part in parts], 1)

    def inputs(self, batches: Iterable[Any], name: str = "batches") -> Inputs:
        """Pack batches, those of a DataLoader for example, for `condec.collect`.

        They are kept in memory. Labels are under ``label`` or ``labels`` in a mapping; else a batch
        is a pair of what the model takes and labels, or a sequence with labels as its last.
        """
        packed, labels = [], []
        for batch in batches:
            fields, given = batch, None
            if isinstance(batch, Mapping):
                given = next((batch[key] for key in LABEL_KEYS if key in batch), None)
            elif len(batch) == 2 and isinstance(batch[0], Mapping | tuple | list):
                fields, given = batch
            elif len(batch) == len(self._places) + 1:
                *fields, given = batch
            packed.append(self.pack(fields))
            labels.append(None if given is None else as_labels(name, given))
        if not packed:
            raise DataError(f"{name}: empty; expected at least one batch")
        with_labels = [one for one in labels if one is not None]
        if with_labels and len(with_labels) < len(labels):
            raise DataError(f"{name}: {len(with_labels)} of {len(labels)} batches have labels")
        return from_arrays(
            name, torch.cat(packed).cpu(), torch.cat(with_labels).cpu() if with_labels else None
        )

    def moving(self, packed: Tensor) -> Tensor:
        """Return the input that moves, of inputs or maps of this model, in its own shape."""
        shape = self._shapes[self._moves][0]
        if self._moves == _TOKENS:
            shape = torch.Size((*shape, self._table.embedding_dim))
        return packed[:, : self._size].view(len(packed), *shape)

    def fixed(self, inputs: Tensor) -> Tensor | None:
        """Say that all stay but the input that moves."""
        return torch.arange(inputs.shape[1], device=inputs.device) >= self._size

    def real(self, inputs: Tensor) -> Tensor | None:
        """Say which tokens are real, where an ``attention_mask`` [sample, token] tells."""
        mask = self._others(inputs).get("attention_mask")
        return None if mask is None or mask.ndim != 2 else mask > 0

    def _others(self, packed: Tensor) -> Fields:
        """Return the inputs that stay."""
        found, at = Fields(), self._size
        for key, (shape, dtype) in self._shapes.items():
            if key != self._moves:
                part = packed[:, at : at + shape.numel()].detach()
                found[key] = part.reshape(len(packed), *shape).to(dtype)
                at += shape.numel()
        return found

    def forward(self, packed: Tensor) -> Any:
        """Call the model with its inputs."""
        name = _EMBEDDED if self._moves == _TOKENS else self._moves
        found = self._constants | self._others(packed) | {name: self.moving(packed)}
        if isinstance(name, int):
            return self.model(*(found[place] for place in self._places))
        return self.model(**{str(key): value for key, value in found.items()})

    @property
    def _table(self) -> nn.Embedding:
        table = getattr(self.model, "get_input_embeddings", lambda: None)()
        if not isinstance(table, nn.Embedding):
            raise ModelError(
                f"SeveralInputs: {type(self.model).__name__} has no get_input_embeddings, so its "
                f"{_TOKENS} cannot move; wrap it in a module that takes embeddings"
            )
        return table

    def _start(self, moving: Tensor) -> Tensor:
        """Return the input that moves, embedded where it is tokens, as the model takes it."""
        like = next((p for p in self.model.parameters() if p.is_floating_point()), moving)
        if self._moves != _TOKENS:
            return moving.to(like)
        with torch.no_grad():
            embedded: Tensor = self._table(moving.to(like.device))
        return embedded


def _fields(batch: Mapping[str, Any] | Sequence[Any]) -> Fields:
    """Return inputs by name or place; DataError where they are no such collection of tensors."""
    if isinstance(batch, Mapping):
        found: Fields = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
    elif isinstance(batch, tuple | list):
        found = dict(enumerate(batch))
    else:
        found = {}
    tensors = [value for value in found.values() if isinstance(value, Tensor)]
    if not tensors or any(t.ndim < 1 or len(t) != len(tensors[0]) for t in tensors):
        raise DataError(
            "SeveralInputs: expected a mapping or sequence of tensors, each [sample, ...]; "
            f"got {type(batch).__name__} of {_shown(_shapes(found))}"
        )
    return found


def _moving(tensors: Fields, moves: str | int | None) -> str | int:
    """Find the input that moves."""
    floating = [key for key, value in tensors.items() if value.is_floating_point()]
    if moves is not None and (moves in floating or (moves == _TOKENS and moves in tensors)):
        return moves
    if moves is None and len(floating) == 1:
        return floating[0]
    if moves is None and not floating and _TOKENS in tensors:
        return _TOKENS
    raise DataError(
        f"SeveralInputs: one input of floating type, or {_TOKENS}, moves; say which by moves=...; "
        f"got moves={moves!r} of {', '.join(map(repr, tensors))}, where "
        f"{', '.join(map(repr, floating)) or 'none'} are floating"
    )


def _exact(key: str | int, values: Tensor, like: Tensor) -> Tensor:
    """Return what stays in the type of what moves, which must hold it exactly."""
    stored = values.to(like)
    if not bool((stored.to(values.dtype) == values.to(like.device)).all()):
        raise DataError(
            f"SeveralInputs: {key!r} has values that {like.dtype} cannot hold; make the model "
            "wider, by model.float() or model.double()"
        )
    return stored


def _shapes(fields: Fields) -> Shapes:
    """Return the shape of one sample, and the type, of every tensor."""
    tensors = {key: value for key, value in fields.items() if isinstance(value, Tensor)}
    return {key: (value.shape[1:], value.dtype) for key, value in tensors.items()}


def _shown(shapes: Shapes) -> str:
    each = (f"{key} {[*shape]} {dtype}" for key, (shape, dtype) in shapes.items())
    return ", ".join(each) or "no tensor"
