#!/usr/bin/env bash
# Is this machine and this configuration ready? Before anything is submitted.
set -euo pipefail
checkout="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"

usage() {
    cat <<'END'
./validate_setup.sh [OPTIONS]: check environment and packages, settings, directories and free space, partitions, QoS,
account and GPU type (sbatch --test-only: nothing is queued), whether model and data can be had, and two training steps of
a tiny model. Each line is ok, warning or PROBLEM, with what to do. Then it says what a seed asks of the cluster.

  --demo  for the demo
  --help  this text

Exit codes: 0 ready (warnings or not), 1 there is a PROBLEM, 2 wrong usage.
END
}

while (($#)); do
    case "$1" in
        --demo) export MONO_S2S_PROFILE=demo ;;
        --help | -h) usage && exit 0 ;;
        *)
            printf 'validate_setup.sh: unknown option %s (see --help)\n' "$1" >&2
            exit 2
            ;;
    esac
    shift
done
python="$(chosen_python)"
tool_python="$(plain_python)"
PYTHONDONTWRITEBYTECODE=1 exec "$tool_python" "$checkout/scripts/tool.py" validate --python "$python"
