"""Contract tests: what every implementation behind one of condec's interfaces keeps.

Subclass a contract in a test module, say how to make the object, and pytest runs the rest:

    class TestMyEdit(EditContract):
        def make_edit(self, site):
            return MyEdit(site)
"""

import copy
import json
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from condec.attribution import Contributions, Method, contribute, method_from_dict
from condec.dictionary import DeadModesWarning, Dictionary, FitReport, Learner, TrainConfig, fit
from condec.dictionary.base import load_dictionary
from condec.edits import Edit, edited
from condec.testing.models import small_resnet


class AttributionContract:
    """Every method: right shapes, no trace left, the same for any order of the samples.

    Subclasses define `make_method`; for a method of another package also `read_method`. The
    tests use the two blocks of `small_resnet`.
    """

    @abstractmethod
    def make_method(self) -> Method:
        """Make the method under test."""

    def read_method(self, record: Mapping[str, Any]) -> Method:
        """Read the method from its plain form."""
        return method_from_dict(record)

    def contribute(self, model: nn.Module, images: torch.Tensor) -> Contributions:
        """Compute contributions to the largest logit at both blocks."""
        return contribute(model, images, "block*", method=self.make_method())

    def test_shapes_and_types(self) -> None:
        """Contributions have the shape of the activation, and are finite float32."""
        batch = self.contribute(small_resnet(), _images())
        for part in batch.by_site:
            assert part.contribution.shape == part.activation.shape == (2, 4, 5, 5)
            assert part.contribution.dtype == torch.float32
            assert bool(part.contribution.isfinite().all())
            assert not part.contribution.requires_grad
        assert batch.target.shape == batch.target_baseline.shape == (2,)

    def test_nothing_is_changed_or_left_behind(self) -> None:
        """Inputs, weights, gradients, hooks and trainability are as before."""
        model, images = small_resnet(inplace=True), _images()
        with _left_alone(model, images):
            self.contribute(model, images)
        assert all(p.requires_grad and p.grad is None for p in model.parameters())

    def test_samples_do_not_see_each_other(self) -> None:
        """Order and company of the samples do not matter."""
        model, images = small_resnet().double(), _images().double()
        both = self.contribute(model, images)
        swapped = self.contribute(model, images.flip(0))
        alone = self.contribute(model, images[:1])
        for site in ("block1", "block2"):
            whole = both[site].contribution
            other = swapped[site].contribution.flip(0)
            torch.testing.assert_close(whole, other, rtol=0, atol=1e-12)
            torch.testing.assert_close(whole[:1], alone[site].contribution, rtol=0, atol=1e-12)

    def test_float32_is_close_to_float64(self) -> None:
        """Both precisions agree to a few parts in ten thousand of the largest entry."""
        single = self.contribute(small_resnet(), _images())
        double = self.contribute(small_resnet().double(), _images().double())
        for site in ("block1", "block2"):
            expected = double[site].contribution
            error = (single[site].contribution.double() - expected).abs().max()
            assert error <= 3e-4 * expected.abs().max()

    def test_plain_form_gives_the_method_back(self) -> None:
        """Through JSON and back: equal."""
        method = self.make_method()
        assert self.read_method(json.loads(json.dumps(method.to_dict()))) == method


