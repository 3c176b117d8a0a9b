#!/usr/bin/env bash
# Delete what runs made: work directory and results on scratch. Permanent results stay.
set -euo pipefail
checkout="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

usage() {
    cat <<'END'
./clean_all.sh [OPTIONS]: delete what runs made on scratch (checkpoints, caches, results there). It shows what will go
and how big it is, and asks. It refuses while jobs of a run wait or run. Permanent results (PROJECT_DIR) are never
touched, nor a download cache that lies elsewhere, nor anything that it does not know.

  --seed N      only what seed N made
  --keep-cache  keep the model and the prepared data, which take long to get
  --force       do not ask
  --demo        the demo's directory (MONO_S2S_DEMO_DIR, or demo_run/ in the checkout)
  --help        this text

Exit codes: 0 done, nothing to do or not agreed to; 1 failed; 2 wrong usage, or refused.
END
}

bad_usage() {
    printf 'clean_all.sh: %s (see --help)\n' "$*" >&2
    exit 2
}

words=()
while (($#)); do
    case "$1" in
        --force | --keep-cache) words+=("$1") ;;
        --seed)
            [[ "${2:-}" =~ ^[0-9]+$ ]] || bad_usage "--seed ${2:-}: expected a whole number"
            words+=("$1" "$((10#$2))")
            shift
            ;;
        --demo) export MONO_S2S_PROFILE=demo ;;
        --help | -h) usage && exit 0 ;;
        *) bad_usage "unknown option $1" ;;
    esac
    shift
done
python="$(plain_python)"
PYTHONDONTWRITEBYTECODE=1 exec "$python" "$checkout/scripts/tool.py" clean all ${words[@]+"${words[@]}"}
