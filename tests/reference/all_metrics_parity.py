"""Compares the measures of `evaluate` beyond the standard ones with PySODMetrics 1.6.2, image by image and pooled.

    python tests/reference/all_metrics_parity.py --evaluate build/cpu/bin/evaluate

Pairs are those of metrics_parity.py, thinned out, and more for what these measures look at: several objects, objects
of less than 50 pixels, more than 53 objects, outlines of more than 2048 pixels, ragged regions with holes, objects
on one line. Each has a colour image, in which the object is more or less hidden.
Exits with 1 if a figure deviates by more than 1e-9 (relative above 1).
Where PySODMetrics fails or gives NaN, the reference is the definition in the header of the measure, which the classes
named Defined... write out; everywhere else they are PySODMetrics itself.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import py_sod_metrics as psm
from py_sod_metrics import size_invariance

from metrics_parity import REGIMES, TOLERANCE, blob, edge_cases, run, soft_prediction, write_pair

HANDLERS = {"fmeasure": psm.FmeasureHandler, "iou": psm.IOUHandler, "dice": psm.DICEHandler, "ber": psm.BERHandler,
            "precision": psm.PrecisionHandler, "recall": psm.RecallHandler, "specificity": psm.SpecificityHandler,
            "fpr": psm.FPRHandler, "oa": psm.OverallAccuracyHandler, "kappa": psm.KappaHandler}
STANDARD = ("fmeasure", "iou", "dice", "ber")


def counts(pairs):
    every = dict(with_dynamic=True, with_adaptive=True, with_binary=True)
    sums = dict(with_dynamic=False, with_adaptive=False, with_binary=True, sample_based=False)
    by_image = psm.FmeasureV2({name: handler(**every) for name, handler in HANDLERS.items()})
    overall = psm.FmeasureV2({name: handler(**sums) for name, handler in HANDLERS.items()})
    for prediction, truth in pairs:
        by_image.step(prediction, truth)
        overall.step(prediction, truth)
    out = {}
    for name, result in by_image.get_results().items():
        if name not in STANDARD:
            out |= {f"{name}_{regime}": take(result) for regime, take in REGIMES.items()}
        elif name == "fmeasure":
            out[f"{name}_binary"] = result["binary"]
    for name, result in overall.get_results().items():
        out[f"{name}_overall"] = result["binary"]
    return out


class DefinedObjects:
    """Inside, PySODMetrics marks boxes by bits of Python integers, so that their number is not limited."""

    def __enter__(self):
        self.originals = size_invariance.encode_bboxwise_tgts_bitwise, size_invariance.get_kth_bit
        size_invariance.encode_bboxwise_tgts_bitwise = self.encode
        size_invariance.get_kth_bit = lambda marks, k: ((marks >> (k - 1)) & 1).astype(int)

    def __exit__(self, *_):
        size_invariance.encode_bboxwise_tgts_bitwise, size_invariance.get_kth_bit = self.originals

    @staticmethod
    def encode(count, labels):
        marks = np.zeros(labels.shape, object)
        for label in range(1, count + 1):
            rows, columns = np.where(labels == label)
            marks[rows.min():rows.max() + 1, columns.min():columns.max() + 1] += 1 << (label - 1)
        return marks


class DefinedSiMae(psm.SizeInvarianceMAE):
    """PySODMetrics' size-invariant MAE; if no pixel is outside the boxes, the mean over the boxes."""

    def step(self, prediction, truth):
        count, labels = size_invariance.parse_connected_components(truth > 128)
        marks = DefinedObjects.encode(count, labels)
        if count == 0 or (marks == 0).any():
            return super().step(prediction, truth)
        p, g = psm.utils.prepare_data(prediction, truth)
        boxes = [(marks >> k & 1).astype(bool) for k in range(count)]
        self.maes.append(np.mean([np.abs(p - g)[box].mean() for box in boxes]))


