#!/usr/bin/env bash
# What broke, the evidence, and the exact command that repairs it. Options: --help
set -euo pipefail
checkout="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
mono_s2s diagnose "$@"
