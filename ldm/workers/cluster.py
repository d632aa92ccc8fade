"""Workers on the machines of a Ray cluster, or of one that is made here for the run.

All machines must see the same files under the same names: the checkpoint and what jobs begin with
are read by the workers. Ray only places them.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ldm.errors import JobError
from ldm.workers.crew import Hand
from ldm.workers.process import without_interrupts
from ldm.workers.worker import Worker


class Actor:
    """A worker that Ray has a place for, which may come late."""

    def __init__(self, ray: Any, gpus: int) -> None:
        self.ray = ray
        options = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        # Ray starts it; whether to start another one, when it dies, is decided by the crew.
        self.actor = ray.remote(Worker).options(**options, max_restarts=0).remote()

    @property
    def died(self) -> tuple[type[Exception], ...]:
        """The errors that mean that it or its machine died, or that its reply was lost."""
        errors = self.ray.exceptions
        lost = (errors.WorkerCrashedError, errors.ObjectLostError, errors.OutOfMemoryError)
        return (errors.RayActorError, *lost)

    def submit(self, order: bytes) -> Future[bytes]:
        """Give an order."""
        future: Future[bytes] = self.actor.answer.remote(order).future()
        return future

    def stop(self) -> None:
        """End it at once."""
        self.ray.kill(self.actor)


@dataclass
class Cluster:
    """A Ray cluster with `count` workers, or one for each GPU, or for each machine without any."""

    address: str | None
    count: int | None
    ray: Any = field(default=None, compare=False)
    gpus: int = field(default=0, compare=False)
    here = False

    def open(self, device: str) -> int:
        """Connect; the number of workers. Raises JobError where no cluster answers."""
        if self.ray is None:
            self.ray = connect(self.address, self.count)
        found = int(self.ray.cluster_resources().get("GPU", 0)) if device != "cpu" else 0
        self.gpus = 1 if found else 0
        return self.count or found or sum(node["Alive"] for node in self.ray.nodes())

    def hire(self, index: int) -> Hand:
        """A new worker, where Ray has room."""
        return Actor(self.ray, self.gpus)

    def close(self) -> None:
        """Leave the cluster; one that was made for this run ends."""
        if self.ray is not None:
            self.ray.shutdown()
            self.ray = None


def connect(address: str | None, count: int | None) -> Any:
    """The module `ray`, connected with the cluster of an address, or with a new one made here.

    Ray prints nothing and contacts no other server. Raises JobError.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _knock(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = importlib.import_module("ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    # What Ray has to say of dead workers it prints among our paths and objects.
    inside = importlib.import_module("ray._private.worker")
    if hasattr(inside, "listen_error_messages"):
        vars(inside)["listen_error_messages"] = lambda *_: None
    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address == "local":
        options |= {"num_cpus": max(count or 1, os.cpu_count() or 1), "include_dashboard": False}
    try:
        with without_interrupts():
            ray.init(address=address, **options)
    except Exception as error:  # noqa: BLE001  (Ray raises nothing more exact)
        reason = str(error).split("\n")[0]
        raise JobError(f"--address {address}: no Ray cluster that can be used ({reason})") from None
    return ray


def _knock(address: str) -> None:
    """Raise JobError where nobody is at an address: Ray itself would try again for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise JobError(f"--address {address}: no Ray cluster answers there ({error})") from None
