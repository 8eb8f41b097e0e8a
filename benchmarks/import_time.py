"""S9: seconds that condec takes beyond ``import torch``, at its first use, and what it drags in.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measure import write

CODE = (
    "import time; t = time.perf_counter(); import torch; a = time.perf_counter(); import condec; "
    "condec.contribute; b = time.perf_counter(); import sys; print(a - t, b - a, "
    "*[m for m in ('matplotlib', 'torchvision', 'timm', 'ray', 'pandas', 'sklearn') "
    "if m in sys.modules])"
)


def main() -> None:
    rows = [
        subprocess.run(
            [sys.executable, "-c", CODE], check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(7)
    ]
    write(
        "import_time",
        {
            "torch_seconds": statistics.median(float(row[0]) for row in rows),
            "S9_condec_seconds_beyond_torch": statistics.median(float(row[1]) for row in rows),
            "imported_too": sorted({name for row in rows for name in row[2:]}),
        },
    )


if __name__ == "__main__":
    main()
