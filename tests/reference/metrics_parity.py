"""Compares the standard measures of `evaluate` with PySODMetrics 1.6.2, image by image and pooled.

    python tests/reference/metrics_parity.py --evaluate build/cpu/bin/evaluate

Pairs are generated from a fixed seed and cover the edge cases: empty, full, one pixel, one row, one column, ties in
the distance transform, constant predictions, pixels on the adaptive threshold, centroids on the last row or column.
Exits with 1 if a figure deviates by more than 1e-9 (relative above 1), or if `evaluate` is not the faster one.
Where PySODMetrics gives NaN (S-measure, centroid on the last row or column), the definition of s_measure.hpp is the
reference: an empty block adds nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import py_sod_metrics as psm

TOLERANCE = 1e-9
REGIMES = {"max": lambda r: r["dynamic"].max(), "mean": lambda r: r["dynamic"].mean(),
           "adaptive": lambda r: r["adaptive"], "binary": lambda r: r["binary"]}


class DefinedSmeasure(psm.Smeasure):
    """PySODMetrics' S-measure, with the NaN of an empty block replaced by no contribution."""

    def ssim(self, pred, gt):
        return super().ssim(pred, gt) if pred.size else 0.0


def reference(pairs):
    """All metrics of a data set, under the JSON keys of `evaluate`."""
    s, e, w, m = DefinedSmeasure(), psm.Emeasure(), psm.WeightedFmeasure(), psm.MAE()
    every = dict(with_dynamic=True, with_adaptive=True, with_binary=True)
    counts = psm.FmeasureV2({"fmeasure": psm.FmeasureHandler(**every), "iou": psm.IOUHandler(**every),
                             "dice": psm.DICEHandler(**every), "ber": psm.BERHandler(**every)})
    for prediction, truth in pairs:
        for metric in (s, e, w, m, counts):
            metric.step(prediction, truth)
    em = e.get_results()["em"]
    out = {"smeasure": s.get_results()["sm"], "emeasure_max": em["curve"].max(), "emeasure_mean": em["curve"].mean(),
           "emeasure_adaptive": em["adp"], "wfmeasure": w.get_results()["wfm"], "mae": m.get_results()["mae"]}
    for name, result in counts.get_results().items():
        for regime, take in REGIMES.items():
            if (name, regime) != ("fmeasure", "binary"):
                out[f"{name}_{regime}"] = take(result)
    return {name: float(value) for name, value in out.items()}


