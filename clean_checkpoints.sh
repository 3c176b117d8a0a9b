#!/usr/bin/env bash
# Make room: delete the checkpoints that nothing needs any more.
set -euo pipefail
checkout="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

usage() {
    cat <<'END'
./clean_checkpoints.sh [SEED...] [OPTIONS]: delete the checkpoints of earlier epochs, of these seeds or of all. The best
model (what evaluation and attacks read) and the last checkpoint (what training goes on from) stay. It shows what will go
and how big it is, and asks; it refuses while jobs of such a seed wait or run.

  --force  do not ask
  --demo   the demo's directory (MONO_S2S_DEMO_DIR, or demo_run/ in the checkout)
  --help   this text

Exit codes: 0 done, nothing to do or not agreed to; 1 failed; 2 wrong usage, or refused.
END
}

bad_usage() {
    printf 'clean_checkpoints.sh: %s (see --help)\n' "$*" >&2
    exit 2
}

words=()
while (($#)); do
    case "$1" in
        --force) words+=("$1") ;;
        --demo) export MONO_S2S_PROFILE=demo ;;
        --help | -h) usage && exit 0 ;;
        -*) bad_usage "unknown option $1" ;;
        *)
            [[ "$1" =~ ^[0-9]+$ ]] || bad_usage "seed $1: expected a whole number"
            words+=("$((10#$1))")
            ;;
    esac
    shift
done
python="$(plain_python)"
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$checkout/scripts/tool.py" clean checkpoints ${words[@]+"${words[@]}"}
