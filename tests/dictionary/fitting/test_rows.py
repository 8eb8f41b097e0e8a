"""Rows in blocks: what is read, in which order, and that a fit does not need them in memory."""

import dataclasses
import resource
import subprocess
import sys

import pytest
import torch

from condec.basis.errors import DataError
from condec.dictionary import (
    NMF,
    PCA,
    BatchTopKSAE,
    Job,
    MatchingPursuit,
    Preparation,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
    fit_many,
    recovery,
    split_rows,
)
from condec.dictionary.base import with_samples
from condec.dictionary.fitting.preparation import Moments
from condec.dictionary.fitting.rows import RowsInBlocks, StoredRows
from condec.dictionary.measure import stability as stability_module
from condec.testing.planted import Planted

pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")


class Blocks:
    """A tensor that pretends to be on disk."""

    def __init__(self, matrix, size):
        self.parts = torch.split(matrix, size)
        self.shape = tuple(matrix.shape)
        self.blocks = tuple(map(len, self.parts))
        self.reads = []

    def read(self, block):
        self.reads.append(block)
        return self.parts[block].clone()

    def all(self):
        return torch.cat([self.read(block) for block in range(len(self.parts))])


def gib(n_rows, n_units=3):
    """Memory whose buffer holds so many rows."""
    return n_rows * n_units * 4 * 8 / 2**30


def rows_of(matrix, size, room, held_out=()):
    blocks = Blocks(matrix, size)
    apart = torch.tensor(held_out, dtype=torch.int64)
    config = TrainConfig(memory_gib=gib(room, matrix.shape[1]), scaling="none")
    return blocks, RowsInBlocks(blocks, apart, config)


def numbered(n_rows):
    return torch.arange(n_rows, dtype=torch.float32)[:, None].expand(n_rows, 3).contiguous()


def test_every_training_row_once_a_pass_in_another_order():
    blocks, rows = rows_of(numbered(103), 10, 25, held_out=[0, 15, 102])
    generator = torch.Generator().manual_seed(0)
    passes = [list(rows.batches(generator, 8)) for _ in range(2)]
    for found in passes:
        assert [len(batch) for batch in found] == [8] * 12 + [4]
        seen = torch.cat(found)[:, 0].int().tolist()
        assert sorted(seen) == sorted({*range(103)} - {0, 15, 102})
        assert seen != sorted(seen)
    assert not torch.equal(torch.cat(passes[0]), torch.cat(passes[1]))
    # A survey, and two passes; no block is read twice in one.
    assert len(blocks.reads) == 3 * 11


