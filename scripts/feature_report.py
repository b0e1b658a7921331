#!/usr/bin/env python3
"""Writes DIR/report.html, one page to look at, from the logs that train_feature_level_moe left in DIR, its
--checkpoint-dir.

    python3 scripts/feature_report.py DIR
"""

import sys

from reporting import feature, shell


def page(folder):
    course = feature.Course(folder)
    best = max((e.get("val_iou") or {}).get("ensemble") or 0 for e in course.epochs)
    words = [str(level.get("balance") or "not trained") for level in course.epochs[-1].get("levels") or []]
    header = (f"<h1>Validation IoU <b>{best:.3f}</b> at its best of {len(course.epochs)} epochs</h1>"
              f'<p class="lead">Use of the experts in the last one, finest level first: {", ".join(words)}.</p>')
    sections = [("How it learned", feature.curves(course))]
    if course.levels():
        sections += [("Who was used", feature.last_epoch(course)), ("Use over time", feature.over_time(course)),
                     ("MaxVio over time <small>in validation</small>", feature.violations(course))]
    return shell.page("A feature-level mixture of experts", header, sections)


def main():
    return shell.main("Writes DIR/report.html from the logs of a feature-level training.", "report.html", page)


if __name__ == "__main__":
    sys.exit(main())
