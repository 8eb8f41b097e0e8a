"""Sessions on the pages write where they like: every page runs in a folder of its own."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)  # as in tests/conftest.py