class EditInModelContract:
    """Every edit: acts in a model, and is gone afterwards.

    Subclasses define `make_edit`, and where the edit needs another model than `small_resnet`
    the model, its inputs and the sites.
    """

    sites: tuple[str, ...] = ("block1", "block2:input")

    @abstractmethod
    def make_edit(self, site: str) -> Edit:
        """Make an edit of this kind at one of `sites`, that changes something there."""

    def make_model(self) -> nn.Module:
        """Make the model, the same every time, in evaluation mode."""
        return small_resnet()

    def make_inputs(self) -> torch.Tensor:
        """Make two inputs of the model."""
        return _images()

    def test_equal_by_value(self) -> None:
        """An edit equals its copy, and has its hash."""
        edit = self.make_edit(self.sites[0])
        copied = replace(edit)  # type: ignore[type-var]
        assert edit == copied
        assert hash(edit) == hash(copied)

    def test_model_is_as_before_after_the_context(self) -> None:
        """No hook, no weight, no output differs afterwards; inside, the output does."""
        for site in self.sites:
            model, inputs = self.make_model(), self.make_inputs()
            before = model(inputs)
            with _left_alone(model, inputs), edited(model, [self.make_edit(site)]):
                assert not torch.equal(model(inputs), before)
            assert torch.equal(model(inputs), before)

    def test_hooks_are_gone_after_an_error(self) -> None:
        """An error in the model, or in the body of the context, passes and leaves no hook."""
        model, inputs = self.make_model(), self.make_inputs()
        before = model(inputs)
        refused = (RuntimeError, ZeroDivisionError, AssertionError)
        for body in (lambda: model(torch.ones(1, 7)), lambda: 1 / 0):
            with pytest.raises(refused), edited(model, [self.make_edit(self.sites[0])]):
                body()
            assert count_hooks(model) == 0
            assert torch.equal(model(inputs), before)

    def test_contexts_nest(self) -> None:
        """Two contexts are as one with both edits; after the inner one, the outer one holds."""
        model, inputs = self.make_model(), self.make_inputs()
        edits = [self.make_edit(self.sites[0]), self.make_edit(self.sites[-1])]
        with edited(model, edits):
            both = model(inputs)
        with edited(model, edits[0]):
            outer = model(inputs)
            with edited(model, edits[1]):
                assert torch.equal(model(inputs), both)
            assert torch.equal(model(inputs), outer)
        assert count_hooks(model) == 0

    def test_works_with_and_without_gradients(self) -> None:
        """The logits are the same, and the gradient at the input is finite."""
        model, inputs = self.make_model(), self.make_inputs().requires_grad_()
        with edited(model, [self.make_edit(self.sites[0])]):
            logits = model(inputs)
            with torch.no_grad():
                torch.testing.assert_close(model(inputs), logits)
        (gradient,) = torch.autograd.grad(logits.sum(), inputs)
        assert bool(gradient.isfinite().all())

    def test_works_in_half_precision(self) -> None:
        """A bfloat16 model stays one."""
        model = self.make_model().to(torch.bfloat16)
        with edited(model, [self.make_edit(self.sites[0])]):
            assert model(self.make_inputs().to(torch.bfloat16)).dtype == torch.bfloat16

    def test_works_in_a_compiled_model(self) -> None:
        """The compiled model gives inside what the plain one gives."""
        model, inputs = self.make_model(), self.make_inputs()
        compiled: Any = torch.compile(model, backend="eager")
        with edited(model, self.make_edit(self.sites[0])):
            expected = model(inputs)
        with edited(compiled, self.make_edit(self.sites[0])):
            assert torch.equal(compiled(inputs), expected)
        assert count_hooks(model) == 0


