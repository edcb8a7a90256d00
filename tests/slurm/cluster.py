"""A real SLURM of several nodes on one machine, for tests: started and stopped by pid.

Each node is a slurmd in its own network, uts, mount and pid namespace, on a bridge without a way
out. The daemons need root; jobs are submitted as an ordinary user. What stands in one folder is
shared by all nodes, as a cluster's file system is; /tmp and /dev/shm are each node's own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import slurm_files

USER = 65534
"""User and group (nobody) that jobs belong to."""
PACKAGES = ("slurmctld", "slurmd", "sbatch", "munged", "ip")
ROOT = Path(__file__).parents[2]


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "needs root: SLURM's daemons and network namespaces do"
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in PACKAGES if shutil.which(name, path=search) is None]
    if absent:
        return f"no {', '.join(absent)} here: run tests/slurm/setup.sh"
    if not Path("/sys/fs/cgroup/freezer").is_dir():
        return "no cgroup freezer hierarchy, which this SLURM's proctrack/cgroup needs"
    return None


class Cluster:
    """Nodes n1..nN and a login host ``ctl``."""

    def __init__(self, nodes: int = 4, cpus: int = 8, gpus: int = 2) -> None:
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.cpus, self.gpus = cpus, gpus
        self.tag = f"gs{os.getpid()}"
        # Not below pytest's own folder, which no other user may enter.
        self.base = Path(tempfile.mkdtemp(prefix="genus-slurm-", dir="/var/tmp"))
        self.base.chmod(0o755)
        self.state = self.base / "cluster"
        self.home = self.base / "home"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # ---- life ------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start everything; AssertionError where the nodes don't become idle."""
        for name in ("state", "spool", "log", "run", "dev"):
            (self.state / name).mkdir(parents=True)
        self.home.mkdir()
        os.chown(self.home, USER, USER)
        for gpu in range(self.gpus):  # twins of /dev/null pass for GPUs
            path = self.state / "dev" / f"gpu{gpu}"
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            path.chmod(0o666)
        slurm_files.write(self.state, self.nodes, self.cpus, self.gpus)
        self._start("munged", slurm_files.munged(self.state))
        self._network()
        enter = ["nsenter", f"--net=/run/netns/{self.tag}-ctl", "unshare", "--uts", "--mount"]
        init = [str(self.state / "host-init"), "ctl"]
        self._start("ctl", [*enter, *init, "/usr/sbin/slurmctld", "-D"])
        for node in self.nodes:
            self.boot(node)
        self.wait(lambda: self.idle() == self.nodes, "idle nodes", limit=60)

    def down(self) -> None:
        """Stop exactly what was started, and take its namespaces and folder away."""
        for daemon in reversed(self._daemons.values()):
            if daemon.poll() is None:
                daemon.kill()  # the first process of a pid namespace takes the others with it
            daemon.wait(30)
        for name in ("ctl", *self.nodes):
            subprocess.run(["ip", "netns", "del", f"{self.tag}-{name}"], check=False)
        shutil.rmtree(self.base, ignore_errors=True)
        for node in self.nodes:
            for folder in Path("/sys/fs/cgroup/freezer").glob(f"slurm_{node}*"):
                _remove_groups(folder)

    def _network(self) -> None:
        net = slurm_files.NETWORK

        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True)

        ctl = f"{self.tag}-ctl"
        ip("netns", "add", ctl)
        ip("-n", ctl, "link", "set", "lo", "up")
        ip("-n", ctl, "link", "add", "br0", "type", "bridge")
        ip("-n", ctl, "addr", "add", f"{net}.1/24", "dev", "br0")
        ip("-n", ctl, "link", "set", "br0", "up")
        for i, node in enumerate(self.nodes, 1):
            own = f"{self.tag}-{node}"
            ip("netns", "add", own)
            ip("-n", own, "link", "set", "lo", "up")
            ip("-n", ctl, "link", "add", node, "type", "veth", "peer", "name", "eth0",
               "netns", own)  # fmt: skip
            ip("-n", ctl, "link", "set", node, "master", "br0", "up")
            ip("-n", own, "addr", "add", f"{net}.{10 + i}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "eth0", "up")

    def _start(self, name: str, words: Sequence[str]) -> None:
        with_us = ["setpriv", "--pdeathsig", "KILL", "--", *words]  # a killed pytest leaves nothing
        with (self.state / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                with_us, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._variables(),
                start_new_session=True, cwd="/",
            )  # fmt: skip

    def _variables(self) -> dict[str, str]:
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "SLURM_CONF": str(self.state / "slurm.conf"), "LANG": "C.UTF-8"}

    # ---- faults ----------------------------------------------------------------------------------

    def boot(self, node: str) -> None:
        """Start a node, or start it again after a power cut."""
        (self.state / "spool" / node).mkdir(exist_ok=True)
        self.plug(node)
        enter = ["nsenter", f"--net=/run/netns/{self.tag}-{node}", "unshare", "--uts", "--mount"]
        enter += ["--pid", "--fork", "--kill-child", "--mount-proc"]
        init = [str(self.state / "host-init"), node]
        self._start(node, [*enter, *init, "/usr/sbin/slurmd", "-D", "-N", node])

    def cut_power(self, node: str) -> None:
        """All that runs on the node dies at once, and nothing is heard of it any more."""
        self.cut_cable(node)
        daemon = self._daemons[node]
        daemon.kill()
        daemon.wait(30)

    def cut_cable(self, node: str) -> None:
        """The node goes on running, unheard; the shared folder stays within its reach."""
        words = ["ip", "-n", f"{self.tag}-ctl", "link", "set", node, "down"]
        subprocess.run(words, check=True)

    def plug(self, node: str) -> None:
        """Put the cable back."""
        words = ["ip", "-n", f"{self.tag}-ctl", "link", "set", node, "up"]
        subprocess.run(words, check=True)

    # ---- use -------------------------------------------------------------------------------------

    def command(
        self, *words: str, variables: Mapping[str, str] | None = None, root: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login host as the ordinary user, in the home folder."""
        pid = self._daemons["ctl"].pid
        enter = ["nsenter", "-t", str(pid), "--net", "--uts", "--mount", f"--wd={self.home}"]
        if not root:
            enter += ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        return subprocess.run(
            [*enter, *words],
            env={**self._variables(), **self.user_variables(), **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )

    def user_variables(self) -> dict[str, str]:
        """The environment of the ordinary user's shell."""
        return {
            "HOME": str(self.home),
            "USER": "nobody",
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT / "platform"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "WANDB_MODE": "offline",
            # git refuses a checkout of another user, and a checkout of root's is all there is here
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": str(ROOT),
        }

    def idle(self) -> list[str]:
        """Names of the idle nodes."""
        told = self.command("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", root=True)
        return sorted(set(told.stdout.split())) if told.returncode == 0 else []

    def wait_for_nodes(self) -> None:
        """Wait until all nodes are idle, after one was down."""

        def idle() -> bool:
            # SLURM takes a node back by itself, but may take a minute to think of it.
            words = ["scontrol", "update", f"nodename={','.join(self.nodes)}", "state=resume"]
            self.command(*words, root=True)
            return self.idle() == self.nodes

        self.wait(idle, "idle nodes", pause=1.0)

    def state_of(self, job: str) -> str:
        """JobState of a job, as scontrol tells it; empty for one that SLURM has forgotten."""
        told = self.command("scontrol", "show", "job", job, root=True).stdout
        words = dict(word.partition("=")[::2] for word in told.split() if "=" in word)
        return words.get("JobState", "")

    def field(self, job: str, name: str) -> str:
        """Any field of ``scontrol show job``."""
        told = self.command("scontrol", "show", "job", job, root=True).stdout
        words = dict(word.partition("=")[::2] for word in told.split() if "=" in word)
        return words.get(name, "")

    def wait(
        self, condition: Callable[[], object], what: str, limit: float = 90, pause: float = 0.2
    ) -> None:
        """Poll until the condition holds; AssertionError after ``limit`` seconds."""
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                queue = self.command("squeue", "-a", root=True).stdout
                raise AssertionError(f"no {what} within {limit} s\n{queue}{self.log('ctl')}")
            time.sleep(pause)

    def log(self, name: str) -> str:
        """The last lines that a daemon wrote."""
        path = self.state / "log" / f"{name}.out"
        return "\n".join(path.read_text(errors="replace").splitlines()[-15:])

    def pids(self, node: str, words: str) -> list[int]:
        """Host pids of the processes of a node whose command line holds ``words``."""
        init = self._daemons[node].pid
        spaces = {
            Path(f"/proc/{child}/ns/pid").readlink()
            for child in Path(f"/proc/{init}/task/{init}/children").read_text().split()
        }
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if words in line and (entry / "ns" / "pid").readlink() in spaces:
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one process of a node, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def has_got(self, pid: int, number: signal.Signals) -> bool:
        """Whether the signal waits for a process that was stopped, or came with a SIGCONT that has
        woken it (as SLURM's own do) and ended it by now, maybe."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True
        (state,) = re.findall(r"^State:\s*(\w)", status, re.MULTILINE)
        (pending,) = re.findall(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
        return state != "T" or bool(int(pending, 16) >> (number - 1) & 1)


def _remove_groups(folder: Path) -> None:
    """Remove a tree of control groups; the last processes in it may be just dying."""
    end = time.monotonic() + 10
    groups = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    for group in [*groups, folder]:
        while True:
            try:
                group.rmdir()
                break
            except OSError:
                if time.monotonic() > end:
                    return
                time.sleep(0.1)
