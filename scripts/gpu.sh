#!/usr/bin/env bash
# Everything of saefeat that needs a GPU, in one command: tests, a small run end to end against the CPU's figures,
# encoding and training throughput, groups of SAEs moving on and off the device. One table, one JSON file.
#
#   scripts/gpu.sh --pack            here, with a network: fill gpu-pack/ (ignored by git) with what has to travel
#   scripts/gpu.sh [OPTION]...       on the machine with the GPU, which needs no network: under eight minutes
#   scripts/gpu.sh --cpu             the same path in small, without a GPU
#
# The machine needs Python 3.12, torch, transformers, numpy, scipy, scikit-learn, pandas, pyarrow, safetensors, pytest,
# typer and jinja2; other small packages travel in gpu-pack/ as wheels. PYTHON names another interpreter.
# `scripts/gpu.sh --help` has the options and what travels.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
pack=$PWD/gpu-pack
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -d "$pack" ] && [[ " $* " != *" --pack "* ]]; then
    if ! "$python" -c "import fasttext, iso639, langcodes" 2>/dev/null; then
        site=$(mktemp -d)
        trap 'rm -rf "$site"' EXIT
        "$python" -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-index --no-deps \
            --no-compile --no-cache-dir --target "$site" "$pack"/wheels/*.whl
        export PYTHONPATH="$PYTHONPATH:$site"
    fi
    export SAEFEAT_CACHE="$pack/cache" HF_HUB_OFFLINE=1
fi
"$python" scripts/gpu_check.py "$@"
