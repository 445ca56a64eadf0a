#!/usr/bin/env bash
# Creates .venv beside this directory with the tested versions. A second run is instant.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
VENV=.venv
STAMP=$VENV/.installed
WANTED=$(cat setup.py .ci/constraints.txt .ci/install.sh | sha256sum | cut -d' ' -f1)

if [[ -x $VENV/bin/fairseq-openvino && $(cat "$STAMP" 2>/dev/null) == "$WANTED" ]]; then
    echo "setup: $VENV is up to date"
    exit 0
fi

step() { echo "setup: $1 (${SECONDS} s so far)"; }
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

step "creating $VENV"
"$PYTHON" -m venv "$VENV"

# fairseq-fixed is only published as source: it is compiled against this numpy, Cython and torch.
step "installing build tools"
pip install -c .ci/constraints.txt pip setuptools wheel cython numpy
step "installing torch"
# Where pip's own index only has the CUDA build, TORCH_INDEX_URL names one with the CPU build.
pip install -c .ci/constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
step "compiling fairseq-fixed (one to three minutes)"
pip install -c .ci/constraints.txt --no-build-isolation fairseq-fixed
step "installing fairseq-openvino"
pip install -c .ci/constraints.txt --no-build-isolation -e ".[fairseq,whisper-export,media,quantize,eval,dev]"
# Tests compare with openai-whisper, which asks for triton (for GPUs, several hundred MB).
pip install -c .ci/constraints.txt --no-build-isolation --no-deps openai-whisper

echo "$WANTED" > "$STAMP"
step "done: $VENV"
