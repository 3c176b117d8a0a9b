#!/usr/bin/env bash
# Where each stage is: queued, running (epoch, loss, time left), done, failed (why), and where its log is. Options: --help
set -euo pipefail
checkout="$(CDPATH='' builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && builtin pwd)"
# shellcheck source=scripts/environment.sh
source "$checkout/scripts/environment.sh"
mono_s2s status "$@"
