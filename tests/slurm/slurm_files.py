"""The files that make a test cluster: slurm.conf and its neighbours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

NETWORK = "10.77.0"
GRACE = 30
"""Seconds that jobs of the partition ``graceful`` get when they are pre-empted."""

_HOST_INIT = """#!/bin/bash
# host-init NAME COMMAND...: a host's own name, hosts file, /tmp and /dev/shm; then its daemon.
name=$1; shift
mount --make-rprivate /
mount --bind {state}/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
hostname "$name"
# What the ordinary user needs may lie below a folder that only root may enter: seen from these
# hosts that folder is open and holds nothing else.
i=0
for path in {needed}; do
  i=$((i + 1)); mkdir -p {state}/needed/$i; mount --bind "$path" {state}/needed/$i
done
for closed in {closed}; do mount -t tmpfs -o mode=755 tmpfs "$closed"; done
i=0
for path in {needed}; do
  i=$((i + 1)); mkdir -p "$path"; mount --move {state}/needed/$i "$path"
done
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
if [ "$name" = ctl ]; then exec "$@"; fi
[ -z "{hides_tmp}" ] || mount -t tmpfs -o mode=1777 tmpfs /tmp
"$@" &
while :; do wait; sleep 1000 & wait $!; done  # first process of the node: reap, outlive slurmd
"""

_SLURM_CONF = """
ClusterName=test
SlurmctldHost=ctl({net}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again: 120 s by default
# and with less than 5
AuthInfo=socket={state}/run/munge.socket,cred_expire=5
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
SlurmdParameters=config_overrides
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PriorityType=priority/basic
JobRequeue=1
ReturnToService=2
StateSaveLocation={state}/state
SlurmdSpoolDir={state}/spool/%n
SlurmctldPidFile={state}/run/slurmctld.pid
SlurmdPidFile={state}/run/slurmd-%n.pid
SlurmctldTimeout=10
SlurmdTimeout=8
MessageTimeout=5
KillWait=10
MinJobAge=600
CompleteWait=0
UnkillableStepTimeout=20
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
NodeName=DEFAULT CPUs={cpus} RealMemory=16000 Gres=gpu:{gpus} State=UNKNOWN
{nodes}
PartitionName=DEFAULT Nodes={names} State=UP MaxTime=INFINITE
PartitionName=main Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=abrupt PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=graceful PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent PriorityTier=50 PreemptMode=OFF
"""


def write(state: Path, nodes: Sequence[str], cpus: int, gpus: int) -> None:
    """Write all of them into ``state``."""
    addresses = {node: f"{NETWORK}.{10 + i}" for i, node in enumerate(nodes, 1)}
    hosts = ["127.0.0.1 localhost", f"{NETWORK}.1 ctl"]
    hosts += [f"{address} {node}" for node, address in addresses.items()]
    # gloo asks for IPv6 addresses, too
    hosts += [f"::ffff:{address} {node}" for node, address in addresses.items()]
    (state / "hosts").write_text("\n".join(hosts) + "\n")
    (state / "slurm.conf").write_text(
        _SLURM_CONF.format(
            net=NETWORK,
            state=state,
            cpus=cpus,
            gpus=gpus,
            grace=GRACE,
            names=",".join(nodes),
            nodes="\n".join(f"NodeName={n} NodeAddr={address}" for n, address in addresses.items()),
        )
    )
    devices = [f"NodeName={n} Name=gpu File={state}/dev/gpu[0-{gpus - 1}]" for n in nodes]
    (state / "gres.conf").write_text("\n".join(["AutoDetect=off", *devices]) + "\n")
    (state / "cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n")
    key = state / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    init = state / "host-init"
    needed = {Path(sys.base_prefix).resolve(), Path(__file__).parents[2], Path(sys.prefix)}
    closed = {top for path in needed if (top := _closed_above(path)) is not None}
    kept = sorted(path for path in needed if _closed_above(path) is not None)
    outer = [path for path in kept if not any(other in path.parents for other in kept)]
    used = (*needed, state)
    init.write_text(
        _HOST_INIT.format(
            state=state,
            needed=" ".join(f"'{path}'" for path in outer),
            closed=" ".join(f"'{path}'" for path in closed),
            # a checkout below /tmp must stay in sight
            hides_tmp="" if any(Path("/tmp") in path.parents for path in used) else "yes",
        )
    )
    init.chmod(0o755)


def munged(state: Path) -> list[str]:
    """The command line of the authentication daemon."""
    run = state / "run"
    return [
        "/usr/sbin/munged", "--foreground", f"--key-file={state / 'munge.key'}",
        f"--socket={run / 'munge.socket'}", f"--pid-file={run / 'munged.pid'}",
        f"--log-file={state / 'log' / 'munged.log'}", f"--seed-file={run / 'munge.seed'}",
    ]  # fmt: skip


def _closed_above(path: Path) -> Path | None:
    """The outermost folder above ``path`` that other users may not enter."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & 0o001:
            return folder
    return None
