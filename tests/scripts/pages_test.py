"""Tests of scripts/ablation_page.py and scripts/feature_report.py: what they show, and what they refuse.

    python3 tests/scripts/pages_test.py
"""

import contextlib
import html.parser
import io
import json
import re
import shutil
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import ablation_page  # noqa: E402
import feature_report  # noqa: E402
from reporting import ablation  # noqa: E402

VOID = {"meta", "br", "rect", "line"}


class Checker(html.parser.HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words = [], ""
        self.feed(text)
        if self.open:
            raise AssertionError(f"left open: {self.open}")

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID and self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes another")

    def handle_data(self, data):
        self.words += data + " "


def epoch(iou, usage, words="good"):
    level = {"usage": usage, "max_violation": 3 * max(usage) - 1, "noise_floor": 0.2, "entropy": 1.0,
             "trained_usage": usage, "balance": words}
    return {"loss": 2 - iou, "val_iou": {"ensemble": iou}, "seconds_per_step": 0.25, "levels": [level, level]}


def run(folder, balance, seed, iou, cosine=None, dense=False):
    place = folder / balance / f"seed{seed}"
    place.mkdir(parents=True)
    level = {"usage": [0.2, 0.3, 0.5], "max_violation": 0.5, "noise_floor": 0 if dense else 0.1, "entropy": 1.0,
             "gradient_cosine": cosine, "gradient_ratio": None}
    policies = ["GlobalPool", "ReplicatedConv", "TopKSoftmax", "2", balance, "Grouped"]
    base = [*policies[:4], "EmaBias", "Grouped"]
    (place / "result.json").write_text(json.dumps(
        {"pictures": 6, "metrics": {"mean_iou": iou, "mae": 1 - iou, "smeasure": None, "kappa_max": iou / 2}, "levels": [level, level],
         "policies": policies, "base": base, "seed": seed, "stages": 1, "seconds_per_step": 0.25}))
    (place / "metrics_stage1.jsonl").write_text(
        "".join(json.dumps(epoch(x, [0.2, 0.3, 0.5])) + "\n" for x in (iou / 2, iou)))


def main_of(module, folder):
    out, errors = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["program", str(folder)]), contextlib.redirect_stdout(out), \
            contextlib.redirect_stderr(errors):
        status = module.main()
    return status, out.getvalue(), errors.getvalue()


