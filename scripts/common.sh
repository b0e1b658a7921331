# shellcheck shell=bash
# Shared by the scripts of this folder; to be sourced. Moves to the repository's root and puts .venv first on PATH.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit
export PATH="$root/.venv/bin:$PATH"

# A headline, bold on a terminal.
headline() {
  if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n== %s\n' "$*"; fi
}

fail() {
  printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Debian's photographs of mate-backgrounds, from which the generated data sets are made.
debian_photos=(/usr/share/backgrounds/mate/nature /usr/share/backgrounds/mate/abstract/Elephants.jpg)

need_debian_photos() {
  [ -d "${debian_photos[0]}" ] || fail "no photographs in ${debian_photos[0]} (apt-get install mate-backgrounds)"
}

# "3 min 20 s" from seconds.
duration() {
  if [ "$1" -lt 60 ]; then echo "$1 s"; else echo "$(($1 / 60)) min $(($1 % 60)) s"; fi
}

# MiB that may still be allocated: what the machine has free, or what the container's limit leaves of it.
free_memory() {
  local free limit used
  free=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  used=$(cat /sys/fs/cgroup/memory.current 2>/dev/null || echo 0)
  if [ "$limit" != max ] && [ $(((limit - used) / 1048576)) -lt "$free" ]; then
    free=$(((limit - used) / 1048576))
  fi
  echo "$free"
}

# Compilers to run side by side: one a core, each with 2 GiB (a file that includes LibTorch takes up to that).
compile_jobs() {
  local cores by_memory
  cores=$(nproc)
  by_memory=$(($(free_memory) / 2048))
  if [ "$by_memory" -lt "$cores" ]; then cores=$by_memory; fi
  if [ "$cores" -lt 1 ]; then cores=1; fi
  echo "$cores"
}

# Configures the preset cpu and builds the targets given, or everything.
build() {
  local jobs
  jobs=$(compile_jobs)
  cmake --preset cpu || fail "CMake could not configure the preset cpu; the reason stands above"
  cmake --build --preset cpu --parallel "$jobs" ${1:+--target "$@"} ||
    fail "the build failed; the first error stands above"
}
