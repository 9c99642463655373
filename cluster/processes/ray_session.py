"""Starting, joining and leaving Ray.

Without an address a private local Ray is started for the run and ended with it; with one, the run
joins that cluster and only removes its own actors.  A job submitted to a cluster joins it as well.
Other Ray processes of the host are never touched.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import InputError, one_line
from cluster.processes.leftovers import hold, release

#: The smallest object store Ray accepts; nothing of ours goes through it.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
#: Paths of Unix sockets have at most 107 bytes, and Ray puts some 60 under its directory.
LONGEST_DIRECTORY = 40
LOOPBACK = "127.0.0.1"
#: Given to the processes of a private Ray, to know them by.
_DIRECTORY_VARIABLE = "LPU_RAY_DIRECTORY"
#: Ray's own: a token, a file that holds one.
_MODE_VARIABLE = "RAY_AUTH_MODE"
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_CLUSTERS_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
#: Ray's last processes are gone after about a second.
LONGEST_REMOVAL_SECONDS = 3.0
#: One thread per chip process: more would only fight over the cores.  Ray gives its workers the
#: first itself, unless the environment has another number.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1")
#: For a head to answer before a run gives up.
LONGEST_ANSWER_SECONDS = 10.0


def _short_directory() -> str:
    """A fresh private directory whose path leaves room for Ray's sockets."""
    parent = tempfile.gettempdir()
    if len(parent) > LONGEST_DIRECTORY:
        parent = "/tmp"
    directory = tempfile.mkdtemp(prefix="lpu-ray-", dir=parent)
    hold(directory)
    return directory


#: Directories of this process's private Rays.  After a start that was interrupted, Ray tidies up
#: when the process exits and makes its directory anew.  What is registered first runs last, so this
#: is registered before Ray is imported.
_PRIVATE: list[str] = []


def _remove_all() -> None:
    for directory in _PRIVATE:
        _remove(directory)


atexit.register(_remove_all)

#: Ray gives it to the driver of a submitted job: the job's packages, which lie in its cluster only,
#: so that a Ray of its own could not start a worker.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def address_to_join(address: str | None) -> str | None:
    """``address``, or, without one, that of the cluster that this process is a job of."""
    return "auto" if address is None and os.environ.get(JOB_VARIABLE) else address


def check_reachable(address: str | None) -> None:
    """Raise InputError where a private Ray (no ``address``) could not reach its own processes.

    Ray would try for minutes.  It speaks IPv4 on loopback, so that is tried.
    """
    if address_to_join(address) is not None:
        return
    try:
        with socket.socket() as own:
            own.bind((LOOPBACK, 0))
            own.listen(1)
            socket.create_connection(own.getsockname(), LONGEST_ANSWER_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"this machine cannot reach itself at {LOOPBACK} ({error.strerror or error}), as "
            "actors must; bring its loopback up (ip link set lo up), or use --in-process"
        ) from None


@contextlib.contextmanager
def open_ray(address: str | None, workers: int) -> Iterator[Any]:
    """Inside, Ray is up; yields the placement that keeps an actor on the driver's host.

    A Ray that this process is connected to already is used as it is and left running.
    """
    check_reachable(address)
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
                    _PRIVATE.append(directory)
                    _start(ray, directory, workers)
                else:
                    _join(ray, address)
                _keep_quiet()
        node = ray.get_runtime_context().get_node_id()
        yield NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    finally:
        try:
            if not joined:
                ray.shutdown()
                _read_token_anew()  # else a Ray that this process starts next is shown ours
        finally:
            if directory is not None:
                _remove(directory)


def _keep_quiet() -> None:
    """Keep Ray from printing on our stdout that a worker died: who lost it says so itself."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def _end_processes_of(directory: str) -> bool:
    """End what Ray started in our own private ``directory``; whether there was anything.

    After a start that was interrupted there is, for Ray does not know of its processes then, and
    on a busy host some are slow to notice that the others are gone.  They are known by their
    environment: Ray gives several a command line that says nothing.
    """
    found, mark = False, f"{_DIRECTORY_VARIABLE}={directory}".encode() + b"\0"
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
                found = True
    return found


def _remove(directory: str) -> None:
    """Remove Ray's files; its processes, told to end, may still make some, and the directory."""
    release(directory)
    deadline = time.monotonic() + LONGEST_REMOVAL_SECONDS
    gone = 0 if os.path.exists(directory) else 3
    while gone < 3 and time.monotonic() < deadline:
        there = _end_processes_of(directory) or os.path.exists(directory)
        shutil.rmtree(directory, ignore_errors=True)
        gone = 0 if there else gone + 1
        time.sleep(0.05)


