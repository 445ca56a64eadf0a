#!/usr/bin/env bash
# Creates .venv-ray beside this directory: the light package with Ray, Dask and Spark, for `make test-ray`
# and examples/scale. Apart from .venv, as a worker of a cluster is: no torch, no Fairseq. A second run is
# instant.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
VENV=.venv-ray
STAMP=$VENV/.installed
WANTED=$(cat setup.py .ci/ray.txt .ci/install_ray.sh | sha256sum | cut -d' ' -f1)

if [[ -x $VENV/bin/fairseq-openvino && $(cat "$STAMP" 2>/dev/null) == "$WANTED" ]]; then
    echo "ray: $VENV is up to date"
    exit 0
fi

step() { echo "ray: $1 (${SECONDS} s so far)"; }
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

step "creating $VENV"
"$PYTHON" -m venv "$VENV"
pip install -c .ci/ray.txt pip setuptools wheel
step "installing fairseq-openvino, Ray, Dask and Spark (a minute)"
# Spark runs where there is Java 17 or newer.
pip install -c .ci/ray.txt --no-build-isolation -e ".[whisper,media,server,ray]" "dask[distributed]" pyspark pytest

echo "$WANTED" > "$STAMP"
step "done: $VENV"
