#!/usr/bin/env bash
# Lints what no compiler reads: the GitHub workflows and their steps by
# actionlint, every shell script of the repository by shellcheck, and the
# systemd unit by systemd's own verifier and its measure of exposure.
#
# Needs Go for actionlint; systemd for the unit. Seconds once it is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/test/tools.sh
source deploy/test/tools.sh
go_tool actionlint github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
deb_tool shellcheck shellcheck
deb_tool systemd-analyze systemd

echo "--- workflows"
workflows=(.github/workflows/*.yml)
actionlint -shellcheck "$(command -v shellcheck)" -pyflakes= "${workflows[@]}"
# An action by branch is whatever its branch is that day.
! grep -nE 'uses: *[^ ./][^ ]*@' "${workflows[@]}" | grep -vE '@(v[0-9]+(\.[0-9]+)*|[0-9a-f]{40})( |$)' || fail "pin these actions"

echo "--- shell scripts"
# By their first line, whatever they are named; tools.sh is sourced, has none.
scripts=(deploy/test/tools.sh)
while IFS= read -r -d '' file; do
  IFS= read -r first <"$file" 2>/dev/null || true
  case $first in '#!'*bash | '#!'*/sh) scripts+=("$file") ;; esac
done < <(git ls-files -z --cached --others --exclude-standard)
[ ${#scripts[@]} -gt 3 ] || fail "found only ${scripts[*]}"
for file in "${scripts[@]}"; do
  dialect=bash
  case $(head -n 1 "$file") in '#!'*/sh) dialect='sh' ;; esac
  shellcheck -x -s "$dialect" "$file"
  [ "$file" = deploy/test/tools.sh ] || [ -x "$file" ] || fail "$file is not executable"
done
echo "${#scripts[@]} scripts"

echo "--- systemd unit"
unit=deploy/systemd/r8limiter.service
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The verifier wants the program to exist, under the path of its unit.
grep -q '^ExecStart=/usr/local/bin/r8limiter ' $unit || fail "ExecStart"
sed 's#^ExecStart=[^ ]*#ExecStart=/bin/true#' $unit >"$work/r8limiter.service"
systemd-analyze verify --man=no "$work/r8limiter.service" 2>"$work/complaints" || { cat "$work/complaints" >&2; fail "systemd-analyze verify"; }
for socket in deploy/systemd/*.socket; do
  cp "$socket" "$work/"
  systemd-analyze verify --man=no "$work/${socket##*/}" 2>>"$work/complaints" || { cat "$work/complaints" >&2; fail "systemd-analyze verify ${socket##*/}"; }
done
# It only warns of a key that it does not know, or of a value that it ignores.
! grep -F r8limiter "$work/complaints" >&2 || fail "systemd-analyze verify warns"
# Tenths. 12 is 1.2 of 10: what is left is the network, and /proc for somaxconn.
systemd-analyze security --offline=true --threshold=12 $unit >"$work/exposure" || { cat "$work/exposure" >&2; fail "exposure above 1.2"; }
tail -n 1 "$work/exposure"
# The drain is 5 s and at most 25 s more.
stop=$(sed -n 's/^TimeoutStopSec=\([0-9]*\)s$/\1/p' $unit)
[ "${stop:-0}" -gt 30 ] || fail "TimeoutStopSec must be above the drain's 30 s"
echo "workflows: ok"
