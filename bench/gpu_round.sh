#!/usr/bin/env bash
# The whole GPU round, from source, with no install step and no network: bench/gpu_round.sh [--rehearse] [STAGE...]
# Stages, most telling first, each at most 9 minutes: bench/gpu_round.sh --list
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" bench/gpu_round.py "$@"
