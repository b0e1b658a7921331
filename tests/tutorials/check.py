"""Runs the tutorials and holds docs/tutorials.md against what they print.

    python3 check.py BIN ROOT            compares
    python3 check.py BIN ROOT --write    puts today's output into the page

Numbers with a point may differ from machine to machine and are not compared; what must hold of them the tutorials print as
yes or no. Tutorial 3 prints GoogleTest's lines, of
which the page shows none; it must pass. A tutorial that was not built (9 without OpenCV) is left out.
"""
import pathlib
import re
import subprocess
import sys

BLOCK = re.compile(r"(## (\d)\. (?:(?!\n## ).)*?```text\n)(.*?)(```)", re.S)


def output_of(program):
    done = subprocess.run([program], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{program} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def comparable(text):
    return re.sub(r"-?\d+\.\d+", "#.#", text).split("\n")


def main(binaries, root, write=False):
    page_file = pathlib.Path(root, "docs", "tutorials.md")
    page = page_file.read_text()
    sources = sorted(pathlib.Path(root, "examples", "tutorials").glob("*.cpp"))
    assert len(sources) == 9, f"nine tutorials expected, found {len(sources)}"
    shown = {number for _, number, _, _ in BLOCK.findall(page)}
    failures, ran = [], 0
    for source in sources:
        number = source.name[0]
        if source.name not in page:
            failures.append(f"docs/tutorials.md does not name {source.name}")
        program = pathlib.Path(binaries, f"tutorial_{number}")
        if not program.exists():
            print(f"tutorial {number}: not built")
            continue
        text = output_of(program)
        ran += 1
        if number == "3":
            assert "[  PASSED  ]" in text and "[  FAILED  ]" not in text
            continue
        if number not in shown:
            failures.append(f"docs/tutorials.md shows no output of tutorial {number}")
        elif write:
            page = BLOCK.sub(lambda m: m[1] + text + m[4] if m[2] == number else m[0], page)
        else:
            expected = next(m[3] for m in BLOCK.finditer(page) if m[2] == number)
            if comparable(text) != comparable(expected):
                failures.append(f"tutorial {number} prints\n{text}the page shows\n{expected}")
    if write:
        page_file.write_text(page)
    if failures:
        sys.exit("\n".join(failures))
    print(f"{ran} tutorials ran")
    assert ran >= 7


if __name__ == "__main__":
    main(*sys.argv[1:3], write="--write" in sys.argv)
