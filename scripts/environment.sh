#!/usr/bin/env bash
# Which Python runs what. Sourced by run_all.sh and its sisters, jobs/common.sh and tests/run.sh; as a command,
#   scripts/environment.sh [--chosen | --help]
# makes .venv in the checkout where no environment is active, and prints the interpreter that has the packages
# (--chosen: makes nothing, and prints the interpreter that somebody chose, if anybody did).
#
# The interpreter is MONO_S2S_PYTHON, or that of the active environment (venv, conda), or .venv in the checkout.
# Messages go to stderr: the functions print a path.

unset CDPATH PYTHONINSPECT # cd prints where it went and may go elsewhere; Python would not end
# What the caller's shell exports under names that are used here (a cd that lists, a squeue with its own columns).
unset -f cd pwd date sed sort grep env readlink dirname mkdir rm sbatch squeue scontrol python3 python 2>/dev/null || true
_here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

# shellcheck source=scripts/make_venv.sh
source "$_here/scripts/make_venv.sh"

say() { printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*" >&2; }

# An interpreter that somebody chose: nothing if nobody did, and .venv is not there.
chosen_python() {
    if [[ -n "${MONO_S2S_PYTHON:-}" ]]; then
        printf '%s\n' "$MONO_S2S_PYTHON"
    elif [[ -n "${VIRTUAL_ENV:-}" ]]; then
        printf '%s\n' "$VIRTUAL_ENV/bin/python"
    elif [[ -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-}" != base ]]; then # base is active without being chosen
        printf '%s\n' "$CONDA_PREFIX/bin/python"
    elif [[ -x "$_here/.venv/bin/python" ]]; then
        printf '%s\n' "$_here/.venv/bin/python"
    fi
}

_version_fits() { "$1" -I -S -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, int(sys.argv[1])))' "$2" 2>/dev/null; }

# The first Python from 3.10 to 3.$1, for work that needs the standard library alone.
plain_python() {
    local newest="${1:-99}" name
    for name in "$(chosen_python)" python3 python3.12 python3.11 python3.10 python; do
        if [[ -n "$name" ]] && name="$(command -v -- "$name")" && _version_fits "$name" "$newest"; then
            printf '%s\n' "$name"
            return
        fi
    done
    say "no Python 3.10 or newer here. Load a module that has one (module load python), or set MONO_S2S_PYTHON."
    return 2
}

# Hand over to the one program that has all options. It needs the standard library alone, so any Python will do.
mono_s2s() {
    local python
    python="$(plain_python)" || exit
    exec "$python" "$_here/scripts/mono_s2s.py" "$@"
}

# The interpreter that has the packages of the requirements file $1. It makes .venv where none is chosen.
packages_python() {
    local requirements="${1:-$_here/requirements.txt}" python lacks
    python="$(chosen_python)"
    if [[ -z "$python" || "$python" == "$_here/.venv/bin/python" ]]; then
        make_venv "$requirements" || return
        python="$_here/.venv/bin/python"
    elif ! command -v -- "$python" >/dev/null; then
        say "the chosen Python, $python, does not exist: was its environment deleted or moved?"
        say "deactivate it, or activate another one (MONO_S2S_PYTHON, VIRTUAL_ENV and CONDA_PREFIX choose, in this order)."
        return 2
    elif ! lacks="$("$python" "$_here/scripts/mono_s2s.py" packages "$requirements")"; then
        say "the chosen Python, $python, lacks packages: ${lacks//$'\n'/, }"
        say "install them there ($python -m pip install -r $requirements -c $_here/requirements.lock), or deactivate it: .venv is then made here."
        return 2
    fi
    printf '%s\n' "$python"
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    set -euo pipefail
    case "${1:-}" in
        '') packages_python ;;
        --chosen) chosen_python ;;
        --help | -h) sed -n '2,9s/^# \{0,1\}//p' "$0" ;;
        *)
            echo "environment.sh: unknown option $1 (see --help)" >&2
            exit 2
            ;;
    esac
fi
