#!/bin/bash
# What the tests of this folder need on Debian or Ubuntu: SLURM's daemons and tools, munge, iproute2.
# Without root or apt-get nothing is done, and the tests are skipped with the reason.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
missing=
for program in slurmctld slurmd sbatch munged ip; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
if [ -z "$missing" ]; then
    exit 0
elif [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "SLURM's packages are not here and can't be installed: needs root and apt-get" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
packages="slurmctld slurmd slurm-client munge iproute2"
if ! { apt-get update -q && apt-get install -q -y --no-install-recommends $packages; }; then
    echo "apt-get could not install $packages: the tests are skipped" >&2
fi
# What the packages' services may have started is not used: the tests start their own daemons.