def size_invariant(pairs):
    every = dict(with_dynamic=True, with_adaptive=True, with_binary=True)
    sums = dict(with_dynamic=True, with_adaptive=False, with_binary=True, sample_based=False)
    mae = DefinedSiMae()
    by_image = psm.SizeInvarianceFmeasureV2({name: handler(**every) for name, handler in HANDLERS.items()})
    overall = psm.SizeInvarianceFmeasureV2({name: handler(**sums) for name, handler in HANDLERS.items()})
    for prediction, truth in pairs:
        def step():
            for metric in (mae, by_image, overall):
                metric.step(prediction, truth)
        if (truth > 128).all() or size_invariance.parse_connected_components(truth > 128)[0] > 53:
            with DefinedObjects():
                step()
        else:
            step()
    out = {"si_mae": mae.get_results()["si_mae"]}
    for name, result in by_image.get_results().items():
        out[f"si_{name}_max"] = np.mean([curves.max(axis=-1).mean() for curves in result["dynamic"]])
        out[f"si_{name}_mean"] = np.mean([curves.mean(axis=-1).mean() for curves in result["dynamic"]])
        out[f"si_{name}_adaptive"], out[f"si_{name}_binary"] = result["adaptive"], result["binary"]
    for name, result in overall.get_results().items():
        out[f"si_{name}_overall_max"] = result["dynamic"].max()
        out[f"si_{name}_overall_mean"] = result["dynamic"].mean()
        out[f"si_{name}_overall_binary"] = result["binary"]
    return out


def multi_scale_iou(pairs):
    metric = psm.MSIoU(with_dynamic=True, with_adaptive=True, with_binary=True)
    for prediction, truth in pairs:
        metric.step(prediction, truth)
    return {f"msiou_{regime}": take(metric.get_results()) for regime, take in REGIMES.items()}


def correction_effort(pairs):
    metric = psm.HumanCorrectionEffortMeasure()
    for prediction, truth in pairs:
        metric.step(prediction, truth)
    return metric.get_results()


class DefinedKernel:
    """If the foreground lies on one oblique line, the limit of the kernel; else PySODMetrics'."""

    line = None

    def _compute_y_params(self, truth):
        points = np.argwhere(truth > 0)
        self.line = None
        if len(points) > 1:
            steps = points - points[0]
            direction = steps[np.abs(steps).sum(1).argmax()]
            if direction.all() and (steps[:, 0] * direction[1] == steps[:, 1] * direction[0]).all():
                self.line = direction
        return super()._compute_y_params(truth)

    def _gaussian_kernel(self, rows, columns, covariance):
        if self.line is None:
            return super()._gaussian_kernel(rows, columns, covariance)
        r, c = np.mgrid[-rows:rows + 1, -columns:columns + 1]
        kernel = np.where(r * self.line[1] == c * self.line[0], np.exp(-(r * r + c * c) / (2 * self.alpha ** 2)), 0)
        return kernel / kernel.sum()


class DefinedContextMeasure(DefinedKernel, psm.ContextMeasure):
    pass


class DefinedCamouflageContextMeasure(DefinedKernel, psm.CamouflageContextMeasure):
    """Where PySODMetrics fails because no patch fits into the image, no pixel is camouflaged."""

    def _calculate_camouflage_degree(self, image, truth, w=7):
        if min(image.shape[:2]) < w:
            return image, np.zeros(truth.shape)
        return super()._calculate_camouflage_degree(image, truth, w)


def context(pairs):
    metric = DefinedContextMeasure()
    for prediction, truth in pairs:
        metric.step(prediction, truth)
    return metric.get_results()


def camouflage_context(pairs):
    metric = DefinedCamouflageContextMeasure()
    for prediction, truth in pairs:
        metric.step(prediction, truth, img=picture(truth))
    return metric.get_results()


REFERENCES = {"counts": counts, "si": size_invariant, "msiou": multi_scale_iou, "hce": correction_effort, "cm": context,
              "ccm": camouflage_context}


