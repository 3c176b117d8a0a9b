#!/usr/bin/env bash
# What broke, the evidence, and the exact command that repairs it. Options: --help
set -euo pipefail
checkout="$(CDPATH='' builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && builtin pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
mono_s2s diagnose "$@"
