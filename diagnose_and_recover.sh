#!/usr/bin/env bash
# What broke, the evidence, and the exact command that mends it.
set -euo pipefail
checkout="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

usage() {
    cat <<'END'
./diagnose_and_recover.sh [SEED] [OPTIONS]: why the stages of a seed (default 42) failed. For each it names the cause (out
of memory, time limit, disk full, loss not a number, hub, missing or stale inputs, node failure, wrong settings, cancelled),
quotes the line that says so, and says what to do.

  --fix   do what is safe: remove torn temporary files, and run again from the first incomplete stage, where the last run
          ran. It never touches a setting, a checkpoint or a completion flag, and does nothing while jobs wait or run.
  --demo  the demo's runs
  --help  this text

Exit codes: 0 nothing is broken, 1 something is (with --fix: that of the new run), 2 wrong usage.
END
}

bad_usage() {
    printf 'diagnose_and_recover.sh: %s (see --help)\n' "$*" >&2
    exit 2
}

words=() seed=''
while (($#)); do
    case "$1" in
        --fix) words+=("$1") ;;
        --demo) export MONO_S2S_PROFILE=demo ;;
        --help | -h) usage && exit 0 ;;
        -*) bad_usage "unknown option $1" ;;
        *)
            [[ -z "$seed" ]] || bad_usage "one seed at a time, got $seed and $1"
            [[ "$1" =~ ^[0-9]{1,10}$ ]] || bad_usage "seed $1: expected a whole number"
            seed="$((10#$1))"
            ;;
    esac
    shift
done
python="$(plain_python)"
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$checkout/scripts/tool.py" diagnose ${seed:+"$seed"} ${words[@]+"${words[@]}"}
