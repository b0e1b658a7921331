"""Tests of scripts/report.py: what it shows, what it says where something is missing, what it refuses.

    python3 tests/scripts/report_test.py
"""

import contextlib
import copy
import html.parser
import io
import json
import re
import struct
import sys
import tempfile
import unittest
import xml.etree.ElementTree
import zlib
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import report  # noqa: E402
from reporting import charts, outcome  # noqa: E402
from reporting.results import Results  # noqa: E402

VOID = {"meta", "img", "br", "link", "input", "hr"}
NAMES = ["SINet", "PraNet", "ZoomNet", "UJSC"]


def png(grey):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)
    rows = bytes([0, grey, grey]) * 2
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def model(iou, difference=0.0, error=0.004):
    return {"mean_iou": iou, "mean_iou_error": 0.01, "difference": difference, "difference_error": error,
            "smeasure": iou + 0.1, "mae": 1 - iou, "iou_max": iou, "emeasure_mean": None}


def summary():
    models = {f"expert_{i}": model(0.50 + 0.01 * i, 0.01 * i - 0.03) for i in range(4)}
    models |= {"ensemble": model(0.55, 0.02), "uniform": model(0.52, -0.01), "oracle": model(0.60, 0.07)}
    routing = {"usage": [0.1, 0.2, 0.3, 0.4], "usage_by_regime": [[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]],
               "max_violation": 0.6, "noise_floor": 0.05, "entropy": 1.2, "normalised_mutual_information": 0.03,
               "information_chance_99": 0.02, "dead": []}
    dataset = {"images": 40, "models": models, "best_expert": "expert_3", "routing": routing,
               "iou_by_regime": {"expert_0": [0.4, 0.6], "ensemble": [0.5, None]}}
    sample = {"name": "a", "dataset": "test", "regime": 1, "image": "samples/a.png", "truth": "samples/a.png",
              "prediction": "samples/b.png", "experts": [2, 0], "weights": [0.7, 0.3], "iou": 0.81}
    return {"title": "Demo", "command": "demo", "device": "CPU", "seed": 3, "experts": NAMES,
            "regimes": ["cluttered", "clear"], "photographs": {"train": 7, "validation": 2, "test": 4},
            "datasets": {"test": dataset}, "seconds_per_step": {"stage1": 0.1}, "samples": [sample]}


def epochs(stage, count):
    return [{"stage": stage, "epoch": e, "loss": 1.0 / (e + 1), "val_iou": {"expert_0": 0.1 * e, "ensemble": None},
             "usage": [0.25] * 4 if stage > 1 else None, "max_violation": 0.2 if stage > 1 else None,
             "noise_floor": 0.05} for e in range(count)]


