"""What is checked on every node before a job trains: python -m genus.launch_checks SUBMISSION

The batch script starts it once a node. Each check ends in one line that says what is wrong and what
to do; such a job is not started again, for it would fail the same way. Nothing here imports torch:
the checks take a second.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path

from genus.errors import ConfigError
from genus.ownership import obstacle
from genus.snapshot import hash_of

FAILED = "launch check failed: "
"""The batch script looks for it."""
WAIT_SECONDS = 60.0
CLOCKS_SECONDS = 5.0
"""Clocks may differ by so much: rows of several ranks are compared by their time."""
_POLL_SECONDS = 0.1


def main() -> int:
    """Check this node; returns the exit code."""
    submission = Path(sys.argv[1])
    variables = os.environ
    node, nodes = int(variables.get("SLURM_NODEID", "0")), int(variables.get("SLURM_NNODES", "1"))
    try:
        run = check_folder(submission)
        check_code(submission)
        meet(Path(variables["LOGS"]) / "checks", node, nodes)
        if nodes > 1:
            check_interface(dict(variables))
            address = variables["MASTER_ADDR"], int(variables["MASTER_PORT"])
            check_clock(serve_time(address[1], nodes - 1) if node == 0 else ask_time(address))
        if node == 0:
            check_owner(run)
            check_disk(run)
            check_grace(run, float(variables.get("GENUS_GRACE", "inf")))
    except ConfigError as error:
        print(f"{FAILED}{socket.gethostname()}: {error}", flush=True)
        return 3
    print(f"{socket.gethostname()}: sound", flush=True)
    return 0


def check_folder(submission: Path) -> Path:
    """The run folder, seen from here."""
    if not (submission / "snapshot.json").is_file():
        raise ConfigError(
            f"{submission} is not seen here: run.root must lie on a file system that all nodes "
            "share"
        )
    return submission.parents[1]


def check_code(submission: Path) -> None:
    """The code is what was submitted, byte by byte."""
    about = json.loads((submission / "snapshot.json").read_text())
    try:
        found = hash_of(submission / "code", about["files"])
    except OSError as error:
        raise ConfigError(f"the code of the job can't be read: {error}") from None
    if found != about["hash"]:
        raise ConfigError(
            f"{submission / 'code'} is not what was submitted (hash {found[:12]}, not "
            f"{about['hash'][:12]}): submit again"
        )


def meet(folder: Path, node: int, nodes: int, limit: float = WAIT_SECONDS) -> None:
    """Every node writes a token and sees those of all others."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"node-{node}").write_text(socket.gethostname())
    except OSError as error:
        raise ConfigError(f"can't write to the run folder: {error}") from None
    end = time.monotonic() + limit
    while True:
        missing = [n for n in range(nodes) if not (folder / f"node-{n}").exists()]
        if not missing:
            return
        if time.monotonic() > end:
            told = ", ".join(map(str, missing))
            raise ConfigError(
                f"nothing of node {told} of the job has come to {folder} in {limit:.0f} s: is it "
                "the same file system there?"
            )
        time.sleep(_POLL_SECONDS)


def check_interface(variables: dict[str, str]) -> None:
    """Other nodes reach this one: by the interfaces that are named, or by its name's address."""
    names = {name for _, name in socket.if_nameindex()}
    named = False
    for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        value = variables.get(key, "")
        if not value or value.startswith("^"):
            continue
        named = named or key.startswith("GLOO")
        wanted = [part.lstrip("=") for part in value.split(",")]
        if not any(name.startswith(prefix) for prefix in wanted for name in names):
            raise ConfigError(f"{key}={value}, but the interfaces are {', '.join(sorted(names))}")
    if named:
        return
    host = socket.gethostname()
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise ConfigError(
            f"the node's own name has no address ({error}): set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME in launch/slurm/job.sbatch"
        ) from None
    if all(address.startswith("127.") or address == "::1" for address in addresses):
        raise ConfigError(
            f"the node's own name stands for {', '.join(sorted(addresses))}, where no other node "
            "can reach it: set GLOO_SOCKET_IFNAME in launch/slurm/job.sbatch"
        )


def serve_time(port: int, clients: int, limit: float = WAIT_SECONDS) -> float:
    """Tell so many nodes this one's time; 0, its own difference to itself."""
    try:
        server = socket.create_server(("", port), backlog=clients)
    except OSError as error:
        raise ConfigError(
            f"port {port}, where the ranks are to meet, can't be had: {error}"
        ) from None
    with server:
        server.settimeout(limit)
        for met in range(clients):
            try:
                connection, _ = server.accept()
            except TimeoutError:
                raise ConfigError(
                    f"{clients - met} of {clients} other nodes did not come to port {port} in "
                    f"{limit:.0f} s: look at the network, its interfaces and firewalls"
                ) from None
            with connection:
                connection.sendall(f"{time.time()!r}\n".encode())
    return 0.0


def ask_time(address: tuple[str, int], limit: float = WAIT_SECONDS) -> float:
    """This clock's lead over the first node's, seconds; to half a round trip."""
    end = time.monotonic() + limit
    while True:
        before = time.time()
        try:
            with socket.create_connection(address, timeout=limit) as connection:
                theirs = float(connection.makefile().readline())
            return (before + time.time()) / 2 - theirs
        except (OSError, ValueError) as error:
            if time.monotonic() > end:
                raise ConfigError(
                    f"{address[0]}:{address[1]}, where the ranks are to meet, can't be reached "
                    f"({error}): look at the network, its interfaces and firewalls"
                ) from None
            time.sleep(_POLL_SECONDS)


def check_clock(lead: float) -> None:
    """This clock shows the first node's time."""
    if abs(lead) > CLOCKS_SECONDS:
        raise ConfigError(
            f"the clock is {lead:+.1f} s off the first node's, more than {CLOCKS_SECONDS:.0f} s: "
            "have the nodes' clocks set (chrony, ntp)"
        )


def check_owner(run: Path) -> None:
    """Nobody else trains in the run folder."""
    message = obstacle(run)
    if message:
        raise ConfigError(message)


def check_disk(run: Path) -> None:
    """There is room for two more checkpoints of the size of the newest."""
    newest = _newest(run)
    if newest is None:
        return
    size = sum(path.stat().st_size for path in newest.iterdir())
    free = shutil.disk_usage(run).free
    if free < 2 * size:
        raise ConfigError(
            f"{free / 1e9:.1f} GB are free in {run}, and a checkpoint takes {size / 1e9:.1f} GB: "
            "make room for two"
        )


def check_grace(run: Path, grace: float) -> None:
    """A save takes less time than the job has after the signal, as far as saves were measured."""
    newest = _newest(run)
    if newest is None:
        return
    seconds = json.loads((newest / "meta.json").read_text()).get("seconds", 0.0)
    if seconds > grace:
        raise ConfigError(
            f"the newest checkpoint took {seconds:.0f} s to write, and the job has {grace:.0f} s "
            f"after the signal: submit with --grace {round(2 * seconds)}"
        )


def _newest(run: Path) -> Path | None:
    found = [p for p in run.glob("checkpoints/samples-*") if re.fullmatch(r"samples-\d+", p.name)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


if __name__ == "__main__":
    raise SystemExit(main())
