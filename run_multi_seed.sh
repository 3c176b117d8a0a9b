#!/usr/bin/env bash
# Several seeds of the experiment, then their aggregate: everything is queued at once, or run here. Options: --help
set -euo pipefail
checkout="$(CDPATH='' builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && builtin pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
mono_s2s seeds "$@"