def blob(rng, height, width):
    """A truth of a few ellipses."""
    truth = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 4)):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(1, max(2, width // 3))), int(rng.integers(1, max(2, height // 3))))
        cv2.ellipse(truth, centre, axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return truth


def soft_prediction(rng, truth):
    """What a model would give: the truth moved, blurred, and with noise."""
    shift = np.roll(truth, tuple(int(v) for v in rng.integers(-5, 6, 2)), (0, 1)).astype(np.float64)
    noise = cv2.GaussianBlur(rng.normal(0, 255, truth.shape), (0, 0), 6)
    mixed = cv2.GaussianBlur(shift, (0, 0), float(rng.uniform(0.5, 8))) * rng.uniform(0.4, 1.0) + noise
    return np.clip(mixed, 0, 255).astype(np.uint8)


def edge_cases(rng):
    """Named pairs (prediction, truth) at the corners of the definitions."""
    def noise(height, width):
        return rng.integers(0, 256, (height, width), dtype=np.uint8)

    cases = {}
    sizes = [(1, 1), (1, 2), (2, 1), (1, 37), (37, 1), (1, 300), (300, 1), (2, 2), (3, 5), (33, 64), (97, 41)]
    for height, width in sizes:
        shape = f"{height}x{width}"
        empty, full = np.zeros((height, width), np.uint8), np.full((height, width), 255, np.uint8)
        one = empty.copy()
        one[height // 2, width // 3] = 255
        corner = empty.copy()
        corner[-1, -1] = 255
        first = empty.copy()
        first[0, 0] = 255
        last_row, last_column = empty.copy(), empty.copy()
        last_row[-1] = 255
        last_column[:, -1] = 255
        truths = {"empty": empty, "full": full, "one": one, "corner": corner, "first": first, "lastrow": last_row,
                  "lastcolumn": last_column, "noise": (noise(height, width) > 128).astype(np.uint8) * 255,
                  "sparse": (noise(height, width) > 250).astype(np.uint8) * 255}
        for name, truth in truths.items():
            predictions = {"noise": noise(height, width), "same": truth, "inverse": 255 - truth, "zero": empty,
                           "white": full, "constant": np.full_like(empty, 77),
                           "binary": noise(height, width) // 128 * 255, "narrow": noise(height, width) // 64 + 100}
            for kind, prediction in predictions.items():
                cases[f"{shape}-{name}-{kind}"] = (prediction, truth)

    # Blocks of constant prediction, whose last bits decide between 0 and 1 in the S-measure.
    for index in range(60):
        longest = 90 if index < 48 else 400
        height, width = int(rng.integers(3, longest)), int(rng.integers(3, longest))
        truth = np.zeros((height, width), np.uint8)
        row, column = int(rng.integers(1, height)), int(rng.integers(1, width))
        truth[row - 1:row + 1, column - 1:column + 1] = 255
        prediction = np.full((height, width), int(rng.integers(1, 255)), np.uint8)
        area = [np.s_[:row, :column], np.s_[row:, :], np.s_[:, column:], np.s_[row:, column:]][index % 4]
        prediction[area] = noise(height, width)[area] if index % 3 else 255
        prediction[0, 0] = 0
        cases[f"blocks-{index}"] = (prediction, truth)

    # Pixels exactly on the threshold 2 * mean: shares k / n of 1, the rest 0 but for one level near 2 * k / n.
    for index in range(60):
        n = 255 * int(rng.integers(1, 8))
        level = int(rng.integers(2, 200))
        values = np.zeros(n, np.int64)
        at_level = int(rng.integers(1, 40))
        values[:at_level] = level
        missing = level * n - 2 * level * at_level  # in units of 1/2
        ones = missing // (2 * 255)
        values[at_level:at_level + max(1, ones)] = 255
        values[-1] = (missing - 2 * 255 * ones) // 2 if missing > 2 * 255 * ones else 0
        prediction = rng.permutation(values).astype(np.uint8).reshape(-1, 51)
        cases[f"threshold-{index}"] = (prediction, (noise(*prediction.shape) > 100).astype(np.uint8) * 255)

    # Symmetric patterns: many pixels at equal distance from several foreground pixels of different error.
    for step in range(2, 14):
        truth = np.zeros((61, 83), np.uint8)
        truth[::step, ::step] = 255
        cases[f"grid-{step}"] = (noise(61, 83), truth)
        checker = ((np.add.outer(np.arange(61), np.arange(83)) % step) == 0).astype(np.uint8) * 255
        cases[f"diagonal-{step}"] = (noise(61, 83), checker)
        ring = np.zeros((61, 83), np.uint8)
        cv2.circle(ring, (41, 30), 2 * step, 255, 1)
        cases[f"ring-{step}"] = (noise(61, 83), ring)
    grey = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) + 113
    cases["truth-around-128"] = (noise(16, 16), grey)
    return cases


def write_pair(root, data_set, name, prediction, truth):
    for kind, image in (("pred", prediction), ("gt", truth)):
        folder = root / kind / data_set
        folder.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(folder / f"{name}.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise RuntimeError(f"cannot write {folder / name}.png")


def run(program, root, threads, *options):
    out = root / "scores.json"
    command = [program, "--pred", root / "pred", "--gt", root / "gt", "--json", out, "--threads", str(threads)]
    command += options
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())["datasets"]


def compare(program, root, data_sets):
    """Largest deviation over the data sets; prints the ones above the tolerance."""
    for data_set, pairs in data_sets.items():
        for name, (prediction, truth) in pairs.items():
            write_pair(root, data_set, name, prediction, truth)
    got = run(program, root, threads=2)
    if run(program, root, threads=1) != got or run(program, root, threads=5) != got:
        raise SystemExit("FAIL: the figures depend on the number of threads")
    if sorted(got) != sorted(data_sets):
        raise SystemExit(f"FAIL: expected data sets {sorted(data_sets)}, got {sorted(got)}")
    worst = 0.0
    for data_set, pairs in data_sets.items():
        want = reference(pairs.values())
        figures = got[data_set]
        if figures.pop("images") != len(pairs) or sorted(figures) != sorted(want):
            raise SystemExit(f"FAIL: {data_set}: wrong keys or number of images: {sorted(figures)}")
        for name, value in want.items():
            deviation = abs(figures[name] - value) / max(1.0, abs(value))
            if not deviation <= TOLERANCE:
                print(f"  {data_set} {name}: evaluate {figures[name]!r}, PySODMetrics {value!r}")
            worst = max(worst, deviation if np.isfinite(deviation) else np.inf)
    return worst


def check_coverage(pairs):
    """Makes sure that the rare cases are really among the pairs."""
    undefined = on_threshold = 0
    for prediction, truth in pairs:
        p, g = psm.utils.prepare_data(prediction, truth)
        undefined += bool(np.isnan(psm.Smeasure().cal_sm(p, g)))
        on_threshold += bool((p == psm.utils.get_adaptive_threshold(p)).any() and 0 < p.mean() < 0.5)
    print(f"{len(pairs)} pairs; S-measure undefined in PySODMetrics: {undefined}; "
          f"pixels exactly on the adaptive threshold: {on_threshold}")
    if len(pairs) < 200 or undefined < 10 or on_threshold < 10:
        raise SystemExit("FAIL: too few pairs of a rare kind")


def check_errors(program, rng):
    """Bad input is refused by name, with exit code 1 and no JSON file; --resize accepts other sizes."""
    image = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def attempt(*extra):
            command = [program, "--pred", root / "pred", "--gt", root / "gt", "--json", root / "out.json", *extra]
            return subprocess.run([str(part) for part in command], capture_output=True, text=True)

        def expect_failure(*words):
            result = attempt()
            named = all(word in result.stderr for word in words)
            if result.returncode != 1 or not named or (root / "out.json").exists():
                raise SystemExit(f"FAIL: expected an error with {words}, got {result.returncode}: {result.stderr}")

        write_pair(root, "A", "good", image, image)
        write_pair(root, "B", "other", image[:10], image)
        expect_failure("B/other", "10 x 30", "20 x 30", "--resize")
        resized = attempt("--resize")
        if resized.returncode != 0 or "B: 1 of 1 predictions resized" not in resized.stdout:
            raise SystemExit(f"FAIL: --resize: {resized.stdout}{resized.stderr}")
        (root / "out.json").unlink()
        (root / "pred/B/other.png").unlink()
        expect_failure("B/other", "no prediction")
        (root / "pred/B").rmdir()
        expect_failure("B: no folder of predictions")
        write_pair(root, "B", "other", image, image)
        (root / "pred/B/other.png").write_bytes(b"no image")
        expect_failure("B/other", "cannot decode")
        cv2.imwrite(str(root / "pred/B/other.bmp"), image)
        expect_failure("two files for one mask", "other.bmp")
    print("bad input: refused by name")


def speed_ratio(program, root, rng):
    """Time of PySODMetrics over that of `evaluate` with one thread; both read the same PNG files."""
    names = [f"{index:03}" for index in range(60)]
    for name in names:
        truth = blob(rng, 512, 512)
        write_pair(root, "speed", name, soft_prediction(rng, truth), truth)
    begin = time.perf_counter()
    run(program, root, threads=1)
    ours = time.perf_counter() - begin
    begin = time.perf_counter()
    reference([cv2.imread(str(root / kind / "speed" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for kind in ("pred", "gt")]
              for name in names)
    theirs = time.perf_counter() - begin
    print(f"60 images of 512x512: evaluate {ours:.2f} s (1 thread), PySODMetrics {theirs:.2f} s, "
          f"ratio {theirs / ours:.1f}")
    return theirs / ours


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluate", required=True, type=Path, help="the built program")
    program = parser.parse_args().evaluate.resolve()
    warnings.filterwarnings("ignore")
    rng = np.random.default_rng(20240611)

    singles = {name: {"pair": pair} for name, pair in edge_cases(rng).items()}
    for index in range(120):
        height, width = int(rng.integers(8, 200)), int(rng.integers(8, 200))
        truth = blob(rng, height, width)
        singles[f"model-{index}"] = {"pair": (soft_prediction(rng, truth), truth)}
    pools = {"edges": {name: pair["pair"] for name, pair in singles.items() if "1x1-" not in name},
             "models": {name: pair["pair"] for name, pair in singles.items() if name.startswith("model")}}

    check_coverage([data_set["pair"] for data_set in singles.values()])
    check_errors(program, rng)
    failed = False
    for title, data_sets in (("image by image", singles), ("pooled", pools)):
        with tempfile.TemporaryDirectory() as folder:
            worst = compare(program, Path(folder), data_sets)
        print(f"{title}: {len(data_sets)} data sets, largest deviation {worst:.3g} (limit {TOLERANCE:g})")
        failed |= not worst <= TOLERANCE
    with tempfile.TemporaryDirectory() as folder:
        failed |= not speed_ratio(program, Path(folder), rng) > 1
    print("FAIL" if failed else "OK")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
