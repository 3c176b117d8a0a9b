#!/usr/bin/env bash
# Makes .venv in the checkout, or brings it up to a requirements file. Sourced by environment.sh, whose functions it uses.

# A venv that a killed install left behind says so itself (.venv/unfinished) and is made anew.
make_venv() (
    venv="${_here:?sourced by scripts/environment.sh}/.venv" started=$SECONDS
    if [[ ! -w "$_here" ]]; then
        say "cannot make an environment in $_here: no permission to write. Clone your own copy, or activate one."
        return 2
    fi
    exec 9<"$1" && { command -v flock >/dev/null && flock 9; } # two runs started together make one environment
    if [[ -x "$venv/bin/python" && ! -e "$venv/unfinished" ]]; then
        "$venv/bin/python" "$_here/scripts/mono_s2s.py" packages "$1" >/dev/null && return
    else
        base="$(VIRTUAL_ENV='' MONO_S2S_PYTHON='' CONDA_PREFIX='' plain_python 12)" || return 2
        [[ ! -e "$venv" ]] || say "$venv is unfinished: starting again"
        rm -rf -- "$venv"
        mkdir -- "$venv" && : >"$venv/unfinished"
        say "making the environment $venv with $("$base" --version)"
        if ! "$base" -m venv "$venv" >&2; then
            say "python3 -m venv failed. On Debian and Ubuntu: apt-get install python3-venv"
            return 1
        fi
    fi
    say "installing the packages of ${1##*/} (minutes, 2 GB of disk, or 6 with CUDA; once)"
    : >"$venv/unfinished"
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1" -c "$_here/requirements.lock" >&2; then
        say "pip failed, see above. The same command tries again."
        return 1
    fi
    rm -f -- "$venv/unfinished"
    say "environment ready after $((SECONDS - started)) s"
)
