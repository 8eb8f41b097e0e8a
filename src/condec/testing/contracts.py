"""Contract tests: what every implementation behind one of condec's interfaces keeps.

Subclass a contract in a test module, say how to make the object, and pytest runs the rest:

    class TestMyEdit(EditContract):
        def make_edit(self, site):
            return MyEdit(site)
"""

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from condec.attribution import Method, method_from_dict
from condec.contributions import Contributions, contribute
from condec.control import Edit, edit_from_dict, edited
from condec.testing.models import small_resnet


class AttributionContract:
    """Every method: right shapes, no trace left, the same for any order of the samples.

    Subclasses define `make_method`; for a method of another package also `read_method`. The
    tests use the two blocks of `small_resnet`.
    """

    @abstractmethod
    def make_method(self) -> Method:
        """The method under test."""
        raise NotImplementedError

    def read_method(self, record: Mapping[str, Any]) -> Method:
        """The method again, from its plain form."""
        return method_from_dict(record)

    def contribute(self, model: nn.Module, images: torch.Tensor) -> Contributions:
        """Contributions to the largest logit at both blocks."""
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
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.contribute(model, images)
        assert count_hooks(model) == 0
        assert torch.equal(images, _images())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert all(torch.equal(weights[name], v) for name, v in model.state_dict().items())

    def test_samples_do_not_see_each_other(self) -> None:
        """Order and company of the samples do not matter."""
        model, images = small_resnet().double(), _images().double()
        both = self.contribute(model, images)
        swapped = self.contribute(model, images.flip(0))
        alone = self.contribute(model, images[:1])
        for site in ("block1", "block2"):
            torch.testing.assert_close(
                both[site].contribution, swapped[site].contribution.flip(0), rtol=0, atol=1e-12
            )
            torch.testing.assert_close(
                both[site].contribution[:1], alone[site].contribution, rtol=0, atol=1e-12
            )

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


class EditContract:
    """Every edit: leaves others' tensors alone, is gone afterwards, and can be written down.

    Subclasses define `make_edit`; for an edit of another package also `read_edit`. The tests
    use the sites ``block1`` and ``block2:input`` of `small_resnet`: 4 channels of 5 x 5.
    """

    @abstractmethod
    def make_edit(self, site: str) -> Edit:
        """An edit of this kind at a site of 4 units, that changes something there."""
        raise NotImplementedError

    def read_edit(self, record: Mapping[str, Any]) -> Edit:
        """The edit again, from its plain form."""
        return edit_from_dict(record)

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
        """An edit has no memory."""
        edit, given = self.make_edit("block1"), _activation()
        assert torch.equal(edit.apply(given), edit.apply(given))
        assert torch.equal(edit.apply(given), self.make_edit("block1").apply(given))

    def test_single_precision_is_close_to_double(self) -> None:
        """Both types agree to rounding."""
        edit, given = self.make_edit("block1"), _activation()
        double = edit.apply(given.double())
        torch.testing.assert_close(edit.apply(given).double(), double, rtol=1e-5, atol=1e-6)

    def test_plain_form_gives_the_edit_back(self) -> None:
        """Through JSON and back: equal, and of one hash."""
        edit = self.make_edit("block1")
        again = self.read_edit(json.loads(json.dumps(edit.to_dict())))
        assert again == edit
        assert hash(again) == hash(edit)

    def test_model_is_as_before_after_the_context(self) -> None:
        """No hook, no weight, no output differs afterwards; inside, the output does."""
        for site in ("block1", "block2:input"):
            model, images = small_resnet(), _images()
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            before, given = model(images), images.clone()
            with edited(model, [self.make_edit(site)]):
                assert not torch.equal(model(images), before)
            assert count_hooks(model) == 0
            assert torch.equal(model(images), before)
            assert torch.equal(images, given)
            assert all(torch.equal(weights[name], v) for name, v in model.state_dict().items())

    def test_hooks_are_gone_after_an_error(self) -> None:
        """An error in the model, or in the body of the context, passes and leaves no hook."""
        model = small_resnet()
        for body in (lambda: model(torch.ones(1, 7)), lambda: 1 / 0):
            raised = False
            try:
                with edited(model, [self.make_edit("block1")]):
                    body()
            except (RuntimeError, ZeroDivisionError):
                raised = True
            assert raised
            assert count_hooks(model) == 0

    def test_works_before_an_operation_in_place(self) -> None:
        """A network that goes on in place gives what its out-of-place twin gives."""
        outputs = []
        for inplace in (False, True):
            model = small_resnet(inplace=inplace)
            with edited(model, [self.make_edit("block1"), self.make_edit("block2.relu:input")]):
                outputs.append(model(_images()))
        assert torch.equal(*outputs)

    def test_works_with_and_without_gradients(self) -> None:
        """The logits are the same, and the gradient at the input is finite."""
        model, images = small_resnet(), _images().requires_grad_()
        with edited(model, [self.make_edit("block1")]):
            logits = model(images)
            with torch.no_grad():
                assert torch.equal(model(images), logits)
        (gradient,) = torch.autograd.grad(logits.sum(), images)
        assert bool(gradient.isfinite().all())

    def test_works_in_half_precision(self) -> None:
        """A bfloat16 model stays one."""
        model = small_resnet().to(torch.bfloat16)
        with edited(model, [self.make_edit("block1")]):
            assert model(_images().to(torch.bfloat16)).dtype == torch.bfloat16


def count_hooks(model: nn.Module) -> int:
    """Number of hooks registered in all modules of a model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def _images() -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, 50).view(2, 1, 5, 5)


def _activation() -> torch.Tensor:
    return torch.linspace(-1.0, 2.0, 200).view(2, 4, 5, 5)
