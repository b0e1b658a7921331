#!/usr/bin/env bash
# What it costs to include moecod: seconds and peak memory of a translation unit with moecod/moecod.hpp against one
# with torch/torch.h, the median of three runs each, and their ratio (the project's limit is 1.3).
#
#   scripts/compile_cost.sh            the ratio; exit status 1 if the time is above the limit
#   scripts/compile_cost.sh --headers  every public header as well, one run each
#   scripts/compile_cost.sh --headers backbone/ model/feature     those with one of these words in their path
#   CXX=g++-13 LIBTORCH=/opt/libtorch scripts/compile_cost.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=python3
[ -x .venv/bin/python3 ] && python=.venv/bin/python3
: "${CXX:=g++}"
: "${LIBTORCH:=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')}"
export CXX LIBTORCH CCACHE_DISABLE=1
exec "$python" - "$@" <<'PYTHON'
import os, pathlib, resource, statistics, subprocess, sys, tempfile, time

LIMIT = 1.3
torch = os.environ["LIBTORCH"] + "/include"
flags = ["-std=c++20", "-O2", "-DNDEBUG", "-Iinclude", "-isystem", torch, "-isystem",
         torch + "/torch/csrc/api/include", "-isystem", "/usr/include/opencv4"]

def compile_once(header):
    """Seconds and peak MiB of the compiler for a file that includes one header."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "unit.cpp")
        source.write_text(f"#include <{header}>\nint main() {{}}\n")
        command = [os.environ["CXX"], *flags, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        # A process of its own, since the peak of children never falls.
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            begin = time.perf_counter()
            status = subprocess.run(command).returncode
            seconds = time.perf_counter() - begin
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            os.write(writer, f"{status} {seconds} {peak}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        status, seconds, peak = os.read(reader, 200).split()
        os.close(reader)
        if int(status):
            sys.exit(f"{header} does not compile")
        return float(seconds), float(peak)

def median(header):
    runs = [compile_once(header) for _ in range(3)]
    result = [statistics.median(column) for column in zip(*runs)]
    print(f"{header:48} {result[0]:6.1f} s {result[1]:7.0f} MiB", flush=True)
    return result

ours, theirs = median("moecod/moecod.hpp"), median("torch/torch.h")
ratio = ours[0] / theirs[0]
print(f"ratio: time {ratio:.2f} (limit {LIMIT}), memory {ours[1] / theirs[1]:.2f}")
if "--headers" in sys.argv:
    words = sys.argv[sys.argv.index("--headers") + 1:]
    for path in sorted(pathlib.Path("include").glob("moecod/**/*.hpp")):
        header = str(path.relative_to("include"))
        if words and not any(word in header for word in words):
            continue
        seconds, peak = compile_once(header)
        print(f"{header:48} {seconds:6.1f} s {peak:7.0f} MiB", flush=True)
sys.exit(ratio > LIMIT)
PYTHON
