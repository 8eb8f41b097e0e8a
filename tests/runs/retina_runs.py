"""A small retina through the chain, under hostile names: a network of four cells and its movie."""

from dataclasses import replace
from pathlib import Path

import torch

from condec.retina import Recording, write_recording
from condec.run import Run, chain, config

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(5, 4, 3)
        self.relu1 = nn.ReLU()
        self.out = nn.Linear(4 * 6 * 6, 4)

    def forward(self, x):
        return torch.nn.functional.softplus(self.out(self.relu1(self.conv1(x)).flatten(1)))

def load():
    torch.manual_seed(0)
    return Net().eval()
"""
PLAN = {
    "sites": ["relu1"],
    "model": {"spec": "python:net.py:load", "input_shape": [5, 8, 8]},
    "data": {"source": "movie:movie.npz?frames=0:125"},
    "collect": {"method": "ig:4", "target": "surprisal", "fit_on": "movie:movie.npz?frames=60:200"},
    "fit": {"learner": "nmf", "n_modes": 4},
    "retina": {"n_fields": 60, "crop": 6, "n_shifts": 20, "n_modes": 3, "batch_size": 50},
}
EVENT = "<b>open & shut</b>"


def movie() -> Recording:
    gen = torch.Generator().manual_seed(3)
    phase = (torch.arange(200) // 20 % 2).float()
    frames = torch.randn(200, 8, 8, generator=gen) * (0.5 + phase[:, None, None])
    rates = torch.rand(200, 4, generator=gen)
    return Recording(
        movie=frames, rates=rates, cells=("a", "b", "c", "<i>d"), events={EVENT: phase}
    )


def retina_run(folder: Path, *more: str) -> Run:
    """Make the run and its report; `more` are links before the report besides the usual ones."""
    (folder / "net.py").write_text(NET)
    write_recording(folder / "movie.npz", movie())
    plan = config.from_dict(PLAN, folder=folder)
    usual = ("collect", "stats", "fit", *more, "retina", "report")
    run = Run(replace(plan, links=usual) if more else plan, progress=False)
    config.write(run.plan)
    assert [outcome.link for outcome in chain(run)] == [*usual]
    return run
