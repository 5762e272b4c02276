#!/bin/sh
# Runs the operators' tests in a build instrumented with the address and undefined behavior sanitizers.
# The build goes to build/sanitize and leaves the installed extension alone; later runs compile only what changed.
# Usage: [TESTS="tests/ops/test_forward.py ..."] csrc/sanitize.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
case $python in /*) ;; *) python="$PWD/$python" ;; esac
work=build/sanitize
mkdir -p "$work/tests"
rm -rf "$work/tokendetr" "$work/standalone" "$work/projects" "$work/tests/ops"
cp -r tokendetr standalone projects setup.py pyproject.toml README.md LICENSE "$work"/
mkdir -p "$work/csrc" && cp -rp csrc/. "$work/csrc"
cp -r tests/ops tests/conftest.py tests/patience.py "$work/tests"/
rm -f "$work"/tokendetr/libtokendetr_ops.* "$work"/tests/ops/test_cuda* "$work"/tests/ops/test_build*
cd "$work"
TOKENDETR_SANITIZE=1 TOKENDETR_NO_CUDA=1 "$python" setup.py -q build_ext --inplace
compiler=${CXX:-g++}
# Python is linked against neither; the second lets the first find the function that throws.
LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so.6)"
export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0:halt_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 PYTHONPATH=.:standalone
# shellcheck disable=SC2086
exec "$python" -m pytest ${TESTS:-tests/ops} -p no:cacheprovider --timeout 1200 "$@"
