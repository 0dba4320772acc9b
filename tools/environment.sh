# Sourced by tools/quickstart, tools/test and .ci/run: one virtual environment in the checkout.
#
#   source tools/environment.sh
#   environment_prepare .venv demo,test   # makes or completes it; fast when nothing is to do
#   "$VENV/bin/python" ...
#
# PYTHON=...       the interpreter to build it with (default: the first fit of python3, python3.13, ...)
# ACCELERATOR=...  cpu, cuda, cuda12 or tpu (default: what this machine has)

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

environment_say() { printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2; }

environment_fail() {
    environment_say "$@"
    exit 1
}

# True if $1 is a Python that llmjax runs on.
environment_fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints the interpreter to build with.
environment_interpreter() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        environment_fits "$PYTHON" ||
            environment_fail "PYTHON=$PYTHON is not a Python 3.11 or newer that runs here."
        command -v -- "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        if environment_fits "$candidate"; then
            command -v -- "$candidate"
            return
        fi
    done
    environment_fail "no Python 3.11 or newer was found (python3 is $(
        python3 --version 2>/dev/null || echo missing)). On Debian 12 or newer:
    apt-get install python3 python3-venv
or name another interpreter: PYTHON=/path/to/python3.12 $0"
}

# Prints cpu, cuda, cuda12 or tpu. CUDA 13 needs an NVIDIA driver of series 580 or newer.
environment_accelerator() {
    local driver
    if [[ -n "${ACCELERATOR:-}" ]]; then
        case "$ACCELERATOR" in
            cpu | cuda | cuda12 | tpu) echo "$ACCELERATOR" ;;
            *) environment_fail "ACCELERATOR=$ACCELERATOR: choose cpu, cuda, cuda12 or tpu." ;;
        esac
    elif [[ -e /dev/nvidia0 || -e /dev/nvidiactl || -e /dev/dxg ]]; then
        driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null || true)"
        if [[ "${driver%%.*}" =~ ^[0-9]+$ ]] && ((${driver%%.*} < 580)); then
            echo cuda12
        else
            echo cuda
        fi
    elif [[ -n "${TPU_NAME:-}${TPU_ACCELERATOR_TYPE:-}" ]] || environment_tpu_chips; then
        echo tpu
    else
        echo cpu
    fi
}

# True if a PCI device of Google's is here together with the device nodes of a TPU.
environment_tpu_chips() {
    compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null || return 1
    grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor
}

# Shows pip's progress on one line of a terminal, or one line a package elsewhere.
environment_progress() {
    local line count=0
    while IFS= read -r line; do
        case "$line" in
            Collecting* | *Downloading* | Installing* | Building* | Preparing*) ;;
            *) continue ;;
        esac
        count=$((count + 1))
        if [[ -t 2 ]]; then
            printf '\r\033[K  %.100s' "$line" >&2
        elif ((count % 20 == 0)) || [[ "$line" == Installing* ]]; then
            printf '  %.100s\n' "$line" >&2
        fi
    done
    if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
}

# Makes the virtual environment $VENV anew with the interpreter $1.
environment_create() {
    local version
    version="$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        environment_fail "$1 cannot make virtual environments. On Debian:
    apt-get install python3-venv        (for python$version: python$version-venv)"
    environment_say "making $(basename -- "$VENV") with Python $version"
    rm -rf -- "$VENV"
    "$1" -m venv "$VENV"
}

# True if $VENV works and, given an interpreter $1, was made with that one.
environment_is_sound() {
    local base='import sys; print(sys.base_prefix, sys.version)'
    [[ -x "$VENV/bin/python" ]] && environment_fits "$VENV/bin/python" || return 1
    [[ -z "${1:-}" || "$("$VENV/bin/python" -c "$base")" == "$("$1" -c "$base" 2>/dev/null)" ]]
}

# environment_prepare NAME EXTRAS: sets VENV to the virtual environment NAME of the checkout and
# sees to it that llmjax is installed in it with EXTRAS (comma-separated) and the machine's jax.
environment_prepare() {
    local extras="$2" accelerator stamp log interpreter
    VENV="$ROOT/$1"
    accelerator="$(environment_accelerator)" || exit
    [[ "$accelerator" == cpu ]] || extras="$extras,$accelerator"
    stamp="$VENV/installed-$(printf '%s' "$extras" | cat "$ROOT/pyproject.toml" - | sha256sum | cut -c1-16)"
    [[ -e "$stamp" ]] && environment_is_sound "${PYTHON:-}" && return

    interpreter="$(environment_interpreter)" || exit
    environment_is_sound "${PYTHON:-}" || environment_create "$interpreter"
    log="$VENV/install.log"
    environment_say "installing llmjax[$extras]; the first time takes a few minutes"
    if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar=off \
        --editable "$ROOT[$extras]" 2>&1 | tee "$log" | environment_progress; then
        tail -n 20 "$log" >&2
        environment_fail "pip failed; its whole output is in $log"
    fi
    touch "$stamp"
}
