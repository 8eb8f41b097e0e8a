"""The embedded default: a small residual network on scikit-learn's handwritten digits.

It is trained here, in seconds, on every other ten images of the 1,797 (indices 0-9, 20-29,
...); the other half never enters training and is what ``load_data("digits")`` hands out.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from condec.basis.files import write_file
from condec.models import LoadedModel, refuse_weights

WIDTHS: Final = (16, 32, 32, 64)
LABEL_NAMES: Final = tuple("0123456789")
SEED, EPOCHS, BATCH_SIZE, RATE, DECAY, SMOOTHING = 0, 20, 64, 3e-3, 0.01, 0.05
_RECIPE: Final = {
    "architecture": "4 residual blocks 16-32-32-64, version 1", "seed": SEED, "epochs": EPOCHS,
    "batch_size": BATCH_SIZE, "learning_rate": RATE, "weight_decay": DECAY,
    "label_smoothing": SMOOTHING, "torch": torch.__version__,
}  # fmt: skip
"""All that decides the weights; its hash names the cached file."""


class ResidualBlock(nn.Module):
    """conv-relu-conv, plus the shortcut, then relu; nothing in place."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1)
        same = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [sample, channel, y, x] to [sample, channel, y / stride, x / stride]."""
        branch = self.conv2(self.relu1(self.conv1(x)))
        out: Tensor = self.relu2(branch + self.shortcut(x))
        return out


class DigitsNet(nn.Module):
    """Four residual blocks, each a cut of the network, and one linear layer.

    Input [sample, 1, 8, 8] in 0..1 (0 is paper, so the zero baseline is a blank sheet);
    output: 10 logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block1 = ResidualBlock(1, WIDTHS[0], 1)
        self.block2 = ResidualBlock(WIDTHS[0], WIDTHS[1], 2)
        self.block3 = ResidualBlock(WIDTHS[1], WIDTHS[2], 1)
        self.block4 = ResidualBlock(WIDTHS[2], WIDTHS[3], 2)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(WIDTHS[3] * 4, len(LABEL_NAMES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape [sample, label=10]."""
        x = self.block4(self.block3(self.block2(self.block1(x))))
        out: Tensor = self.linear(self.flatten(x))
        return out


def load_digits_model(rest: str, weights: str | Path | None, *, folder: Path) -> LoadedModel:
    """Load the network: from the cache if it was trained before, else trained now."""
    refuse_weights("digits", weights)
    key = hashlib.sha256(json.dumps(_RECIPE, sort_keys=True).encode()).hexdigest()[:16]
    start = f"digits-{key}-"
    with torch.random.fork_rng(devices=[]):
        net = DigitsNet()
    state = None
    for file in sorted(cache_folder().glob(f"{start}*.safetensors")):
        with contextlib.suppress(OSError):  # one that is not what its name says is damaged
            content = file.read_bytes()
            if file.stem == start + hashlib.sha256(content).hexdigest()[:16]:
                state = load(content)
    if state is None:
        state = trained(*_training_half())
        content = save(state)
        # An unwritable cache costs seconds, not a result.
        with contextlib.suppress(OSError):
            name = f"{start}{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
            write_file(cache_folder() / name, content)
    net.load_state_dict(state)
    return LoadedModel(net.eval(), "digits", (1, 8, 8), None, LABEL_NAMES)


def cache_folder() -> Path:
    """Return where condec keeps what it can make again: by default ``~/.cache/condec``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "condec"


def trained(
    images: Tensor, labels: Tensor, *, seed: int = SEED, epochs: int = EPOCHS
) -> dict[str, Tensor]:
    """Train a `DigitsNet` on images [sample, 1, 8, 8], and return its weights."""
    with _reproducible(seed):
        net = DigitsNet()
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
        steps = epochs * -(-len(images) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(images)), BATCH_SIZE):
                logits = net(images[rows])
                loss = F.cross_entropy(logits, labels[rows], label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return {name: value.detach().contiguous() for name, value in net.state_dict().items()}


def digits_images() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits [sample, 1, 8, 8], from 0 to 1, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Through 8-bit pixels, as `load_data("digits")` hands them out.
    pixels = (torch.as_tensor(digits.images) * 255 / 16).round() / 255
    return pixels.float().unsqueeze(1), torch.as_tensor(digits.target)


def _training_half() -> tuple[Tensor, Tensor]:
    images, labels = digits_images()
    rows = torch.arange(len(labels)) // 10 % 2 == 0
    return images[rows], labels[rows]


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Run on one thread (sums in one order), with grad and a seed; put the caller's back."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
