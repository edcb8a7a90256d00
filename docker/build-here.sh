#!/usr/bin/env bash
# Builds docker/Dockerfile for real on a machine with no container registry, and smoke-tests it.
#
#   docker/build-here.sh                 network=fabric docker/build-here.sh: with the fabric stage
#
# The base image is made here: Debian (mmdebstrap), its Python, the CPU build of torch, and what NGC's
# images have: a constraint file, named by PIP_CONSTRAINT. buildah builds in chroot isolation, so it
# needs root but neither a daemon nor namespaces. pip's settings come from this machine as build
# secrets. Nothing is left but the cache of downloads (~/.cache/genus-image, or GENUS_IMAGE_CACHE).
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
fail() { printf 'build-here: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "needs root (chroot isolation)"
if ! command -v buildah mmdebstrap > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
        buildah mmdebstrap > /dev/null
fi
network=${network:-ethernet}
torch=$(sed -n 's/^torch==//p' constraints.txt)
cache=${GENUS_IMAGE_CACHE:-$HOME/.cache/genus-image}
mkdir -p "$cache"
work=$(mktemp -d /var/tmp/genus-image-XXXXXX)
export TMPDIR=$work  # of buildah's, too: its cache mounts lie there
b() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }
clean() {
    b rm --all > /dev/null 2>&1 || true
    b rmi --all --force > /dev/null 2>&1 || true
    # whatever is still mounted must not be deleted through
    awk -v under="$work/" 'index($2, under) == 1 {print $2}' /proc/mounts | sort -r \
        | xargs -r umount 2> /dev/null || true
    rm -rf --one-file-system "$work"
}
trap clean EXIT

# pip's settings here, those of the environment first: folders are mounted, certificates a secret
declare -A settings
while IFS='=' read -r key value; do
    option=${key##*.}
    value=${value#\'}
    [[ $key != :env:* && -n ${settings[$option]-} ]] || settings[$option]=${value%\'}
done < <(python3 -m pip config list)
places=()
for option in find-links index-url extra-index-url; do
    for place in ${settings[$option]-}; do
        place=${place#file://}
        # an index links to files beside its own folder
        case $option in *index-url) place=$(dirname "$place") ;; esac
        if [ -d "$place" ] && [[ " ${places[*]-} " != *" $place:$place:ro "* ]]; then
            places+=(--volume "$place:$place:ro")
        fi
    done
done
: > "$work/ca.pem"
if [ -n "${settings[cert]-}" ]; then
    cp "${settings[cert]}" "$work/ca.pem"
    settings[cert]=/run/secrets/ca.pem
fi
{
    echo "[global]"
    for option in "${!settings[@]}"; do echo "$option = ${settings[$option]}"; done
} > "$work/pip.conf"

say "base: Debian"
suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
debian=$cache/debian-$suite.tar
if [ -z "$(find "$debian" -mtime -7 2> /dev/null)" ]; then
    mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,ca-certificates \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
        "$suite" "$work/debian.tar" http://deb.debian.org/debian
    mv "$work/debian.tar" "$debian"
fi
base=$(b from scratch)
b add --quiet "$base" "$debian" / > /dev/null

say "base: torch $torch"
pip_settings=("${places[@]}" --volume "$cache:/root/.cache/pip"
    --volume "$work/pip.conf:/run/secrets/pip.conf:ro" --volume "$work/ca.pem:/run/secrets/ca.pem:ro")
b run --isolation chroot "${pip_settings[@]}" --env PIP_CONFIG_FILE=/run/secrets/pip.conf "$base" -- \
    pip install --quiet --break-system-packages --root-user-action=ignore "torch==$torch"
base_torch=$(b run --isolation chroot "$base" -- \
    python3 -W ignore -c 'import torch; print(torch.__version__)')
# a version that is not constraints.txt's: the image must have the base's
other=einops==0.8.1
b run --isolation chroot "$base" -- sh -c \
    "mkdir -p /etc/pip && printf '%s\n' 'torch==$base_torch' '$other' > /etc/pip/constraint.txt"
b config --env PIP_CONSTRAINT=/etc/pip/constraint.txt "$base"
b commit --quiet --rm "$base" localhost/genus-base > /dev/null

say "build (network: $network)"
b build --quiet --isolation chroot --layers=false --file docker/Dockerfile --target train \
    --build-arg BASE_IMAGE=localhost/genus-base --build-arg NETWORK="$network" \
    --secret "id=pip.conf,src=$work/pip.conf" --secret "id=ca.pem,src=$work/ca.pem" \
    "${places[@]}" --volume "$cache:/root/.cache/pip" --tag localhost/genus .
b images --format '{{.Name}} {{.Size}}'

say "what is in it"
container=$(b from localhost/genus)
inside() { b run --isolation chroot "$@"; }
inside "$container" -- sh -c "
    python -m pip freeze | grep -qx '$other' || { echo 'not the base image'\''s $other'; exit 1; }
    for path in runs data; do
        [ -z \"\$(ls -A /genus/\$path)\" ] || { echo \"/genus/\$path got in\"; exit 1; }
    done
    ! find /genus -name '.?*' | grep . || { echo 'hidden files got in'; exit 1; }
    ! ls -A /run/secrets 2>/dev/null | grep . || { echo 'a secret got in'; exit 1; }"

say "smoke test as the image's user"
inside --env EXPECT_TORCH="$base_torch" "$container" -- docker/smoke.sh
say "a user whom the image does not know"
inside --user 4242:4242 "$container" -- /genus/docker/entrypoint.sh \
    accelerate launch recipes/diffusion.py --preset tiny train.samples=64 > "$work/other.log" 2>&1 \
    || { cat "$work/other.log"; fail "user 4242 could not train"; }
say "done"
