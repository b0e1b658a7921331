"""What an ablation's runs reached: figures over the seeds of every row, and the differences between rows."""

import json
from html import escape
from statistics import mean, stdev

from .charts import Series, legend, line_chart
from .results import ReportError, number, numbers

AXES = ("router", "experts", "gate", "top_k", "balance", "dispatch")
METRICS = [("mean_iou", "IoU", 1), ("smeasure", "S", 1), ("emeasure_mean", "E", 1), ("wfmeasure", "wF", 1),
           ("fmeasure_mean", "F", 1), ("mae", "MAE", -1)]  # key, title, 1 where more is better


def json_lines(path):
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


class Run:
    """One seed of a row: its result, its epochs in order, and its cosines."""

    def __init__(self, file):
        self.result = json.loads(file.read_text(encoding="utf-8"))
        self.epochs, self.cosines = [], []
        for stage in range(1, self.result["stages"] + 1):
            self.epochs += json_lines(file.parent / f"metrics_stage{stage}.jsonl")
            self.cosines += [line["cosine"] for line in json_lines(file.parent / f"interference_stage{stage}.jsonl")]
        self.seed = self.result["seed"]

    def metric(self, key):
        return number(self.result["metrics"].get(key))

    def level(self, index, key):
        return number(self.result["levels"][index].get(key))

    def trained_usage(self, index):
        """Shares of the last epoch's training, or of the test where no epoch tells."""
        for epoch in reversed(self.epochs):
            use = numbers(epoch["levels"][index].get("trained_usage"))
            if use:
                return use
        return numbers(self.result["levels"][index]["usage"])

    def violations(self, index):
        """[(epoch, MaxVio in validation)], epochs counted over the stages."""
        return [(x, number(e["levels"][index].get("max_violation"))) for x, e in enumerate(self.epochs, 1)]

    def floor(self, index):
        return number(self.epochs[-1]["levels"][index].get("noise_floor")) if self.epochs else None

    def cosine(self, index):
        values = [number(line[index]) for line in self.cosines]
        values = [v for v in values if v is not None]
        return mean(values) if values else None

    def seconds(self):
        values = [number(e.get("seconds_per_step")) for e in self.epochs]
        return mean(values) if values and None not in values else None


class Row:
    def __init__(self, table, policies, runs):
        self.table, self.policies, self.runs = table, policies, {run.seed: run for run in runs}
        self.levels = len(runs[0].result["levels"])

    def name(self, base):
        """The policies that differ from those of the base, or "base"."""
        return ", ".join(p for p, b in zip(self.policies, base.policies) if p != b) or f"{self.policies[4]} (base)"

    def over_seeds(self, figure):
        """Mean and standard deviation of figure(run), None for what is not there."""
        values = [v for v in map(figure, self.runs.values()) if v is not None]
        if not values:
            return None, None
        return mean(values), stdev(values) if len(values) > 1 else None

    def difference(self, base, key):
        """Mean over common seeds of the difference to the base, and whether it exceeds the seeds' spread: the root of
        the sum of both rows' variances over seeds."""
        pairs = [(run.metric(key), base.runs[seed].metric(key)) for seed, run in self.runs.items() if seed in base.runs]
        pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(pairs) < 2:
            return None, False
        gap = mean(a - b for a, b in pairs)
        spread = (stdev(a for a, _ in pairs) ** 2 + stdev(b for _, b in pairs) ** 2) ** 0.5
        return gap, abs(gap) > spread


def read(folder):
    """All rows of an ablation's folder. Errors: ReportError."""
    found = {}
    for file in sorted(folder.glob("*/seed*/result.json")):
        try:
            run = Run(file)
            found.setdefault((run.result["table"], tuple(run.result["policies"])), []).append(run)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ReportError(f"{file}: not the result of a run ({error!r})") from error
    if not found:
        raise ReportError(f"no {folder}/*/seed*/result.json: run the ablation first")
    return [Row(table, list(policies), runs) for (table, policies), runs in found.items()]


def base_of(rows):
    """The row that differs from the base on no axis, else the first."""
    bases = [row for row in rows if row.policies == next(iter(row.runs.values())).result["base"]]
    return (bases or rows)[0]


def figure(value, spread, digits=3):
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + (f" <small>± {spread:.{digits}f}</small>" if spread is not None else "")


def html_table(heads, body):
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
                    for name, cells in body)
    return (f'<div class="scroll"><table class="metrics"><thead><tr><th scope="col">Row</th>{head}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>")


def quality(rows, base):
    """Every metric, and its difference to the base; those beyond the seeds' spread in bold."""
    body = []
    for row in rows:
        cells = []
        for key, _, _ in METRICS:
            text = figure(*row.over_seeds(lambda run, key=key: run.metric(key)))
            gap, beyond = row.difference(base, key) if row is not base else (None, False)
            if gap is not None:
                shown = f"{gap:+.3f}"
                text += f"<br>{f'<b>{shown}</b>' if beyond else shown}"
            cells.append(text)
        body.append((row.name(base), cells))
    return html_table([f"{title} {'↑' if up > 0 else '↓'}" for _, title, up in METRICS], body)


def routing(rows, base):
    """How each level routes: MaxVio beside its noise floor, shares in training, entropy, cosine, and a step's time."""
    body = []
    for row in rows:
        def levels(function, digits=2):
            values = [row.over_seeds(lambda run, i=i: function(run, i))[0] for i in range(row.levels)]
            return " · ".join("–" if v is None else f"{v:.{digits}f}" for v in values)

        body.append((row.name(base), [
            levels(lambda run, i: run.level(i, "max_violation")), levels(lambda run, i: run.level(i, "noise_floor")),
            levels(lambda run, i: min(run.trained_usage(i))), levels(lambda run, i: max(run.trained_usage(i))),
            levels(lambda run, i: run.level(i, "entropy")), levels(lambda run, i: run.cosine(i)),
            figure(*row.over_seeds(lambda run: run.seconds()))]))
    return html_table(["MaxVio", "noise floor", "least use", "largest use", "entropy, nats", "gradient cosine",
                       "s a step"], body)


def violations(rows, base):
    """MaxVio over the epochs, a chart a level, a line a row: means over the seeds."""
    charts, epochs = [], max(len(run.epochs) for row in rows for run in row.runs.values())
    every = max(1, -(-epochs // 6))
    labels = {x: str(x) for x in range(every, epochs + 1, every)}
    for level in range(rows[0].levels):
        lines = []
        for k, row in enumerate(rows):
            per_run = [dict(run.violations(level)) for run in row.runs.values()]
            points = [(x, [run[x] for run in per_run if run.get(x) is not None]) for x in range(1, epochs + 1)]
            lines.append(Series(f"e{k % 8}", row.name(base), [(x, mean(v) if v else None) for x, v in points]))
        floor = rows[0].over_seeds(lambda run, level=level: run.floor(level))[0]
        lines.append(Series("m-floor", "noise floor", [(x, floor) for x in range(1, epochs + 1)], "dashed"))
        charts.append(f"<div><h3>Level {level + 1}</h3>"
                      f'{line_chart(f"MaxVio of level {level + 1}", "MaxVio", "epoch", lines, x_labels=labels, zero=True)}'
                      "</div>")
    keys = [(f"e{k % 8}", row.name(base), "") for k, row in enumerate(rows)]
    return f'{legend([*keys, ("m-floor", "noise floor", "dashed")])}<div class="pair">{"".join(charts)}</div>'
