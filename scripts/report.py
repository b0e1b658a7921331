#!/usr/bin/env python3
"""Writes DIR/report.html, one file to look at, from DIR/summary.json, DIR/checkpoints/metrics_stage1.jsonl to
metrics_stage3.jsonl, DIR/phases.jsonl and the sample pictures that summary.json names. What is missing is left out, and
the report says so. Needs nothing but Python's standard library.

    python3 scripts/report.py DIR
"""

import argparse
import re
import sys
from html import escape, unescape
from pathlib import Path

from reporting import gallery, outcome, shell, training
from reporting.results import ReportError, Results, mapping, number


def duration(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def facts(results):
    """How the results came about: a list of (name, value)."""
    summary, out = results.summary, []
    for key, name in (("command", "Command"), ("device", "Device"), ("seed", "Seed")):
        if summary.get(key) is not None:
            value = escape(str(summary[key]))
            out.append((name, f"<code>{value}</code>" if key == "command" else value))
    photographs = mapping(summary.get("photographs"))
    if photographs:
        counts = [f"{photographs[part]} for {part}" for part in ("train", "validation", "test")
                  if photographs.get(part) is not None]
        out.append(("Photographs", escape(", ".join(counts)) + "; none in two of them"))
    steps = {k: number(v) for k, v in mapping(summary.get("seconds_per_step")).items()}
    steps = [f"{escape(k.replace('stage', 'stage '))} {v:.3f} s" for k, v in steps.items() if v is not None]
    if steps:
        out.append(("Time of a step", ", ".join(steps)))
    phases = [f"{escape(str(p.get('name')))} {duration(p['seconds'])}{' (resumed)' * (p.get('state') == 'resumed')}"
              for p in results.phases]
    if phases:
        total = sum(p["seconds"] for p in results.phases)
        out.append(("Time of the demo", f"{duration(total)}: {', '.join(phases)}"))
    return out


def dataset_sections(results, name, dataset):
    title = "" if len(results.datasets) == 1 else f' <small>{escape(name)}</small>'
    images = dataset.get("images")
    count = f"{images} pictures" if images is not None else "The test pictures"
    tested = mapping(results.summary.get("photographs")).get("test")
    source = f" made from {tested} photographs that training never saw" if tested else ""
    caption = f"{escape(count)}{source}. Marked: best of the column, the oracle left out."
    every = outcome.all_metrics(dataset)
    pictures = gallery.gallery(results, name)
    out = []
    if pictures:
        out.append((f"What it sees{title}", '<p class="lead">Image, ground truth, prediction, and errors: '
                    '<span class="hit-word">hits white</span>, <span class="miss-word">misses green</span>, '
                    '<span class="alarm-word">false alarms magenta</span>. Below, the experts that the router chose, '
                    f"with their weights.</p>{pictures}"))
    out.append((f"Who finds how much{title}", '<p class="lead">Mean IoU per image at threshold 0.5, as '
                "the difference to the best single expert (chosen on validation). Bars: one standard error, paired by "
                f"image.</p>{outcome.comparison(results, dataset)}"))
    measures = outcome.table(results, dataset, outcome.MAIN_METRICS, caption)
    if every:
        measures += ("<details><summary>Every threshold policy</summary>"
                     f'{outcome.table(results, dataset, every, "Pooled over the data set.")}</details>')
    out.append((f"All measures{title}", measures))
    out.append((f"Which expert for which picture{title}", outcome.by_regime(results, dataset)))
    return out


def page(results):
    title = str(results.summary.get("title") or "Mixture of experts on camouflage")
    hero = []
    for name, dataset in results.datasets.items():
        dataset = mapping(dataset)
        first, second = outcome.verdict(results, dataset)
        where = f"<span>{escape(name)}</span> " if len(results.datasets) > 1 else ""
        hero.append(f'<h1>{where}{first}</h1><p class="lead">{second}</p>{outcome.tiles(results, dataset)}')
    sections = [s for name, d in results.datasets.items() for s in dataset_sections(results, name, mapping(d))]
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts(results))
    curves, routing = training.curves(results), training.routing_over_time(results)
    missing = "".join(f"<li>{escape(text)}</li>" for text in results.missing)
    header = "".join(hero) or "<h1>There are no test results yet.</h1>"
    return shell.page(title, header, [*sections, ("How it learned", curves), ("How the router balanced", routing),
                                      ("How it was made", f"<dl>{rows}</dl>" if rows else ""),
                                      ("What is missing here", f'<ul class="missing">{missing}</ul>' if missing else "")])


def main():
    parser = argparse.ArgumentParser(description="Writes DIR/report.html from what the demo left in DIR.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder with summary.json")
    folder = parser.parse_args().folder
    try:
        results = Results(folder)
        text = page(results)
        target = folder / "report.html"
        shell.write(target, text)
    except (ReportError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    for name, dataset in results.datasets.items():
        print(f"{name}: {re.sub('<[^>]*>', '', unescape(' '.join(outcome.verdict(results, mapping(dataset)))))}")
    for line in results.missing:
        print(f"missing: {line}")
    print(f"{target}: {len(text) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
