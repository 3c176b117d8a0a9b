#!/usr/bin/env bash
# Delete what runs made: work directory and results on scratch. Permanent results are kept. Options: --help
set -euo pipefail
checkout="$(CDPATH='' builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && builtin pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
mono_s2s clean-all "$@"
