#!/usr/bin/env bash
# What can only be seen on an accelerator, in one command of about ten minutes. It installs nothing.
#
#   benchmarks/gpu.sh                        tests on the CUDA device, then the tables
#   benchmarks/gpu.sh --rehearse             the same without one: tests, and tables of tiny networks,
#                                            on the pretend device of tests/devices
#   PYTHON=.venv/bin/python OUT=folder       which Python, and where the tables go (results/)
#
# Whatever the tests say the tables are made; the exit status is that of the tests.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
OUT=${OUT:-benchmarks/results}
rehearse=() seconds=(240 420)
case "${1:-}" in
  --rehearse) rehearse=(--rehearse) seconds=(1800 900) ;;  # a minute or two, on a machine that is free
  "") "$PYTHON" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch finds no CUDA device; benchmarks/gpu.sh --rehearse runs without one")' || exit 2 ;;
  *) echo "usage: benchmarks/gpu.sh [--rehearse]" >&2; exit 2 ;;
esac
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
timeout "${seconds[0]}" "$PYTHON" -m pytest -q -m "(accelerator or gpu) and not slow" -p no:cacheprovider \
  ${TESTS:-tests/risk/test_device.py tests/sam/test_fit_precision.py tests/training/test_loop.py tests/devices}
tests=$?
timeout "${seconds[1]}" "$PYTHON" -m benchmarks.accelerator --minutes 6 --out "$OUT" "${rehearse[@]}" || exit $?
exit $tests