@contextlib.contextmanager
def _own_termination() -> Iterator[None]:
    """Keep this process's SIGTERM handler: Ray's own aborts without cleaning up."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


#: Where the running packages lie.  Ray, started or joined, puts the driver's working directory in
#: front of its workers' module path, and a checkout there would shadow the packages that run here.
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def _one_machine() -> Iterator[None]:
    """Tell Ray, and the processes it starts, that no other machine will ever join.

    Ray then takes the loopback address, as it does where it knows no clusters; given that address
    without this, it looks for another one.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_CLUSTERS_VARIABLE] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[_CLUSTERS_VARIABLE]


#: Python processes of a Ray head that one machine's own run has no use for: the autoscaler, the
#: collector of logs, the dashboard's server (which is started without a dashboard as well).
_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")


@contextlib.contextmanager
def _few_processes() -> Iterator[None]:
    """A Ray that is started inside has none of the processes that nobody would ask anything.

    Each costs half a second of a core while actors start, and Ray waits for the last.  ``ray
    start`` has options against some of them, ``ray.init`` has not.
    """
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in _UNUSED if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def _with_variables(**values: str) -> Iterator[None]:
    """Processes that are started inside, and theirs, have these environment variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """A Ray that is started inside has a token of its own, which its processes inherit.

    Ray would keep one in the home directory, which there may not be, or not to write in; and where
    it lies there, a cluster that is started later asks everybody for it.
    """
    if any(name in os.environ for name in _TOKEN_VARIABLES):
        yield
        return
    mode = os.environ.get(_MODE_VARIABLE)
    os.environ[_TOKEN_VARIABLES[0]] = secrets.token_hex(32)
    _read_token_anew()
    try:
        yield
    finally:
        del os.environ[_TOKEN_VARIABLES[0]]
        if mode is None:  # Ray sets it, and another cluster may have no token
            os.environ.pop(_MODE_VARIABLE, None)


def _read_token_anew() -> None:
    """Forget the token of an earlier Ray of this process, and whether it had one."""
    with contextlib.suppress(ImportError, AttributeError):  # a Ray without tokens
        from ray import _raylet

        raylet: Any = _raylet  # compiled: it has more names than types
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def _show_token() -> None:
    """Use the token in the home directory, if there is one, as Ray does for ``auto`` alone.

    A cluster that asks for none does not mind.
    """
    _read_token_anew()
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private.authentication import authentication_token_setup as setup

        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _start(ray: Any, directory: str, workers: int) -> None:
    with (
        warnings.catch_warnings(),
        contextlib.chdir(PACKAGE_ROOT),
        _one_machine(),
        _few_processes(),
        # by the directory its processes are known
        _with_variables(**{_DIRECTORY_VARIABLE: directory}, **THREADS),
        _own_token(),
    ):
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
            # Ray's servers then listen on loopback only: its protocol lets who reaches it run code.
            _node_ip_address=LOOPBACK,
            _temp_dir=directory,
        )


def _check_answers(address: str) -> None:
    """Raise InputError unless who listens at ``host:port`` speaks gRPC, as a Ray head does.

    Ray itself would try for minutes, and not be stopped meanwhile.
    """
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=LONGEST_ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise InputError(
                f"--address {address}: no Ray cluster answered in {LONGEST_ANSWER_SECONDS:g} s; "
                "start one with ray start --head, or leave --address out"
            ) from None


def _on_loopback_only(address: str) -> bool:
    """Whether the head at ``address`` is on this machine and does not listen at its other address.

    Ray asks that one instead of loopback, and would try for minutes.
    """
    host, _, port = address.rpartition(":")
    if host not in (LOOPBACK, "localhost"):
        return False
    from ray import util

    ours: Any = util
    try:
        there = (ours.get_node_ip_address(), int(port))
        socket.create_connection(there, LONGEST_ANSWER_SECONDS).close()
    except (OSError, ValueError):
        return True
    return False


def _join(ray: Any, address: str) -> None:
    if address.startswith("ray://"):
        raise InputError(
            f"--address {address}: chips and driver share memory, so the driver must run on a "
            "node of the cluster; run it there with --address auto"
        )
    if ":" in address and os.environ.get("RAY_USE_TLS", "0") == "0":
        _check_answers(address)
    _show_token()
    place = _one_machine() if _on_loopback_only(address) else contextlib.nullcontext()
    try:
        with place, contextlib.chdir(PACKAGE_ROOT):
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=True,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({one_line(error)[:120]}); start "
            "one with ray start --head, or leave --address out"
        ) from None
