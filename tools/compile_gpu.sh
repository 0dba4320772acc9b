#!/usr/bin/env bash
# Compiles the GPU's kernels ahead of time; see usage.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

usage() {
    cat <<'EOF'
Usage: ./tools/compile_gpu.sh [PROGRAM...]

Compiles the kernels for an H100 on a machine that need not have a GPU, with all that NVIDIA's
assembler may refuse, and writes what they hold in memory into tests/gpu/compiled.jsonl. Runs
tests/gpu/compile_*.py, or those named. jax with CUDA goes into .venv-gpu: 4.4 GB.
EOF
}

case "${1:-}" in -h | --help) usage && exit ;; esac

export ACCELERATOR="${ACCELERATOR:-cuda}" JAX_PLATFORMS=cpu
environment_prepare .venv-gpu test
cd -- "$ROOT"
(($# > 0)) || set -- tests/gpu/compile_*.py
record="tests/gpu/compiled.jsonl"
versions="$("$VENV/bin/python" -c 'import jax; print(jax.__version__)')"
for program in "$@"; do
    environment_say "$program"
    report="$("$VENV/bin/python" "$program" | tail -n 1)"
    touch "$record"
    # One line for each program: the last run counts.
    grep -v "\"program\": \"$program\"" "$record" >"$record.new" || true
    printf '{"program": "%s", "jax": "%s", "report": %s}\n' "$program" "$versions" "$report" |
        tee -a "$record.new"
    sort -o "$record" "$record.new"
    rm "$record.new"
done
