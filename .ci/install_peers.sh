#!/usr/bin/env bash
# Creates .venv-peers beside this directory: the other ways to run Whisper that `benchmark --whisper`
# compares with. Apart from .venv, because optimum-intel needs an older transformers. A peer that
# does not install is left out; the benchmark's report names the reason. A second run is instant.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
VENV=.venv-peers
STAMP=$VENV/.installed
LEFT_OUT=$VENV/left-out
WANTED=$(cat .ci/peers.txt .ci/install_peers.sh | sha256sum | cut -d' ' -f1)

if [[ -x $VENV/bin/python && $(cat "$STAMP" 2>/dev/null) == "$WANTED" ]]; then
    echo "peers: $VENV is up to date"
    exit 0
fi

step() { echo "peers: $1 (${SECONDS} s so far)"; }
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

step "creating $VENV"
"$PYTHON" -m venv "$VENV"
rm -rf "$LEFT_OUT"
mkdir "$LEFT_OUT"

step "installing torch"
# Where pip's own index only has the CUDA build, TORCH_INDEX_URL names one with the CPU build.
pip install -c .ci/peers.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
for peer in transformers "optimum-intel[openvino]" "openvino-genai openvino-tokenizers" \
    faster-whisper pywhispercpp; do
    step "installing $peer"
    read -ra packages <<< "$peer"
    name=${packages[0]%%\[*}
    # The reason is pip's last line; the import name is what the benchmark looks for.
    pip install -c .ci/peers.txt "${packages[@]}" 2> "$LEFT_OUT/$name" || {
        step "left out: $peer: $(tail -1 "$LEFT_OUT/$name")"
        continue
    }
    rm "$LEFT_OUT/$name"
done

# optimum-intel asks for torchvision, whose common build fails to import beside torch's CPU build,
# and transformers imports it as soon as it is there. Whisper needs none of it.
pip uninstall -y torchvision

echo "$WANTED" > "$STAMP"
step "done: $VENV"
