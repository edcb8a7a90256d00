#!/usr/bin/env bash
# Starts a command in the image; where nothing runs this script (apptainer, enroot), nothing is
# missing. `docker stop` sends SIGTERM to process 1 alone: a launcher there ignores it, or dies and
# ends the container before the training processes have saved. So, as process 1 and without a
# terminal: pass it on to all processes, and end when they have all ended.
set -euo pipefail

ngc=/opt/nvidia/nvidia_entrypoint.sh
if [ -x "$ngc" ]; then set -- "$ngc" "$@"; fi
if [ $$ -ne 1 ] || [ -t 0 ]; then exec "$@"; fi

signalled=no
interrupted=no
trap 'signalled=yes; interrupted=yes; kill -TERM -1 2>/dev/null || true' TERM INT
"$@" <&0 &
command=$!

code=127
while
    interrupted=no
    status=0
    wait "$command" || status=$?
    # 127: its status was given already
    if [ "$status" -ne 127 ]; then code=$status; fi
    [ "$interrupted" = yes ]
do :; done
# ranks whose launcher is gone are children of process 1, but wait does not know them
while [ "$signalled" = yes ] && kill -0 -1 2>/dev/null; do sleep 0.1; done
exit "$code"
