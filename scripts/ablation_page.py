#!/usr/bin/env python3
"""Writes DIR/index.html, one page to look at, from the runs that `ablation --output DIR` left in DIR.

    python3 scripts/ablation_page.py DIR
"""

import sys
from html import escape

from reporting import ablation, shell


def page(folder):
    tables = ablation.read(folder)
    rows = list({row.key: row for table in tables.values() for row in table}.values())
    base = ablation.base_of(rows)
    seeds = max(len(row.runs) for row in rows)
    runs = [run for row in rows for run in row.runs.values()]
    builds = {run.result.get("build") for run in runs}
    tested = ablation.comparisons(rows, base)
    header = (f'<h1>{len(rows)} models, {len(runs)} runs</h1><p class="lead">'
              f'{"Base" if base.is_base() else "The base was not run; compared with"}: {", ".join(base.policies)}. Rows are '
              f"named by what differs from it. Figures are on {runs[0].result['pictures']} test pictures, mean ± standard "
              "deviation over the seeds; below them the difference to the base with its standard error, paired by seed, "
              "<b>bold</b> where three seeds or more put it beyond what their spread explains (5 % level of a paired "
              f"t-test; of {tested} such comparisons chance alone makes about {0.05 * tested:.0f} bold).</p>"
              '<p class="lead">Settings: the steps of the bias policies were fitted to runs of this length, auxiliary losses '
              "have their published weights (examples/ablation/settings.hpp). A step's time depends on how many runs "
              "trained side by side.</p>")
    if len(builds) > 1:
        header += f'<p class="lead"><b>The runs are of {len(builds)} different builds of the program.</b></p>'
    sections = []
    for name, table in tables.items():
        shown = table if base in table else [base, *table]
        sections.append((escape(name.capitalize()),
                         f"<h3>Quality</h3>{ablation.quality(shown, base, seeds)}{ablation.every_metric(shown, base, seeds)}"
                         "<h3>Routing <small>of the levels, finest first; use in the last epoch of training, everything "
                         "else on the test pictures; neighbouring positions decide alike, which the noise floor of a "
                         f"router by position does not know</small></h3>{ablation.routing(shown, base, seeds)}"
                         "<h3>MaxVio over time <small>in validation; not of models that ask every expert</small></h3>"
                         f"{ablation.violations(shown, base, seeds)}"))
    return shell.page("Ablation", header, sections)


def main():
    return shell.main("Writes DIR/index.html from the runs of an ablation.", "index.html", page)


if __name__ == "__main__":
    sys.exit(main())