class EditContract(EditInModelContract):
    """Every edit of an activation: leaves others' tensors alone as well.

    The tests use activations of ``block1`` of `small_resnet`: 4 channels of 5 x 5.
    """

    repeats = True
    """Whether a second version of the batch behind the first gets what the first gets."""

    def test_result_is_like_the_argument_and_apart_from_it(self) -> None:
        """Shape, dtype and device are kept; the memory is another, the argument unchanged."""
        edit = self.make_edit("block1")
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            given = _activation().to(dtype)
            before = given.clone()
            result = edit.apply(given)
            assert (result.shape, result.dtype) == (given.shape, given.dtype)
            assert result.device == given.device
            result.add_(1.0)
            assert torch.equal(given, before)

    def test_same_answer_every_time(self) -> None:
        """An edit has no memory, and does not touch the global random state."""
        edit, given = self.make_edit("block1"), _activation()
        state = torch.get_rng_state()
        assert torch.equal(edit.apply(given), edit.apply(given))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(edit.apply(given), self.make_edit("block1").apply(given))

    def test_versions_of_a_batch_are_edited_alike(self) -> None:
        """Versions one after another get what each gets alone, but for random draws."""
        edit, given = self.make_edit("block1"), _activation()
        twice = edit.apply(torch.cat([given, given]))
        assert torch.equal(twice[:2], edit.apply(given))
        assert torch.equal(twice[2:], twice[:2]) == self.repeats

    def test_single_precision_is_close_to_double(self) -> None:
        """Both types agree to rounding."""
        edit, given = self.make_edit("block1"), _activation()
        double = edit.apply(given.double())
        torch.testing.assert_close(edit.apply(given).double(), double, rtol=1e-5, atol=1e-6)

    def test_works_before_an_operation_in_place(self) -> None:
        """A network that goes on in place gives what its out-of-place twin gives."""
        outputs = []
        for inplace in (False, True):
            model = small_resnet(inplace=inplace)
            with edited(model, [self.make_edit("block1"), self.make_edit("block2.relu:input")]):
                outputs.append(model(_images()))
        assert torch.equal(*outputs)