class Page(html.parser.HTMLParser):
    """Checks that elements nest, and keeps what is visible."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "data") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


class ReportTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "samples").mkdir()
        (self.folder / "checkpoints").mkdir()
        (self.folder / "samples/a.png").write_bytes(png(255))
        (self.folder / "samples/b.png").write_bytes(png(10))
        for stage, count in ((1, 5), (2, 2), (3, 1)):
            self.write(f"checkpoints/metrics_stage{stage}.jsonl", *epochs(stage, count))
        self.summary = summary()

    def write(self, name, *records):
        (self.folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))

    def make(self):
        """The page, and the raw text of report.html."""
        self.write("summary.json", self.summary)
        self.assertEqual(self.run_main(), (0, ""))
        raw = (self.folder / "report.html").read_text()
        return Page(raw), raw

    def run_main(self):
        errors, before = io.StringIO(), sys.argv
        sys.argv = ["report.py", str(self.folder)]
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                return report.main(), errors.getvalue()
        finally:
            sys.argv = before

    def dataset(self):
        return self.summary["datasets"]["test"]

    def verdict(self):
        self.write("summary.json", self.summary)
        return " ".join(outcome.verdict(Results(self.folder), self.dataset()))

    def test_the_page_is_one_file_with_everything_in_it(self):
        page, raw = self.make()
        self.assertTrue(all(link.startswith("data:image/png;base64,") for link in page.links), page.links)
        for pattern in (r"url\((?!data:)", r"https?://", r"<script", r"<link", r"@import"):
            self.assertIsNone(re.search(pattern, raw), pattern)
        for name in NAMES:
            self.assertIn(name, page.text)
        self.assertIn("0.81", page.text)
        self.assertNotIn("What is missing here", page.text)
        self.assertNotIn("nan", page.text.lower().split())
        charts_found = re.findall(r"<svg class=\"chart\".*?</svg>", raw, re.S)
        self.assertEqual(len(charts_found), 8)  # loss and IoU of three stages, MaxVio, use
        for chart in charts_found:
            xml.etree.ElementTree.fromstring(chart)

    def test_the_best_of_a_column_is_marked_and_the_oracle_is_no_candidate(self):
        _, raw = self.make()
        best = re.findall(r"<td class=best>([^<]*)</td>", raw)
        self.assertIn("0.550", best)      # mean IoU: the ensemble
        self.assertIn("0.450", best)      # MAE: lower is better
        self.assertNotIn("0.600", best)   # the oracle

    def test_the_headline_says_what_the_figures_bear(self):
        self.assertRegex(self.verdict(), r"0\.550</b>, 0\.020 ± 0\.004 above its best expert, UJSC\.")
        self.dataset()["models"]["ensemble"].update(difference=0.007)
        self.assertIn("too close to call", self.verdict())
        self.dataset()["models"]["ensemble"].update(difference=-0.02)
        self.assertIn("0.020 ± 0.004 below its best expert", self.verdict())
        self.dataset()["models"]["uniform"]["mean_iou"] = 0.56
        self.assertIn("plain mean of all (0.560) does as well or better.", self.verdict())
        self.dataset()["models"]["ensemble"].update(difference=0.02)
        self.assertIn("not due to the choice of experts alone", self.verdict())
        del self.dataset()["models"]["ensemble"]
        self.assertIn("no result for the routed ensemble", self.verdict())

    def test_missing_parts_are_named_and_nothing_breaks(self):
        everything = copy.deepcopy(self.summary)
        for key in everything:
            self.summary = {k: v for k, v in everything.items() if k != key}
            self.make()
        for key in everything["datasets"]["test"]:
            self.summary = copy.deepcopy(everything)
            self.dataset().pop(key)
            self.make()
        for key in everything["samples"][0]:
            self.summary = copy.deepcopy(everything)
            self.summary["samples"][0].pop(key)
            self.make()
        self.summary = {}
        for path in (self.folder / "checkpoints").iterdir():
            path.unlink()
        page, _ = self.make()
        self.assertIn("There are no test results yet", page.text)
        for part in ("metrics_stage1.jsonl", "metrics_stage3.jsonl", "lists no samples", "lists no data set"):
            self.assertIn(part, page.text)

    def test_nulls_in_place_of_figures_are_dashes(self):
        def null(value):
            if isinstance(value, dict):
                return {k: null(v) for k, v in value.items()}
            if isinstance(value, list):
                return [null(v) for v in value]
            return None if isinstance(value, float) else value

        self.summary = null(self.summary)
        self.write("checkpoints/metrics_stage2.jsonl", *null(epochs(2, 3)))
        page, _ = self.make()
        self.assertIn("–", page.text)
        self.assertNotIn("None", page.text)

    def test_several_data_sets_each_have_their_part(self):
        (self.folder / "phases.jsonl").write_text('{"name": "stage1", "seconds": 420, "state": "resumed"}\n')
        self.summary["datasets"]["NC4K"] = copy.deepcopy(self.dataset())
        self.summary["datasets"]["NC4K"]["models"]["ensemble"]["mean_iou"] = 0.777
        page, _ = self.make()
        self.assertIn("0.777", page.text)
        self.assertIn("7 min: stage1 7 min (resumed)", page.text)
        self.assertEqual(page.text.count("All measures"), 2)
        self.assertEqual(page.text.count("What it sees"), 1)  # samples of one of them only

    def test_names_are_text_and_never_markup(self):
        hostile = '<script>alert("1")</script>'
        self.summary |= {"title": hostile, "command": hostile, "experts": [hostile, *NAMES[1:]], "regimes": [hostile]}
        self.summary["datasets"] = {hostile: self.dataset(), "b": self.dataset()}
        _, raw = self.make()
        self.assertNotIn("<script", raw)

    def test_pictures_that_are_not_there_or_not_pictures_are_named(self):
        self.summary["samples"][0] |= {"image": "../secret.png", "truth": "samples/none.png",
                                          "prediction": "summary.json"}
        page, _ = self.make()
        self.assertEqual(page.links, [])
        for part in ("../secret.png: not found", "samples/none.png: not found", "summary.json: not a PNG"):
            self.assertIn(part, page.text)

    def test_lines_of_the_log_that_are_cut_off_are_counted(self):
        with (self.folder / "checkpoints/metrics_stage1.jsonl").open("a") as log:
            log.write('{"stage": 1, "epo')
        page, _ = self.make()
        self.assertIn("1 lines of the logs cannot be read", page.text)

    def test_a_summary_that_cannot_be_read_is_an_error_and_the_old_report_stays(self):
        code, error = self.run_main()
        self.assertEqual(code, 1)
        self.assertIn("summary.json", error)
        _, before = self.make()
        for broken in ("{", "[1]"):
            (self.folder / "summary.json").write_text(broken)
            code, error = self.run_main()
            self.assertEqual(code, 1)
            self.assertIn("summary.json", error)
        self.assertEqual((self.folder / "report.html").read_text(), before)


class TicksTest(unittest.TestCase):
    def test_they_cover_the_range_in_few_round_steps(self):
        for low, high in ((0, 1), (0.19, 0.55), (-0.023, 0.059), (0, 3e-5), (0.5, 0.5), (-7, 1234)):
            found = charts.ticks(low, high)
            self.assertLessEqual(found[0], low + 1e-9)
            self.assertGreaterEqual(found[-1], high - 1e-9)
            self.assertTrue(2 <= len(found) <= 7, found)
            texts = [charts.label(v, found[1] - found[0]) for v in found]
            self.assertEqual(len(set(texts)), len(texts), texts)


if __name__ == "__main__":
    unittest.main()
