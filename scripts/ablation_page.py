#!/usr/bin/env python3
"""Writes DIR/index.html, one page to look at, from the runs that `ablation --output DIR` left in DIR.

    python3 scripts/ablation_page.py DIR
"""

import argparse
import sys
from pathlib import Path

from reporting import ablation, shell
from reporting.results import ReportError


def page(rows):
    base = ablation.base_of(rows)
    seeds = sorted({seed for row in rows for seed in row.runs})
    pictures = next(iter(base.runs.values())).result["pictures"]
    header = (f"<h1>{len(rows)} models, {len(seeds)} seeds each</h1><p class=\"lead\">Base: "
              f"{', '.join(base.policies)}. Rows are named by what differs from it. Figures are on {pictures} test "
              "pictures, mean ± standard deviation over the seeds; below them the difference to the base, paired by "
              "seed, <b>bold</b> where it exceeds the spread of both rows' seeds.</p>")
    sections = []
    for table in dict.fromkeys(row.table for row in rows):
        mine = [row for row in rows if row.table == table]
        shown = mine if base in mine else [base, *mine]
        sections.append((table.capitalize(),
                         f"<h3>Quality</h3>{ablation.quality(shown, base)}"
                         "<h3>Routing <small>of the levels, finest first; use in the last epoch of training</small></h3>"
                         f"{ablation.routing(shown, base)}"
                         f"<h3>MaxVio over time <small>in validation</small></h3>{ablation.violations(shown, base)}"))
    return shell.page("Ablation", header, sections)


def main():
    parser = argparse.ArgumentParser(description="Writes DIR/index.html from the runs of an ablation.")
    parser.add_argument("folder", metavar="DIR", type=Path)
    folder = parser.parse_args().folder
    try:
        shell.write(folder / "index.html", page(ablation.read(folder)))
    except (ReportError, OSError) as error:
        print(f"ablation_page.py: {error}", file=sys.stderr)
        return 1
    print(folder / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