def picture(truth):
    """A colour texture in which the object's colour is another or, every second time, the same; made from the truth
    alone."""
    rng = np.random.default_rng(zlib.crc32(truth.tobytes()))
    noise = rng.integers(0, 256, (*truth.shape, 3)).astype(np.float64)
    smooth = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.5, 3))).reshape(noise.shape)
    image = smooth + rng.integers(-25, 26, noise.shape)
    if rng.random() < 0.5:
        image += (truth > 128)[..., None] * rng.integers(-60, 61, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def scenes(rng):
    """Named pairs with several objects, and with long outlines."""
    cases = {}
    for index in range(100):
        height, width = int(rng.integers(8, 160)), int(rng.integers(8, 160))
        truth = blob(rng, height, width)
        cases[f"model-{index}"] = (soft_prediction(rng, truth), truth)
    for index in range(40):
        height, width = int(rng.integers(40, 120)), int(rng.integers(40, 120))
        truth = np.zeros((height, width), np.uint8)
        for _ in range(int(rng.integers(2, 12))):
            radius = int(rng.integers(1, 9 if index % 2 else 4))
            centre = int(rng.integers(0, width)), int(rng.integers(0, height))
            cv2.circle(truth, centre, radius, 255, -1 if index % 3 else 1)
        cases[f"objects-{index}"] = (soft_prediction(rng, truth), truth)
    truth = np.zeros((80, 90), np.uint8)
    for row in range(0, 72, 9):
        for column in range(0, 90, 10):
            truth[row:row + 8, column:column + 8] = 255
    cases["objects-72"] = (soft_prediction(rng, truth), truth)
    # Nested frames: more boxes than bits at the same pixels.
    truth = np.zeros((241, 241), np.uint8)
    for margin in range(0, 120, 2):
        cv2.rectangle(truth, (margin, margin), (240 - margin, 240 - margin), 255, 1)
    cases["frames-60"] = (soft_prediction(rng, truth), truth)
    # A frame along the border: one object, whose box is the image.
    truth = np.zeros((30, 40), np.uint8)
    cv2.rectangle(truth, (0, 0), (39, 29), 255, 2)
    cases["frame"] = (soft_prediction(rng, truth), truth)
    for index in range(60):
        height, width = int(rng.integers(20, 120)), int(rng.integers(20, 120))
        field = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), float(rng.uniform(1, 5)))
        other = field + 0.4 * field.std() / 0.14 * cv2.GaussianBlur(rng.normal(0, 1, field.shape), (0, 0), 2)
        soft = np.clip(128 + 60 * (other - np.median(field)) / field.std(), 0, 255).astype(np.uint8)
        cases[f"ragged-{index}"] = (soft, (field > np.median(field)).astype(np.uint8) * 255)
    for index in range(20):
        truth = np.zeros((60, 70), np.uint8)
        step = np.array(((1, 1), (1, -1), (2, 1), (3, -2), (5, 4))[index % 5])
        for k in range(2 + index // 5 * 2):
            truth[tuple(np.array((20, 35)) + step * k)] = 255
        cases[f"line-{index}"] = (soft_prediction(rng, truth), truth)
    for index in range(20):
        truth = np.zeros((90, 110), np.uint8)
        cv2.line(truth, tuple(map(int, rng.integers(0, 90, 2))), tuple(map(int, rng.integers(0, 90, 2))), 255,
                 1 + index % 3)
        cases[f"thin-{index}"] = (soft_prediction(rng, truth), truth)
    for index, (height, width) in enumerate([(97, 103), (150, 210), (300, 420), (700, 520)]):
        truth = (rng.random((height, width)) < 0.3).astype(np.uint8) * 255
        cases[f"outline-{index}"] = (rng.integers(0, 256, (height, width)).astype(np.uint8) // 16 * 16, truth)
    return cases


def compare(program, root, data_sets, pairs):
    """Largest deviation over the data sets, per measure; prints the ones above the tolerance."""
    for data_set, names in data_sets.items():
        for name in names:
            write_pair(root, data_set, name, *pairs[name])
            (root / "images" / data_set).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "images" / data_set / f"{name}.png"), picture(pairs[name][1])[..., ::-1])
    options = ("--measures", ",".join(REFERENCES), "--images", root / "images")
    got = run(program, root, 2, *options)
    if run(program, root, 1, *options) != got:
        raise SystemExit("FAIL: the figures depend on the number of threads")
    worst = dict.fromkeys(REFERENCES, 0.0)
    for index, (data_set, names) in enumerate(data_sets.items()):
        figures = got[data_set]
        if figures.pop("images") != len(names):
            raise SystemExit(f"FAIL: {data_set}: wrong number of images")
        for measure, reference in REFERENCES.items():
            if measure == "msiou" and index % 2 and len(names) == 1:  # half of them, as the reference is slow
                figures = {name: value for name, value in figures.items() if not name.startswith(measure)}
                continue
            want = reference([pairs[name] for name in names])
            for name, value in want.items():
                figure = figures.pop(name)
                deviation = abs(figure - value) / max(1.0, abs(value))
                if not deviation <= TOLERANCE:
                    print(f"  {data_set} {name}: evaluate {figure!r}, PySODMetrics {value!r}")
                worst[measure] = max(worst[measure], deviation if np.isfinite(deviation) else np.inf)
        if figures:
            raise SystemExit(f"FAIL: {data_set}: not compared: {sorted(figures)}")
    return worst


