"""The example of a shortcut, whole: found, drawn, taken out."""

import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "shortcut" / "shortcut.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.filterwarnings("ignore:NMF")
def test_the_attack_falls_and_clean_images_stay_right(tmp_path: Path) -> None:
    found = runpy.run_path(str(SCRIPT))["main"](tmp_path)
    assert found["attack_before"] >= 0.8
    assert found["attack_after"] <= 0.2 * found["attack_before"]
    assert found["clean_after"] >= found["clean_before"] - 0.02
    assert {"shortcuts.png", "prototypes.png"} <= {file.name for file in tmp_path.iterdir()}
    assert load_file(tmp_path / "repaired.safetensors")["linear.weight"].shape == (10, 256)
