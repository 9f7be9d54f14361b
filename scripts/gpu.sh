#!/usr/bin/env bash
# Everything of saefeat that needs a GPU, in one command: tests, a small run end to end against the
# figures of the CPU, the speed of encoding and training, groups of SAEs that move on and off the
# device. Writes one table and one JSON file.
#
#   scripts/gpu.sh --pack            with a network: fill gpu-pack/ (ignored by git)
#   scripts/gpu.sh [OPTION]...       on the machine with the GPU, offline: under eight minutes
#   scripts/gpu.sh --cpu             the same on the CPU, with small sizes
#
# The machine needs Python 3.12, torch, transformers, numpy, scipy, scikit-learn, pandas, pyarrow,
# safetensors, pytest, typer and jinja2. Other small packages are in gpu-pack/ as wheels. PYTHON names
# another interpreter. `scripts/gpu.sh --help` lists the options and what is packed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
pack=$PWD/gpu-pack
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

lacks() { ! "$python" -c "$1" 2>/dev/null; }

if [ -d "$pack" ] && [[ " $* " != *" --pack "* ]]; then
    wheels=()
    if lacks "import fasttext, iso639, langcodes"; then wheels+=("$pack"/wheels/*.whl); fi
    if lacks "import pydantic, tqdm; assert [*map(int, pydantic.VERSION.split('.')[:2])] >= [2, 13]"; then
        wheels+=("$pack"/config/*.whl)
    fi
    if [ ${#wheels[@]} -gt 0 ]; then
        site=$(mktemp -d)
        trap 'rm -rf "$site"' EXIT
        "$python" -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-index \
            --no-deps --no-compile --no-cache-dir --target "$site" "${wheels[@]}"
        export PYTHONPATH="$PYTHONPATH:$site"
    fi
    export SAEFEAT_CACHE="$pack/cache" HF_HUB_OFFLINE=1
fi
"$python" scripts/gpu_check.py "$@"
