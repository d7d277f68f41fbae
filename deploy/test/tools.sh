# Sourced by the scripts beside it: installs the pinned tools that they run,
# once, into a cache outside the tree, and puts them on PATH.
#
#   go_tool NAME PACKAGE@VERSION     from the Go module proxy
#   deb_tool COMMAND PACKAGE...      from the distribution's packages
tools=${R8LIMITER_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/r8limiter-tools}
mkdir -p "$tools/bin"
export PATH="$tools/bin:/usr/sbin:$PATH"

# The version is part of the marker: another pin installs anew.
go_tool() {
  local mark="$tools/$1-${2##*@}"
  [ -e "$mark" ] && [ -x "$tools/bin/$1" ] && return
  echo "installing $2" >&2
  # go install names the program after its package: move it to the name asked for.
  local dir
  dir=$(mktemp -d)
  GOBIN="$dir" GOFLAGS=-mod=mod CGO_ENABLED=0 go install "$2"
  mv "$dir"/* "$tools/bin/$1"
  rmdir "$dir"
  touch "$mark"
}

deb_tool() {
  command -v "$1" >/dev/null && return
  local command=$1 sudo=
  shift
  [ "$(id -u)" = 0 ] || sudo=sudo
  echo "installing $* from the distribution's packages" >&2
  { $sudo env RUNLEVEL=1 apt-get update -q && $sudo env RUNLEVEL=1 apt-get install -y -q --no-install-recommends "$@"; } >&2
  command -v "$command" >/dev/null || { echo "$command is still missing after installing $*" >&2; return 1; }
}

fail() {
  echo "FAIL: $*" >&2
  exit 1
}