class AblationPage(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.folder = Path(self.scratch.name)
        for seed, iou in enumerate((0.50, 0.52, 0.54)):
            run(self.folder, "EmaBias", seed, iou)
            run(self.folder, "Switch", seed, iou + (0.09, 0.10, 0.11)[seed], cosine=-0.25)
            run(self.folder, "None", seed, iou + (0.05, -0.03, 0.01)[seed])
        run(self.folder, "Everyone", 0, 0.6, dense=True)
        (self.folder / "rows.json").write_text(json.dumps(
            [{"table": "balance", "row": row} for row in ("EmaBias", "Switch", "Missing")] +
            [{"table": "more", "row": row} for row in ("None", "Everyone")]))

    def test_a_difference_counts_only_beyond_the_spread_of_the_seeds(self):
        tables = ablation.read(self.folder)
        self.assertEqual({name: [row.key for row in rows] for name, rows in tables.items()},
                         {"balance": ["EmaBias", "Switch"], "more": ["None", "Everyone"]})
        rows = {row.key: row for table in tables.values() for row in table}
        base = ablation.base_of(list(rows.values()))
        self.assertEqual(base.key, "EmaBias")
        gap, error, beyond = rows["Switch"].difference(base, "mean_iou")
        self.assertAlmostEqual(gap, 0.1)
        self.assertAlmostEqual(error, 0.01 / 3 ** 0.5)
        self.assertTrue(beyond, "t = 17 of two degrees of freedom, limit 4.3")
        gap, error, beyond = rows["None"].difference(base, "mean_iou")
        self.assertAlmostEqual(gap, 0.01)
        self.assertFalse(beyond)
        self.assertIsNone(rows["None"].difference(base, "smeasure"))
        self.assertIsNone(rows["Everyone"].difference(base, "mean_iou"), "one common seed")

    def test_two_seeds_are_never_enough(self):
        for row in ("EmaBias", "Switch"):
            shutil.rmtree(self.folder / row / "seed2")
        rows = {row.key: row for table in ablation.read(self.folder).values() for row in table}
        self.assertFalse(rows["Switch"].difference(rows["EmaBias"], "mean_iou")[2])

    def test_the_page_shows_figures_differences_and_angles(self):
        status, out, _ = main_of(ablation_page, self.folder)
        self.assertEqual((status, out.strip()), (0, str(self.folder / "index.html")))
        text = (self.folder / "index.html").read_text()
        Checker(text)
        self.assertIn("0.520 <small>± 0.020</small>", text)
        self.assertIn("<b>+0.100 ± 0.006</b>", text)
        self.assertIn("<br>+0.010 ± 0.023", text)
        self.assertIn("-0.25 · -0.25", text)
        self.assertIn("– · –", text, "no angle without an auxiliary loss, no use where every expert is asked")
        self.assertIn("Everyone (1 of 3 seeds)", text)
        self.assertIn("of 4 such comparisons", text)
        self.assertEqual(len(re.findall(r'class="chart"', text)), 4, "a chart of MaxVio a level and table")

    def test_every_metric_of_the_results_is_on_the_page(self):
        main_of(ablation_page, self.folder)
        tables = re.findall(r"<details><summary>Every metric</summary>(.*?)</details>",
                            (self.folder / "index.html").read_text())
        self.assertEqual(len(tables), 2, "one a table of rows")
        self.assertEqual(re.findall(r'<th scope="col">([^<]*)</th>', tables[0]),
                         ["Row", "mean_iou", "mae", "smeasure", "kappa_max"])
        self.assertIn("<td>0.260 <small>± 0.010</small></td>", tables[0], "the base's kappa_max")
        self.assertIn("<td>0.310 <small>± 0.015</small></td>", tables[0], "that of Switch")
        self.assertEqual(tables[0].count("<tr>"), 3)

    def test_a_folder_without_runs_or_with_a_broken_one_is_refused(self):
        with tempfile.TemporaryDirectory() as empty:
            status, _, errors = main_of(ablation_page, empty)
            self.assertEqual(status, 1)
            self.assertIn("run the ablation first", errors)
        broken = next(self.folder.glob("*/seed1/result.json"))
        broken.write_text("{}")
        status, _, errors = main_of(ablation_page, self.folder)
        self.assertEqual(status, 1)
        self.assertIn(str(broken), errors)
        self.assertFalse((self.folder / "index.html").exists())


class FeatureReport(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.folder = Path(self.scratch.name)

    def test_it_marks_the_use_of_every_level(self):
        first = [epoch(0.1, [1.0, 0.0, 0.0], "collapsed"), epoch(0.2, [0.2, 0.3, 0.5], "good")]
        second = [epoch(0.4, [0.34, 0.33, 0.33], "ideal"), epoch(0.3, [0.34, 0.33, 0.33], "ideal")]
        for stage, epochs in enumerate((first, second), 1):
            (self.folder / f"metrics_stage{stage}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
        self.assertEqual(main_of(feature_report, self.folder)[0], 0)
        text = (self.folder / "report.html").read_text()
        words = Checker(text).words
        self.assertIn("0.400", words)
        self.assertIn("at its best of 4 epochs", words)
        self.assertIn("epochs: 1 collapsed, 1 good, 2 ideal", words)
        self.assertIn("Level 2: ideal", words)
        self.assertIn("34 %", words)
        self.assertIn("stage 2", words)

    def test_a_folder_without_logs_is_refused(self):
        status, _, errors = main_of(feature_report, self.folder)
        self.assertEqual(status, 1)
        self.assertIn("no epoch in", errors)
        self.assertFalse((self.folder / "report.html").exists())


if __name__ == "__main__":
    unittest.main()