def test_rows_are_shuffled_across_the_blocks_that_are_read_together():
    _, rows = rows_of(numbered(100), 10, 50)
    first = torch.cat(list(rows.batches(torch.Generator().manual_seed(1), 5))[:4])[:, 0]
    assert len({int(row) // 10 for row in first}) >= 4


@pytest.mark.parametrize("done", [0, 1, 3, 5, 12, 13])
def test_a_pass_goes_on_where_it_was_left(done):
    blocks, rows = rows_of(numbered(100), 10, 25)
    whole = list(rows.batches(torch.Generator().manual_seed(3), 8))
    blocks.reads.clear()
    rest = list(rows.batches(torch.Generator().manual_seed(3), 8, done))
    assert len(rest) == len(whole) - done
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[done:], strict=True))
    # What is over is not read again.
    assert len(blocks.reads) <= 10 - (done * 8 // 20) * 2


def test_moments_of_blocks_are_those_of_the_whole():
    matrix = 1e3 + torch.randn(97, 5, generator=torch.Generator().manual_seed(0))
    found = RowsInBlocks(Blocks(matrix, 13), torch.tensor([4, 50]), TrainConfig()).moments
    keep = torch.ones(97, dtype=torch.bool)
    keep[[4, 50]] = False
    whole = Moments.of(matrix[keep])
    wide = matrix[keep].double()
    assert found.n_rows == 95
    torch.testing.assert_close(found.mean, wide.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.m2 / 95, wide.var(0, correction=0), rtol=1e-9, atol=0)
    for name in ("low", "high"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    for options in (("global", False), ("unit", True), ("none", True)):
        one, two = Preparation.fitted(found, *options), Preparation.fitted(whole, *options)
        assert one.scale == pytest.approx(two.scale, rel=1e-12)
        torch.testing.assert_close(one.apply(matrix), two.apply(matrix))


@pytest.mark.parametrize(
    "learner", [BatchTopKSAE(8, k=2), MatchingPursuit(8, k=2), ThresholdSAE(24)]
)
@pytest.mark.usefixtures("unchecked")
def test_as_good_as_in_memory(learner):
    data = Planted.small()
    blocks = Blocks(data.matrix, 50)
    assert isinstance(blocks, StoredRows)
    small = TrainConfig(steps=400, memory_gib=gib(200, 24))
    apart = fit(learner, blocks, config=small)
    assert len(blocks.reads) > 24
    within = fit(learner, data.matrix, config=TrainConfig(steps=400))
    assert apart.r2 == pytest.approx(within.r2, abs=0.08)
    assert torch.equal(apart.held_out_rows, within.held_out_rows)
    assert apart.dictionary.scale == pytest.approx(within.dictionary.scale, rel=1e-6)
    found, expected = (recovery(r.dictionary.atoms, data.atoms).share for r in (apart, within))
    assert found >= expected - 0.26


def test_metrics_say_of_how_many_rows_they_are():
    data = Planted.small()
    config = TrainConfig(epochs=1, memory_gib=gib(100, 24))
    report = fit(TopKSAE(8, k=2), Blocks(data.matrix, 50), config=config)
    assert report.n_rows == 600
    assert len(report.held_out_rows) == 120
    assert report.metrics["train"].n_rows == report.metrics["held_out"].n_rows == 50


def test_what_fits_is_read_once():
    blocks = Blocks(Planted.small().matrix, 50)
    report = fit(TopKSAE(8, k=2), blocks, config=TrainConfig(epochs=2))
    plain = fit(TopKSAE(8, k=2), Planted.small().matrix, config=TrainConfig(epochs=2))
    assert blocks.reads == list(range(12))
    assert torch.equal(report.dictionary.atoms, plain.dictionary.atoms)


def test_interrupted_between_blocks(tmp_path):
    config = TrainConfig(epochs=4, memory_gib=gib(200, 24), batch_size=16)
    matrix = Planted.small().matrix
    whole = fit(TopKSAE(8, k=2), Blocks(matrix, 50), config=config)

    class Broken(Blocks):
        def read(self, block):
            if len(self.reads) > 33:
                raise OSError("gone")
            return Blocks.read(self, block)

    options = {"config": config, "checkpoint": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(OSError, match="gone"):
        fit(TopKSAE(8, k=2), Broken(matrix, 50), **options)
    again = fit(TopKSAE(8, k=2), Blocks(matrix, 50), **options)
    assert torch.equal(again.dictionary.atoms, whole.dictionary.atoms)
    assert again.history == whole.history


def test_errors():
    matrix = Planted.small().matrix.clone()
    config = TrainConfig(memory_gib=gib(200, 24))
    with pytest.raises(DataError, match="NMF needs all rows in memory, and 600 rows of 24 units"):
        fit(NMF(4), Blocks(matrix, 50), config=config)
    with pytest.raises(DataError, match=r"a block .* has 300 rows .*memory_gib must be at least"):
        fit(TopKSAE(4, k=2), Blocks(matrix, 300), config=config)
    with pytest.raises(DataError, match="the matrix is constant"):
        fit(TopKSAE(4, k=2), Blocks(torch.ones(600, 24), 50), config=config)
    matrix[333, 1] = float("nan")
    with pytest.raises(DataError, match=r"fit: 1 of 50 rows hold NaN .* \(rows 333\)"):
        fit(TopKSAE(4, k=2), Blocks(matrix, 50), config=config)


CHILD = """
import resource, sys, torch
from condec.dictionary import TopKSAE, TrainConfig, fit
class Made:
    shape, blocks = (160_000, 256), (1000,) * 160
    def read(self, block):
        return torch.rand(1000, 256, generator=torch.Generator().manual_seed(block))
torch.set_num_threads(1)
small = Made(); small.shape, small.blocks = (2000, 256), (1000,) * 2
config = TrainConfig(epochs=1, batch_size=1024, memory_gib=0.03)
fit(TopKSAE(16, k=2), torch.rand(2000, 256), config=config)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit(TopKSAE(16, k=2), Made(), config=config)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_below_the_budget():
    """156 MiB of rows; a budget of 31 MiB. Weights and the order of rows are small here."""
    assert resource.RUSAGE_SELF is not None
    command = [sys.executable, "-W", "ignore", "-c", CHILD]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(found.stdout) < 0.03 * 2**20 + 8 * 2**10


# --- rows that are positions of samples -----------------------------------------------------


def positions(n_samples=20, each=4):
    """Rows of samples that differ much more than the positions of one."""
    rows = torch.randn(n_samples, 1, 3) * 10 + torch.randn(n_samples, each, 3)
    return with_samples(rows.flatten(0, 1), torch.arange(n_samples).repeat_interleave(each))


def held_out_samples(report, matrix):
    apart = torch.zeros(len(matrix), dtype=torch.bool)
    apart[report.held_out_rows] = True
    of = [set(matrix.samples[some].tolist()) for some in (apart, ~apart)]
    assert not of[0] & of[1]
    return sorted(of[0])


def test_a_sample_is_held_out_whole(monkeypatch):
    matrix = positions()
    wanted = split_rows(20, 0.2, 3).tolist()
    config = TrainConfig(split_seed=3, epochs=1)
    assert held_out_samples(fit(PCA(2), matrix, config=config), matrix) == wanted
    stored = Blocks(matrix, 24)
    stored.samples = matrix.samples
    for memory in (4.0, gib(30)):  # in memory, and in blocks
        small = dataclasses.replace(config, memory_gib=memory)
        assert held_out_samples(fit(TopKSAE(4, k=1), stored, config=small), matrix) == wanted
    (report,) = fit_many({"a": Job(PCA(2), matrix, config=config)}).values()
    assert held_out_samples(report, matrix) == wanted
    # A part does not tell samples any more.
    assert len(fit(PCA(2), matrix[:40], config=config).held_out_rows) == 8
    jobs = {}
    monkeypatch.setattr(stability_module, "fit_many", lambda j: jobs.update(j) or fit_many(j))
    found = stability_module.stability(PCA(2), matrix, config=config)
    assert held_out_samples(found.reports[4], matrix) == wanted
    halves = [job.matrix for job in list(jobs.values())[5:]]
    of = [set(half.samples.tolist()) for half in halves]
    assert (len(of[0]), len(of[1]), of[0] & of[1]) == (10, 10, set())
    assert {len(job.held_out_rows) for job in list(jobs.values())[5:]} == {8}
