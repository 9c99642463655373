"""Starting, joining and leaving Ray.

Without an address a private local Ray is started for the run and ended with it; with one, the run
joins that cluster and only removes its own actors.  A job submitted to a cluster joins it as well.
Other Ray processes of the host are never touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import InputError, one_line

#: The smallest object store Ray accepts; nothing of ours goes through it.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
#: Paths of Unix sockets have at most 107 bytes, and Ray puts some 60 under its directory.
LONGEST_DIRECTORY = 40


def _short_directory() -> str:
    """A fresh private directory whose path leaves room for Ray's sockets."""
    parent = tempfile.gettempdir()
    if len(parent) > LONGEST_DIRECTORY:
        parent = "/tmp"
    return tempfile.mkdtemp(prefix="lpu-ray-", dir=parent)


#: Ray gives it to the driver of a submitted job: the job's packages, which lie in its cluster only,
#: so that a Ray of its own could not start a worker.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def address_to_join(address: str | None) -> str | None:
    """``address``, or, without one, that of the cluster that this process is a job of."""
    return "auto" if address is None and os.environ.get(JOB_VARIABLE) else address


@contextlib.contextmanager
def ray_session(address: str | None, workers: int) -> Iterator[Any]:
    """Inside, Ray is up; yields the placement that keeps an actor on the driver's host.

    A Ray that this process is connected to already is used as it is and left running.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Ray announces a future default at every start; it concerns GPUs, which nothing here uses.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address_to_join(address)
    joined = ray.is_initialized()
    directory = None
    try:
        if not joined:
            with _own_termination():
                if address is None:
                    directory = _short_directory()
                    _start(ray, directory, workers)
                else:
                    _join(ray, address)
        node = ray.get_runtime_context().get_node_id()
        yield NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    finally:
        if not joined:
            ray.shutdown()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _own_termination() -> Iterator[None]:
    """Keep this process's SIGTERM handler: Ray's own aborts without cleaning up."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


#: Where the running packages lie.  Ray puts the driver's working directory in front of its workers'
#: module path, and a checkout there would shadow the installed packages and their compiled kernels.
PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def _start(ray: Any, directory: str, workers: int) -> None:
    with warnings.catch_warnings(), contextlib.chdir(PACKAGE_ROOT):
        warnings.simplefilter("ignore")
        ray.init(
            address="local",
            num_cpus=workers,
            num_gpus=0,
            include_dashboard=False,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=directory,
        )


def _join(ray: Any, address: str) -> None:
    if address.startswith("ray://"):
        raise InputError(
            f"--address {address}: chips and driver share memory, so the driver must run on a "
            "node of the cluster; run it there with --address auto"
        )
    try:
        ray.init(
            address=address, logging_level=logging.ERROR, log_to_driver=False,
            configure_logging=True,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({one_line(error)[:120]}); start "
            "one with ray start --head, or leave --address out"
        ) from None
