"""The example of a cluster, as far as it can be tried on one machine."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from condec.cli import app
from condec.run import config
from condec.store import Store

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "cluster"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def small(folder: Path) -> Path:
    """Write the plan with few inputs, and the first link only."""
    text = (EXAMPLE / "run.toml").read_text()
    text = text.replace('"fit", "map", "report"]', "]\n[data]\nlimit = 160\n")
    file = folder / "plan.toml"
    file.write_text(text.replace('sites = "block[34]"\n', 'sites = "block4"\nout = "run"\n'))
    return file


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_cluster_of_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "local_ray.py"), str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report   made" in done.stdout
    assert "worker ray-1: process " in done.stdout
    store = Store.open(tmp_path / "run" / "contributions.zarr")
    store.verify()
    assert store.is_complete


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_for_slurm(tmp_path: Path) -> None:
    plan = small(tmp_path)
    place = tmp_path / "bin"
    place.mkdir()
    (place / "condec").write_text(f'#!/bin/sh\nexec {sys.executable} -m condec "$@"\n')
    (place / "condec").chmod(0o755)
    shown = ENVIRONMENT | {"PATH": f"{place}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_MIN": "1"}
    jobs = [
        subprocess.Popen(
            ["bash", str(EXAMPLE / "slurm.sh"), str(plan)], text=True,
            env=shown | {"SLURM_ARRAY_TASK_ID": f"{number}", "SLURM_ARRAY_TASK_COUNT": "3"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for number in (1, 2, 3)
    ]  # fmt: skip
    said = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    assert all("part " in words for words in said)
    assert Store.open(tmp_path / "run" / "contributions.zarr").is_complete
    last = subprocess.run(
        ["bash", str(EXAMPLE / "slurm.sh"), str(plan)], env=shown, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert last.returncode == 0, last.stdout + last.stderr
    assert re.search(r"collect +kept.*\n.*stats +made", last.stdout) or "made" in last.stdout


def test_what_the_job_for_kubernetes_says_can_be_read() -> None:
    job = yaml.safe_load((EXAMPLE / "rayjob.yaml").read_text())
    assert job["kind"] == "RayJob"
    words = shlex.split(job["spec"]["entrypoint"])
    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {option for parameter in commands[words[1]].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert f"--workers {groups[0]['maxReplicas']} " in job["spec"]["entrypoint"]


def test_the_plan_can_be_read() -> None:
    plan = config.read(EXAMPLE / "run.toml")
    assert plan.model.spec == "digits"
    assert plan.engine.kind == "here"
