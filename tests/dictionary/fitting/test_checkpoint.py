"""Interrupted fits go on, and end with the same bits."""

import json
import random
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load, save

from condec.basis.errors import StoreError
from condec.dictionary import (
    BatchTopKSAE,
    JumpReLUSAE,
    MatchingPursuit,
    MatryoshkaSAE,
    ReLUSAE,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
    forget_checkpoint,
)
from condec.testing.planted import Planted
from forked import Command
from small_runs import contents

pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")

LEARNERS = {
    "threshold": ThresholdSAE(12, resample=True),
    "relu": ReLUSAE(12),
    "topk": TopKSAE(12, k=2),
    "batch": BatchTopKSAE(12, k=2),
    "jump": JumpReLUSAE(12),
    "matryoshka": MatryoshkaSAE(12, k=2),
    "pursuit": MatchingPursuit(12, k=2),
}
CONFIG = TrainConfig(epochs=6, batch_size=80, clip=1.0)


class Stop(Exception):
    pass


def interrupted(learner, matrix, config, folder, after):
    """A fit that is stopped at the end of a pass, with checkpoints after every step."""

    def stop(epoch):
        if epoch.index == after:
            raise Stop

    with pytest.raises(Stop):
        fit(
            learner, matrix, config=config, checkpoint=folder, checkpoint_seconds=0.0, on_epoch=stop
        )


def same(first, second):
    one, two = first.dictionary.tensors, second.dictionary.tensors
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert first.history == second.history
    assert first.metrics == second.metrics


@pytest.mark.parametrize("name", LEARNERS)
def test_bit_equal_after_an_interruption(name, tmp_path):
    matrix = Planted.small().matrix
    whole = fit(LEARNERS[name], matrix, config=CONFIG)
    interrupted(LEARNERS[name], matrix, CONFIG, tmp_path, after=random.Random(name).randrange(5))
    again = fit(LEARNERS[name], matrix, config=CONFIG, checkpoint=tmp_path)
    same(again, whole)


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_schedule_and_patience_go_on(schedule, tmp_path):
    config = replace(CONFIG, schedule=schedule, lr=3e-3, patience=3, epochs=20)
    matrix = Planted.small().matrix
    whole = fit(TopKSAE(12, k=2), matrix, config=config)
    interrupted(TopKSAE(12, k=2), matrix, config, tmp_path, after=len(whole.history) // 2)
    same(fit(TopKSAE(12, k=2), matrix, config=config, checkpoint=tmp_path), whole)


def work(folder, out):
    config = TrainConfig(epochs=12, batch_size=20)
    options = {"config": config, "checkpoint": folder, "checkpoint_seconds": 0.0}
    fit(ThresholdSAE(24, resample=True), Planted.small().matrix, **options).save(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    work(folder / "checkpoint", folder / "whole")
    return folder / "whole"


@pytest.mark.parametrize("kill_at", [51, 288])
def test_killed_while_it_writes(kill_at, tmp_path, whole):
    folder, out = tmp_path / "checkpoint", tmp_path / "out"
    killed = Command(tmp_path / "output", partial(work, folder, out), kill_at=kill_at)
    assert killed.end() == -signal.SIGKILL, killed.output
    assert 0 < step_of(folder) < 288
    work(folder, out)
    assert contents(out) == contents(whole)


def step_of(folder):
    file = folder / "checkpoint.safetensors"
    return record_of(file)["state"]["step"] if file.exists() else 0


def record_of(file):
    """The record in the metadata: read by hand, from one version of the file."""
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["record"])


def test_the_end_is_not_done_again(tmp_path):
    matrix, seen = Planted.small().matrix, []
    options = {"config": CONFIG, "checkpoint": tmp_path, "checkpoint_seconds": 0.0}
    first = fit(TopKSAE(12, k=2), matrix, **options)
    second = fit(TopKSAE(12, k=2), matrix, on_epoch=seen.append, **options)
    assert not seen
    same(first, second)
    # What the last checkpoint says of it, written a moment before the first report.
    assert second.seconds >= 0.5 * first.seconds


def test_another_config_learner_or_matrix_is_refused(tmp_path):
    matrix = Planted.small().matrix
    interrupted(TopKSAE(12, k=2), matrix, CONFIG, tmp_path, after=1)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=r'another fit: config: had .*"clip": 1.0.*wants'):
        fit(TopKSAE(12, k=2), matrix, config=replace(CONFIG, clip=2.0), checkpoint=tmp_path)
    with pytest.raises(StoreError, match=r"another fit: learner\.k: had 2, wants 3"):
        fit(TopKSAE(12, k=3), matrix, config=CONFIG, checkpoint=tmp_path)
    with pytest.raises(StoreError, match="another fit: rows: had"):
        fit(TopKSAE(12, k=2), matrix + 1e-6, config=CONFIG, checkpoint=tmp_path)
    assert contents(tmp_path) == before


def test_damaged_checkpoints(tmp_path):
    matrix = Planted.small().matrix
    options = {"config": CONFIG, "checkpoint": tmp_path}
    interrupted(TopKSAE(12, k=2), matrix, CONFIG, tmp_path, after=1)
    (numbers,) = tmp_path.glob("*.safetensors")
    content = numbers.read_bytes()
    other = save(load(content), {"record": '{"format": 9}'})
    flipped = bytearray(content)
    flipped[-9] ^= 1
    record = json.dumps(record_of(numbers) | {"seconds": 0.0})
    for damaged in (content[:-1], b"", save(load(content)), other, bytes(flipped)):
        numbers.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"cannot be read as a checkpoint .* Remove .* afresh"):
            fit(TopKSAE(12, k=2), matrix, **options)
    numbers.write_bytes(save(load(content), {"record": record, "digest": "other"}))
    with pytest.raises(StoreError, match="its content is not what was written"):
        fit(TopKSAE(12, k=2), matrix, **options)
    forget_checkpoint(tmp_path)
    assert not tmp_path.exists()
    forget_checkpoint(tmp_path)


def test_leftovers_of_earlier_versions_and_killed_writers_go(tmp_path):
    left = ("checkpoint.json", "step-12.safetensors", "step-12.safetensors.0a1b2c3d.partial",
            "checkpoint.safetensors.0a1b2c3d.partial")  # fmt: skip
    for name in left:
        (tmp_path / name).write_bytes(b"left")
    interrupted(TopKSAE(12, k=2), Planted.small().matrix, CONFIG, tmp_path, after=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    for name in left:
        (tmp_path / name).write_bytes(b"left")
    forget_checkpoint(tmp_path)
    assert not tmp_path.exists()


def test_one_file_of_numbers_and_a_record(tmp_path):
    interrupted(TopKSAE(12, k=2), Planted.small().matrix, CONFIG, tmp_path, after=1)
    (file,) = tmp_path.iterdir()
    assert file.name == "checkpoint.safetensors"
    assert load(file.read_bytes())["parameters.atoms"].shape == (12, 24)
    record = record_of(file)
    assert record["state"]["step"] == 12
    assert record["identity"]["learner"]["name"] == "TopKSAE"


def test_short_fits_leave_nothing(tmp_path):
    fit(TopKSAE(12, k=2), Planted.small().matrix, config=CONFIG, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()
