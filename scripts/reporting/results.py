"""What the programs wrote: summary.json, checkpoints/metrics_stage*.jsonl, phases.jsonl.

Missing and null values are None.
"""

import json
import math
from pathlib import Path

STAGES = {1: "experts and backbone", 2: "router, experts frozen", 3: "everything"}

# Model -> (name, what it is). The order is that of the tables; experts come first.
MIXTURES = {
    "ensemble": ("Routed ensemble", "the experts that the router chooses for each image, weighted by its gates"),
    "dense": ("Gated mean of all", "every expert on every image, weighted by the gates"),
    "uniform": ("Plain mean of all", "every expert on every image, equal weights"),
    "best_pair": ("Best fixed pair", "the two experts that do best together, the same for every image"),
    "random_top2": ("Random two", "two experts drawn at random for each image, equal weights"),
    "alone": ("Best expert, trained alone", "the best single expert, trained alone for the steps of stages 2 and 3"),
    "oracle": ("Oracle", "the best expert of each image, chosen with the ground truth: a bound, not a method"),
}


class ReportError(Exception):
    """Ends the program with its message."""


def number(value):
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def numbers(values):
    """The list with None for whatever is no number, or None if there is no number in it."""
    found = [number(v) for v in values] if isinstance(values, list) else []
    return found if any(v is not None for v in found) else None


def json_lines(path):
    """The objects of a file of JSON Lines, none where there is no file. Errors: ValueError."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def usage(level):
    """A level's shares in training, or where there is no word of it those of its evaluation."""
    return numbers(level.get("trained_usage")) or numbers(level.get("usage")) or []


def mapping(value):
    return value if isinstance(value, dict) else {}


class Results:
    """Everything that the report shows, and `missing`: what it cannot show, one sentence each."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.missing = []
        self.summary = self._read_summary()
        self.experts = [str(name) for name in self.summary.get("experts") or []]
        self.regimes = [str(name) for name in self.summary.get("regimes") or []]
        self.datasets = mapping(self.summary.get("datasets"))
        if not self.datasets:
            self.missing.append("Test results: summary.json lists no data set.")
        self.epochs = self._read_epochs()
        self.phases = self._read_phases()
        self.samples = [s for s in self.summary.get("samples") or [] if isinstance(s, dict)]
        if not self.samples:
            self.missing.append("Pictures: summary.json lists no samples.")

    def _read_summary(self):
        path = self.folder / "summary.json"
        if not path.is_file():
            raise ReportError(f"no {path}: the program `inspect` writes it (scripts/demo.sh runs it)")
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ReportError(f"{path} is not JSON: {error}") from None
        if not isinstance(summary, dict):
            raise ReportError(f"{path}: expected a JSON object, got {type(summary).__name__}")
        return summary

    def _read_epochs(self):
        """The epochs of all stages in order of training."""
        epochs, bad = {}, 0
        for stage in STAGES:
            path = self.folder / "checkpoints" / f"metrics_stage{stage}.jsonl"
            if not path.is_file():
                self.missing.append(f"Training curves of stage {stage}: there is no {path.parent.name}/{path.name}.")
                continue
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                    epochs[stage, int(record["epoch"])] = record
                except (ValueError, KeyError, TypeError):
                    bad += bool(line.strip())
        if bad:
            self.missing.append(f"Training curves: {bad} lines of the logs cannot be read and are left out.")
        return [epochs[key] for key in sorted(epochs)]

    def _read_phases(self):
        """What each phase of the demo took; nothing where the programs were not run by the demo."""
        try:
            lines = (self.folder / "phases.jsonl").read_text(encoding="utf-8").splitlines()
            phases = [mapping(json.loads(line)) for line in lines]
        except (OSError, ValueError):
            return []
        return [phase for phase in phases if number(phase.get("seconds")) is not None]

    def name(self, model):
        """What a model is called in the report."""
        if model in MIXTURES:
            return MIXTURES[model][0]
        index = self.expert_index(model)
        if index is None:
            return str(model)
        return self.experts[index] if index < len(self.experts) else f"Expert {index}"

    def explanation(self, model):
        if model in MIXTURES:
            return MIXTURES[model][1]
        return "this expert alone on every image" if self.expert_index(model) is not None else ""

    @staticmethod
    def expert_index(model):
        head, _, tail = str(model).partition("_")
        return int(tail) if head == "expert" and tail.isdigit() else None

    def ordered(self, models):
        """Experts by number, then the mixtures, then whatever else there is."""
        known = list(MIXTURES)

        def rank(model):
            index = self.expert_index(model)
            if index is not None:
                return (0, index, "")
            return (1, known.index(model), "") if model in known else (2, 0, str(model))

        return sorted(models, key=rank)

    def regime(self, index):
        if isinstance(index, int) and 0 <= index < len(self.regimes):
            return self.regimes[index]
        return "unlabelled"
