#!/usr/bin/env bash
# Does this image work? Runs inside it, as a user who may be anybody but root; 1 to 2 minutes.
#   docker run --rm genus docker/smoke.sh              EXPECT_TORCH=2.13.0+cu130: that very torch
# Trains a few steps on 1 and 2 CPU processes, and on a GPU where there is one. Ends with the first
# failure and a non-zero code.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'smoke: %s\n' "$*"; }
fail() { printf 'smoke: FAILED: %s\n' "$*" >&2; exit 1; }
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

[ "$(id -u)" -ne 0 ] || fail "runs as root"
say "user $(id -u), Python $(python -c 'import platform; print(platform.python_version())')"

python docker/torch_unchanged.py check /opt/genus/base-torch.json
torch=$(python -c 'import torch; print(torch.__version__)')
[ "$torch" = "${EXPECT_TORCH:-$torch}" ] || fail "torch is $torch, not $EXPECT_TORCH"

# a launcher of the base image would start the base image's Python
for name in accelerate deepspeed genus python torchrun; do
    [ "$(command -v "$name")" = "$VIRTUAL_ENV/bin/$name" ] || fail "$name is $(command -v "$name")"
done
python - <<'PYTHON'
import importlib

for name in (
    "accelerate deepspeed einops filelock genus imagecodecs matplotlib numpy obstore PIL "
    "sacrebleu safetensors simplejpeg tokenizers torchmetrics tqdm tyro wandb webdataset"
).split():
    importlib.import_module(name)
import deepspeed

print("smoke: imports, deepspeed", deepspeed.__version__)
PYTHON
python -m pip check
genus --help > /dev/null
deepspeed --help > /dev/null
say "genus --help, deepspeed --help"

[ -w runs ] || fail "$PWD/runs is not writable for user $(id -u)"
folder=$(mktemp -d "$PWD/runs/smoke-XXXXXX")
trap 'rm -rf "$folder"' EXIT
export WANDB_MODE=offline OMP_NUM_THREADS=1
words=(--preset tiny run.root="$folder" train.samples=64 train.sample_every=64
    train.status_every=16 train.checkpoint_every=64)

# train NAME LAUNCHER...: four steps, and the run must have ended well and left a checkpoint
train() {
    local name=$1
    shift
    timeout 300 "$@" recipes/diffusion.py "${words[@]}" run.name="$name" > "$folder/$name.log" 2>&1 || {
        cat "$folder/$name.log"
        fail "training: $name (each has 300 s)"
    }
    [ -e "$folder/$name/done" ] || fail "$name left no marker 'done'"
    genus digest "$folder/$name" | grep -q network || fail "$name left no checkpoint"
    say "trained: $name"
}
CUDA_VISIBLE_DEVICES='' train one-cpu accelerate launch
CUDA_VISIBLE_DEVICES='' train two-cpu accelerate launch --config_file launch/accelerate/cpu2.yaml
# the address: a container's own host name need not resolve, and torchrun waits for it
CUDA_VISIBLE_DEVICES='' train torchrun \
    torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 2
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    train one-gpu accelerate launch --config_file launch/accelerate/gpu1.yaml
fi
say "passed"