class DictionaryContract:
    """Every learner: linear decoding, held-out rows that stay out, a file that gives it back.

    Subclasses set `learner`, with at most 8 modes, for data that are not negative: 60 rows
    of 8 units. `config` may be set to train faster.
    """

    learner: Learner
    config = TrainConfig(epochs=8, batch_size=16, lr=3e-3)

    _report: FitReport

    def fitted(self) -> FitReport:
        """Fit the rows of these tests, once for all of them."""
        kind = type(self)
        if "_report" not in kind.__dict__:
            kind._report = self.fit(_rows())
        return kind._report

    def fit(self, matrix: torch.Tensor | np.ndarray, **changes: Any) -> FitReport:
        """Fit the learner under test; on so few rows, modes may well be dead."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeadModesWarning)
            return fit(self.learner, matrix, config=replace(self.config, **changes))

    def test_shapes_and_types(self) -> None:
        """Atoms [mode, unit], loadings [sample, mode], rows [sample, unit]; decoding is linear."""
        dictionary = self.fitted().dictionary
        loadings = dictionary.encode(_rows())
        assert dictionary.atoms.shape == (self.learner.n_modes, 8)
        assert (dictionary.n_modes, dictionary.n_units) == dictionary.atoms.shape
        assert dictionary.offset.shape == (8,)
        assert loadings.shape == (60, self.learner.n_modes)
        expected = loadings @ dictionary.atoms + dictionary.offset
        torch.testing.assert_close(dictionary.decode(loadings), expected)
        assert dictionary.encode(_rows()[:0]).shape == (0, self.learner.n_modes)
        assert dictionary.decode(loadings).shape == (60, 8)
        for tensor in (dictionary.atoms, loadings, dictionary.decode(loadings)):
            assert tensor.dtype == torch.float32
            assert bool(tensor.isfinite().all())
            assert not tensor.requires_grad

    def test_input_is_left_alone(self) -> None:
        """Neither the tensor nor a read-only array is written to."""
        given = _rows()
        report = self.fit(given)
        report.dictionary.encode(given)
        assert torch.equal(given, _rows())
        array = _rows().numpy().copy()
        array.flags.writeable = False
        again = self.fit(array)
        assert torch.equal(again.dictionary.atoms, report.dictionary.atoms)
        assert torch.equal(again.dictionary.encode(array), report.dictionary.encode(given))

    def test_same_seed_same_answer(self) -> None:
        """Bit for bit, and whatever the global random state is; that state is left as it was."""
        first = self.fitted()
        torch.manual_seed(99)
        before = torch.get_rng_state()
        second = self.fit(_rows())
        assert torch.equal(torch.get_rng_state(), before)
        assert _same_tensors(first.dictionary, second.dictionary)
        assert first.metrics == second.metrics

    def test_held_out_rows_do_not_influence_the_fit(self) -> None:
        """With other values in the held-out rows: the same tensors and the same scale."""
        first, changed = self.fitted(), _rows()
        assert len(first.held_out_rows) == 12
        changed[first.held_out_rows] = 100.0 * changed[first.held_out_rows].flip(1) + 7.0
        second = self.fit(changed)
        assert torch.equal(first.held_out_rows, second.held_out_rows)
        assert _same_tensors(first.dictionary, second.dictionary)
        assert first.metrics["train"] == second.metrics["train"]
        assert first.metrics["held_out"] != second.metrics["held_out"]

    def test_splits_are_apart_and_cover_all_rows(self) -> None:
        """Each row is in one split, and the figures say how many rows they are of."""
        report = self.fitted()
        both = torch.cat((report.train_rows, report.held_out_rows)).sort().values
        assert torch.equal(both, torch.arange(60))
        assert report.metrics["train"].n_rows == len(report.train_rows) == 48
        assert report.metrics["held_out"].n_rows == len(report.held_out_rows) == 12

    def test_units_of_the_data_do_not_matter(self) -> None:
        """Data 1024 times as large: the same loadings, atoms 1024 times as large."""
        small, large = self.fitted().dictionary, self.fit(1024 * _rows()).dictionary
        torch.testing.assert_close(1024 * small.atoms, large.atoms)
        torch.testing.assert_close(small.encode(_rows()), large.encode(1024 * _rows()))

    def test_rows_are_encoded_one_by_one(self) -> None:
        """The company of a row does not matter."""
        dictionary = self.fitted().dictionary
        together = dictionary.encode(_rows())
        alone = torch.cat([dictionary.encode(row) for row in torch.split(_rows(), 1)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

    def test_file_gives_the_dictionary_back(self, tmp_path: Path) -> None:
        """Bit for bit: numbers, options, split and metrics; saving twice gives equal files."""
        report = self.fitted()
        report.save(tmp_path / "a")
        again = load_dictionary(tmp_path / "a")
        assert again.learner == self.learner
        assert again.scale == report.dictionary.scale
        assert _same_tensors(again, report.dictionary)
        assert torch.equal(again.encode(_rows()), report.dictionary.encode(_rows()))
        assert again.training is not None
        assert again.training.to_dict() == report.to_dict()
        assert torch.equal(again.training.held_out_rows, report.held_out_rows)
        again.save(tmp_path / "b")
        for file in (tmp_path / "a").iterdir():
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()

    def test_plain_form_gives_the_learner_back(self) -> None:
        """Through JSON and back: equal."""
        assert Learner.from_dict(json.loads(json.dumps(self.learner.to_dict()))) == self.learner


@contextmanager
def _left_alone(model: nn.Module, inputs: torch.Tensor) -> Iterator[None]:
    """Check that afterwards no hook is left, and weights and inputs are as before."""
    weights, given = copy.deepcopy(model.state_dict()), inputs.clone()
    yield
    assert count_hooks(model) == 0
    assert torch.equal(inputs, given)
    assert all(torch.equal(weights[name], v) for name, v in model.state_dict().items())


def count_hooks(model: nn.Module) -> int:
    """Count the hooks registered in all modules of a model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def _images() -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, 50).view(2, 1, 5, 5)


def _activation() -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, 200).view(2, 4, 5, 5)


def _rows() -> torch.Tensor:
    """Make three patterns of units in all mixtures, 60 rows that differ; nothing is negative."""
    patterns = [[4, 2, 0, 0, 0, 0, 0, 0], [0, 0, 3, 3, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 2, 5]]
    index = torch.arange(60)
    mixture = torch.stack((index % 3, index % 4, index % 5), dim=1).to(torch.float32)
    return mixture @ torch.tensor(patterns, dtype=torch.float32) + 0.05 * (
        torch.arange(480).view(60, 8) * 7 % 11
    )


def _same_tensors(a: Dictionary, b: Dictionary) -> bool:
    names = sorted(a.tensors) == sorted(b.tensors)
    return names and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
