#!/usr/bin/env bash
# Is this machine and this configuration ready? Before anything is submitted. Options: --help
set -euo pipefail
checkout="$(CDPATH='' builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && builtin pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
mono_s2s validate "$@"
