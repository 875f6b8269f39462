#!/usr/bin/env bash
# Installs Chromium and its driver, with which the tests look at the report. For Debian and Ubuntu; asks for
# the administrator's password.
set -euo pipefail
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y chromium chromium-driver
