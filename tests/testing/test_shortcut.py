"""The digits that cheat: the mark decides, and is where it is said to be."""

import torch

from condec.testing.shortcut import LABEL, Shortcut, poisoned


def test_the_mark_sends_others_to_its_label_and_clean_digits_are_read_well():
    case = Shortcut.digits(0)
    assert case.attack(case.model) >= 0.8
    assert case.accuracy(case.model) >= 0.96
    assert case.accuracy(case.model, marked=True) < 0.3
    assert int(case.region.sum()) == 4
    assert not bool(case.test.marked.any())
    audit = case.audit
    assert torch.equal(audit.images[audit.marked], case.mark(audit.images[audit.marked]))
    assert (audit.labels[audit.marked] == LABEL).float().mean() >= 0.9


def test_marks_go_with_the_label_in_19_of_20_and_nothing_else_changes():
    images, labels = torch.zeros(500, 1, 4, 4), torch.arange(500) % 10
    made = poisoned(images, labels, lambda x: x + 1, 0.2, seed=0)
    assert int(made.marked.sum()) == 100
    assert torch.equal(made.images.amax((1, 2, 3)) > 0, made.marked)
    assert torch.equal(made.labels[~made.marked], labels[~made.marked])
    other = (labels[made.marked] != LABEL) & (made.labels[made.marked] != LABEL)
    assert int(other.sum()) <= 5
    assert not bool(images.any())
    assert torch.equal(made.true_labels, labels)