def check_errors(program):
    """What ccm needs is asked for by name; `all` does without."""
    image = np.full((20, 30), 200, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pair(root, "A", "one", image, image)
        (root / "images/A").mkdir(parents=True)

        def attempt(*options):
            command = [program, "--pred", root / "pred", "--gt", root / "gt", "--json", root / "out.json", *options]
            return subprocess.run([str(part) for part in command], capture_output=True, text=True)

        def expect(succeeds, options, *words):
            result = attempt(*options)
            if (result.returncode == 0) != succeeds or not all(word in result.stderr for word in words):
                raise SystemExit(f"FAIL: {options}: expected {words}, got {result.returncode}: {result.stderr}")

        images = ("--images", root / "images")
        expect(False, ("--measures", "ccm"), "--images")
        expect(False, ("--measures", "ccm", *images), "A/one", "no image in")
        cv2.imwrite(str(root / "images/A/one.png"), np.zeros((20, 31, 3), np.uint8))
        expect(False, ("--measures", "ccm", *images), "A/one", "20 x 31", "20 x 30")
        expect(False, ("--measures", "iou"), "iou")
        expect(True, ("--measures", "all"))
        if "ccm" in (root / "out.json").read_text() or "kappa_max" not in (root / "out.json").read_text():
            raise SystemExit("FAIL: --measures all without --images is all but ccm")
        (root / "images/A").rename(root / "Imgs")
        cv2.imwrite(str(root / "Imgs/one.png"), np.zeros((20, 30, 3), np.uint8))
        expect(True, ("--measures", "all", "--images", root))
        if "ccm" not in (root / "out.json").read_text():
            raise SystemExit("FAIL: --measures all --images without ccm")
    print("options: checked")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluate", required=True, type=Path, help="the built program")
    program = parser.parse_args().evaluate.resolve()
    warnings.filterwarnings("ignore")
    rng = np.random.default_rng(20250218)

    check_errors(program)
    edges = edge_cases(rng)
    pairs = dict(list(edges.items())[::4]) | scenes(rng)
    if len(pairs) < 300:
        raise SystemExit(f"FAIL: only {len(pairs)} pairs")
    failed = False
    pools = {"edges": [name for name in list(pairs)[::7] if "1x1-" not in name],
             "models": [name for name in pairs if name.startswith("model")][::4]}
    for title, data_sets in (("image by image", {name: [name] for name in pairs}), ("pooled", pools)):
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            worst = compare(program, Path(folder), data_sets, pairs)
        print(f"{title}: {sum(map(len, data_sets.values()))} pairs, largest deviation "
              + ", ".join(f"{measure} {value:.3g}" for measure, value in worst.items())
              + f" (limit {TOLERANCE:g}), {time.perf_counter() - begin:.0f} s", flush=True)
        failed |= not all(value <= TOLERANCE for value in worst.values())
    print("FAIL" if failed else "OK")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
