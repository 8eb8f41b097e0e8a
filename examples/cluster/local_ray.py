"""Start a Ray cluster of two nodes on this machine, run the example on it, and look at the run.

python examples/cluster/local_ray.py [OUT]
"""

import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

HERE = Path(__file__).resolve().parent


def main() -> int:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "run"
    memory = {"object_store_memory": 80 * 2**20}  # nothing large passes through it
    head = {"num_cpus": 0, "include_dashboard": False, **memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **memory)
        given = ["--engine", "ray", "--address", cluster.address, "--out", str(out)]
        condec = [sys.executable, "-m", "condec"]
        done = subprocess.run([*condec, "run", str(HERE / "run.toml"), *given], check=False)
        subprocess.run([*condec, "status", str(out)], check=False)
        return done.returncode
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
