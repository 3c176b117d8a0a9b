#!/usr/bin/env bash
# Where each stage is: queued, running (epoch, loss, time left), done, failed (why), and where its log is.
set -euo pipefail
checkout="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

usage() {
    cat <<'END'
./check_training_status.sh [SEED...] [OPTIONS]: one table per seed (default: every seed that was ever run): which stages
are done, running (where, how far, time left), queued or waiting (for what), failed, timed out, out of memory, cancelled
or stale, and where the log is. It asks SLURM once and changes nothing. What SLURM does not tell is called unknown.

  --watch  look again every 15 seconds, until Ctrl-C
  --json   the same for programs
  --demo   the demo's runs
  --help   this text

Exit codes: 0 whatever the stages' state, 2 wrong usage.
END
}

bad_usage() {
    printf 'check_training_status.sh: %s (see --help)\n' "$*" >&2
    exit 2
}

words=()
while (($#)); do
    case "$1" in
        --watch | --json) words+=("$1") ;;
        --demo) export MONO_S2S_PROFILE=demo ;;
        --help | -h) usage && exit 0 ;;
        -*) bad_usage "unknown option $1" ;;
        *)
            [[ "$1" =~ ^[0-9]{1,10}$ ]] || bad_usage "seed $1: expected a whole number"
            words+=("$((10#$1))")
            ;;
    esac
    shift
done
python="$(plain_python)"
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$checkout/scripts/tool.py" status ${words[@]+"${words[@]}"}
