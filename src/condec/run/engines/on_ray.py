"""Workers on a Ray cluster: actors, as many as it has room for."""

import signal
import time
from concurrent.futures import Future
from typing import Any

from condec.basis.errors import DependencyError, OptionError
from condec.run.engines.pool import Hand, Pool, on_gpu
from condec.run.engines.worker import Given, RemoteWorker
from condec.run.plan import EnginePlan
from condec.run.run import Run

try:
    import ray
    from ray.exceptions import RayActorError
except ImportError as error:
    raise DependencyError(
        "engine: ray is not installed; pip install 'condec[ray]', or take the engine local"
    ) from error


class RayPool(Pool):
    """Actors of Ray, which hold the model; the run folder is on a disk that all machines share."""

    died = (RayActorError,)

    def __init__(self, plan: EnginePlan) -> None:
        super().__init__(plan)
        self.started = not ray.is_initialized()
        if self.started:
            answer = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(
                    plan.address, namespace="condec", log_to_driver=False, logging_level="WARNING"
                )
                signal.signal(signal.SIGTERM, answer)  # Ray's own would end without words
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise OptionError(
                    f"engine: no Ray cluster at {plan.address or 'this machine'!r} ({error}); "
                    "start one by 'ray start --head', or give its --address"
                ) from error

    def most(self, run: Run) -> int:
        """As many as the plan says, else as many as the nodes of today have room for."""
        if self.plan.workers:
            return self.plan.workers
        there = ray.cluster_resources()
        wanted = {"CPU": self.plan.cpus, "GPU": _gpus(run)}
        room = [int(there.get(kind, 0.0) // number) for kind, number in wanted.items() if number]
        return max(1, min(room, default=1))

    def start(self, run: Run, number: int) -> Hand:
        """Ask for an actor: it waits for room, and a cluster that grows makes some."""
        return _Actor(
            Given.of(run, max(1, int(self.plan.cpus))), number, self.plan.cpus, _gpus(run)
        )

    def close(self) -> None:
        """End all actors, and Ray where it was started here."""
        super().close()
        if self.started and ray.is_initialized():
            ray.shutdown()


class _Actor(Hand):
    def __init__(self, given: Given, number: int, cpus: float, gpus: float) -> None:
        name = f"ray-{number}"
        kind: Any = ray.remote(RemoteWorker)
        self.actor = kind.options(
            name=f"condec {given.folder} {name} {time.time_ns()}",
            num_cpus=cpus, num_gpus=gpus, max_restarts=0,
        ).remote(given, name, "cuda" if gpus else None)  # fmt: skip

    def submit(self, method: str, *given: Any) -> "Future[Any]":
        """Call a method; the dashboard shows link and task."""
        shown = " ".join(["condec", method, *map(str, given[:2])])
        call = getattr(self.actor, method).options(name=shown)
        future: Future[Any] = call.remote(*given).future()
        return future

    def end(self) -> None:
        """End the actor at once."""
        ray.kill(self.actor)


def _gpus(run: Run) -> float:
    return float(on_gpu(run)) if run.plan.engine.gpus is None else run.plan.engine.gpus
