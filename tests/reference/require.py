"""Runs a script if Python modules are there; otherwise says which are missing and exits with 77, which ctest shows
as skipped.

    python tests/reference/require.py timm safetensors -- backbone_parity.py --features build/cpu/bin/features
"""

import importlib.util
import os
import sys

SKIPPED = 77


def main():
    split = sys.argv.index("--")
    missing = [name for name in sys.argv[1:split] if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {sys.executable} has no module {', '.join(missing)}; scripts/setup.sh --tests installs it")
        return SKIPPED
    os.execv(sys.executable, [sys.executable, *sys.argv[split + 1:]])


if __name__ == "__main__":
    sys.exit(main())
