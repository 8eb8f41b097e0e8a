"""Many fits as one list: the same as one by one, together, in processes, interrupted."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.dictionary.fitting.test_checkpoint import step_of

from condec.basis.errors import CondecError, DataError, OptionError, StoreError
from condec.dictionary import (
    NMF,
    PCA,
    BatchTopKSAE,
    DeadModesWarning,
    Job,
    JumpReLUSAE,
    Learner,
    MatchingPursuit,
    MatryoshkaSAE,
    ReLUSAE,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
    fit_many,
)
from condec.dictionary.fitting import many as many_module
from condec.testing.planted import Planted
from forked import Command
from small_runs import contents

pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")

CONFIG = TrainConfig(epochs=3, batch_size=80, clip=1.0)


def seeds(learner, matrix, number=3, config=CONFIG):
    return {
        f"seed {seed}": Job(learner, matrix, config=dataclasses.replace(config, seed=seed))
        for seed in range(number)
    }


def atoms(report):
    return report.dictionary.atoms


@pytest.mark.parametrize(
    "learner",
    [
        TopKSAE(12, k=2),
        BatchTopKSAE(12, k=2),
        MatryoshkaSAE(12, k=2),
        JumpReLUSAE(12),
        ReLUSAE(12),
        MatchingPursuit(12, k=2),
        ThresholdSAE(12, dropout=0.0, resample=True),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_together_as_alone(learner):
    """Of other seeds, splits and matrices; each as it would be by itself."""
    config = dataclasses.replace(CONFIG, epochs=8)
    jobs = seeds(learner, Planted.small().matrix, 3, config)
    other = dataclasses.replace(config, split_seed=5, seed=9)
    jobs["another"] = Job(learner, Planted.small(1).matrix, config=other)
    assert many_module._groups(jobs) == [tuple(jobs)]
    found = fit_many(jobs)
    assert list(found) == list(jobs)
    for name, job in jobs.items():
        alone = fit(job.learner, job.matrix, config=job.config)
        torch.testing.assert_close(atoms(found[name]), atoms(alone), rtol=1e-3, atol=1e-4)
        assert found[name].history == pytest.approx(alone.history, rel=1e-4)
        assert torch.equal(found[name].held_out_rows, alone.held_out_rows)
        assert found[name].config == alone.config
    assert not torch.equal(atoms(found["seed 0"]), atoms(found["seed 1"]))


def test_frozen_halves_stay_together_too():
    for half, name in (("decoder", "atoms"), ("encoder", "encoder")):
        config = dataclasses.replace(CONFIG, freeze=half)
        for key, report in fit_many(
            seeds(TopKSAE(12, k=2), Planted.small().matrix, 2, config)
        ).items():
            job = seeds(TopKSAE(12, k=2), Planted.small().matrix, 2, config)[key]
            alone = fit(job.learner, job.matrix, config=job.config)
            tensors = report.dictionary.tensors
            assert torch.equal(tensors[name], alone.dictionary.tensors[name])


def test_what_runs_together():
    small, learner = Planted.small().matrix, TopKSAE(12, k=2)

    def groups(*jobs):
        return len(many_module._groups({str(i): job for i, job in enumerate(jobs)}))

    job = Job(learner, small, config=CONFIG)

    def changed(**changes):
        return dataclasses.replace(job, config=dataclasses.replace(CONFIG, **changes))

    assert groups(job, changed(seed=4), Job(learner, small + 1, config=CONFIG)) == 1
    assert groups(job, dataclasses.replace(job, learner=TopKSAE(12, k=3))) == 2
    assert groups(job, dataclasses.replace(job, matrix=small[:500])) == 2
    assert groups(job, changed(lr=0.1)) == 2
    # Dropout draws from what all fits of a group share.
    drawn = Job(ThresholdSAE(12), small, config=CONFIG)
    assert groups(drawn, drawn) == 2
    assert groups(changed(schedule="plateau"), changed(schedule="plateau", seed=1)) == 2
    assert groups(changed(patience=2), changed(patience=2, seed=1)) == 2
    assert groups(Job(NMF(3), small), Job(NMF(3), small)) == 2
    wide = Job(TopKSAE(900, k=2), torch.rand(80, 300))
    assert groups(wide, wide) == 2
    assert groups(*[job] * 33) == 2


def test_learners_without_descent_and_stored_rows():
    from tests.dictionary.fitting.test_rows import Blocks, gib

    matrix = Planted.small().matrix
    config = dataclasses.replace(CONFIG, memory_gib=gib(200, 24))
    jobs = {
        "nmf": Job(NMF(4), matrix),
        "pca": Job(PCA(4), matrix.numpy()),
        "blocks": Job(TopKSAE(8, k=2), Blocks(matrix, 50), config=config),
    }
    found = fit_many(jobs)
    assert list(found) == ["nmf", "pca", "blocks"]
    assert torch.equal(atoms(found["nmf"]), atoms(fit(NMF(4), matrix)))
    alone = fit(TopKSAE(8, k=2), Blocks(matrix, 50), config=config)
    assert torch.equal(atoms(found["blocks"]), atoms(alone))


def test_in_processes(tmp_path):
    matrix, other = Planted.small().matrix, Planted.small(1).matrix
    held_out = torch.tensor([3, 77, 500])
    jobs = seeds(TopKSAE(12, k=2), matrix, 2) | {
        "held out": Job(TopKSAE(12, k=2), other, config=CONFIG, held_out_rows=held_out),
        "nmf": Job(NMF(4), other),
        "wide": Job(TopKSAE(20, k=2), matrix, config=CONFIG),
    }
    done = []
    found = fit_many(
        jobs, workers=2, folder=tmp_path / "c", on_done=lambda name, _: done.append(name)
    )
    assert sorted(done) == sorted(jobs)
    here = fit_many(jobs, workers=1)
    for name, report in here.items():
        one, two = found[name].dictionary.tensors, report.dictionary.tensors
        assert all(torch.equal(one[key], two[key]) for key in two)
        assert found[name].to_dict() == report.to_dict()
        assert found[name].seconds > 0
    assert found["held out"].held_out_rows.tolist() == [3, 77, 500]
    assert not (tmp_path / "c").exists()


def test_errors_of_workers_are_those_of_fit():
    matrix = Planted.small().matrix
    jobs = {"good": Job(PCA(3), matrix), "bad": Job(NMF(3), matrix - 1.0)}
    for workers in (1, 2):
        with pytest.raises(DataError, match="NMF: fit: entries of a unit must have one"):
            fit_many(jobs, workers=workers)
    with pytest.raises(OptionError, match="workers must be at least 1; got 0"):
        fit_many(jobs, workers=0)


SCRIPT = """
import sys, torch
from condec.dictionary import PCA, Job, fit_many
print("begun", __name__)
matrix = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
jobs = {str(n): Job(PCA(n), matrix) for n in (2, 3)}
print("done", *(report.n_alive for report in fit_many(jobs, workers=2).values()))
"""


def test_a_script_without_a_guard_is_run_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py")]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stdout == "begun __main__\ndone 2 3\n"


def test_checkpoints_need_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="checkpoints: cannot write"):
        fit_many(seeds(PCA(3), Planted.small().matrix, 1), folder=tmp_path / "file")


ORPHAN = """
import sys, torch
from condec.dictionary import DictionaryLearning, Job, fit_many
matrix = torch.rand(3000, 60, generator=torch.Generator().manual_seed(0))
jobs = {str(i): Job(DictionaryLearning(200 + i, max_iter=10_000), matrix) for i in range(2)}
fit_many(jobs, workers=2)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_workers_end_with_the_process_that_made_them(tmp_path):
    """Killed, so that it cannot end them; a classical learner never looks up from its work."""
    command = [sys.executable, "-W", "ignore", "-c", ORPHAN]
    child = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)})
    # Two workers, and a process of Python's own that looks after them.
    while sum(map(at_work, workers := children_of(child.pid))) < 2:
        assert child.poll() is None
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    end = time.monotonic() + 20.0
    while any(map(alive, workers)) or list(tmp_path.iterdir()):
        assert time.monotonic() < end
        time.sleep(0.1)


def children_of(pid):
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def at_work(pid):
    """Whether a process has loaded what the learner's own loops are compiled in."""
    return "_cdnmf_fast" in Path(f"/proc/{pid}/maps").read_text()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Dies(Learner):
    """Ends the worker that reads it."""

    learn = encode = None

    def __reduce__(self):
        return os._exit, (3,)


def test_a_worker_that_dies_is_said(monkeypatch):
    monkeypatch.setattr(many_module, "_can_leave", lambda job: True)
    jobs = {name: Job(Dies(2), Planted.small().matrix) for name in "ab"}
    with pytest.raises(CondecError, match="a worker process ended before its fits were done"):
        fit_many(jobs, workers=2)


def test_dead_modes_are_said_of_every_dictionary():
    config = TrainConfig(epochs=1, lr=1e-9)
    jobs = seeds(ThresholdSAE(400, threshold=0.99), Planted.small().matrix, 2, config)
    with pytest.warns(UserWarning, match="dead") as said:
        fit_many(jobs)
    assert len([w for w in said if "dead" in str(w.message)]) == 2
    assert issubclass(DeadModesWarning, UserWarning)


def work(folder, out):
    config = TrainConfig(epochs=10, batch_size=40)
    jobs = seeds(TopKSAE(12, k=2), Planted.small().matrix, 2, config)
    for name, report in fit_many(jobs, folder=folder, checkpoint_seconds=0.0).items():
        report.save(out / name)


def test_a_killed_list_goes_on(tmp_path):
    folder, out, whole = (tmp_path / name for name in ("checkpoints", "out", "whole"))
    killed = Command(tmp_path / "output", partial(work, folder, out), kill_at=101)
    assert killed.end() == -signal.SIGKILL, killed.output
    assert any(step_of(part) for part in folder.glob("*"))
    work(folder, out)
    assert not folder.exists()
    work(tmp_path / "other", whole)
    assert contents(out) == contents(whole)
