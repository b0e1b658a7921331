"""What an ablation's runs reached: figures over the seeds of every row, and the differences between rows."""

import json
from html import escape
from statistics import mean, stdev

from .charts import Series, legend, line_chart
from .results import ReportError, json_lines, number, usage

METRICS = [("mean_iou", "IoU", 1), ("smeasure", "S", 1), ("emeasure_mean", "E", 1), ("wfmeasure", "wF", 1),
           ("fmeasure_mean", "F", 1), ("mae", "MAE", -1)]  # key, title, 1 where more is better


class Run:
    """One seed of a row: its result, and its epochs in order."""

    def __init__(self, file):
        self.result = json.loads(file.read_text(encoding="utf-8"))
        self.epochs = []
        for stage in range(1, self.result["stages"] + 1):
            self.epochs += json_lines(file.parent / f"metrics_stage{stage}.jsonl")
        self.seed = self.result["seed"]
        self.usage = [usage(level) for level in self.result["levels"]]
        self.violations = [[(number(e["levels"][i].get("max_violation")), number(e["levels"][i].get("noise_floor")))
                            for e in self.epochs] for i in range(len(self.usage))]

    def metric(self, key):
        return number(self.result["metrics"].get(key))

    def level(self, index, key):
        return number(self.result["levels"][index].get(key))

    def dense(self):
        """Whether every row goes to every expert, so that use says nothing."""
        return self.level(0, "noise_floor") == 0


# The 97.5th percentile of Student's t for 2 to 30 seeds; beyond that nearly the normal distribution's.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
         2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)


class Row:
    def __init__(self, key, runs):
        self.key, self.policies, self.runs = key, runs[0].result["policies"], {run.seed: run for run in runs}
        self.levels = len(runs[0].result["levels"])

    def is_base(self):
        return self.policies == next(iter(self.runs.values())).result["base"]

    def name(self, base, seeds):
        """The policies that differ from those of the base, or "base", and how many seeds there are where fewer."""
        differing = ", ".join(p for p, b in zip(self.policies, base.policies) if p != b)
        missing = "" if len(self.runs) == seeds else f" ({len(self.runs)} of {seeds} seeds)"
        return (differing or f"base, {self.policies[4]}") + missing

    def over_seeds(self, figure):
        """Mean and standard deviation of figure(run), None for what is not there."""
        values = [v for v in map(figure, self.runs.values()) if v is not None]
        if not values:
            return None, None
        return mean(values), stdev(values) if len(values) > 1 else None

    def difference(self, base, key):
        """(mean, standard error, beyond) of the difference to the base over common seeds; `beyond`: with at least three
        seeds, further from zero than the seeds' spread explains, at the 5 % level of a paired t-test. None without two
        common seeds."""
        gaps = [(run.metric(key), base.runs[seed].metric(key)) for seed, run in self.runs.items() if seed in base.runs]
        gaps = [a - b for a, b in gaps if a is not None and b is not None]
        if len(gaps) < 2:
            return None
        error = stdev(gaps) / len(gaps) ** 0.5
        limit = T_975[len(gaps) - 2] if len(gaps) - 2 < len(T_975) else 1.96
        return mean(gaps), error, len(gaps) >= 3 and abs(mean(gaps)) > limit * error


def read(folder):
    """Tables of rows: {table: [Row]}, in the order of rows.def. Errors: ReportError."""
    found = {}
    for file in sorted(folder.glob("*/seed*/result.json")):
        try:
            found.setdefault(file.parent.parent.name, []).append(Run(file))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ReportError(f"{file}: not the result of a run ({error!r})") from error
    if not found:
        raise ReportError(f"no {folder}/*/seed*/result.json: run the ablation first")
    rows = {key: Row(key, runs) for key, runs in found.items()}
    try:
        listed = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        tables = {entry["table"]: [] for entry in listed}
        for entry in listed:
            if entry["row"] in rows:
                tables[entry["table"]].append(rows[entry["row"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{folder / 'rows.json'}: cannot be read ({error!r})") from error
    listed_rows = {row.key for table in tables.values() for row in table}
    tables["no longer in rows.def"] = [row for key, row in rows.items() if key not in listed_rows]
    return {name: table for name, table in tables.items() if table}


def base_of(rows):
    """The row that differs from the base on no axis, else the first."""
    return next((row for row in rows if row.is_base()), rows[0])


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


def quality(rows, base, seeds):
    """Some metrics, and their differences to the base; those beyond the seeds' spread in bold."""
    body = []
    for row in rows:
        cells = []
        for key, _, _ in METRICS:
            text = figure(*row.over_seeds(lambda run, key=key: run.metric(key)))
            gap = row.difference(base, key) if row is not base else None
            if gap is not None:
                shown = f"{gap[0]:+.3f} ± {gap[1]:.3f}"
                text += f"<br>{f'<b>{shown}</b>' if gap[2] else shown}"
            cells.append(text)
        body.append((row.name(base, seeds), cells))
    return html_table([f"{title} {'↑' if up > 0 else '↓'}" for _, title, up in METRICS], body)


def every_metric(rows, base, seeds):
    """Mean and spread of all metrics that the runs have, in the order of their results."""
    keys = list(dict.fromkeys(key for row in rows for run in row.runs.values() for key in run.result["metrics"]))
    body = [(row.name(base, seeds), [figure(*row.over_seeds(lambda run, key=key: run.metric(key))) for key in keys])
            for row in rows]
    return f"<details><summary>Every metric</summary>{html_table(keys, body)}</details>"


def comparisons(rows, base):
    """How many differences quality() tests."""
    return sum(row is not base and len(row.runs.keys() & base.runs.keys()) >= 3 and
               row.difference(base, key) is not None for row in rows for key, _, _ in METRICS)


def routing(rows, base, seeds):
    """How each level routes: MaxVio beside its noise floor, shares in training, entropy, interference, a step's time."""
    body = []
    for row in rows:
        dense = next(iter(row.runs.values())).dense()

        def levels(function, of_use=False):
            values = [None if of_use and dense else row.over_seeds(lambda run, i=i: function(run, i))[0]
                      for i in range(row.levels)]
            return " · ".join("–" if v is None else f"{v:.2f}" for v in values)

        body.append((row.name(base, seeds), [
            levels(lambda run, i: run.level(i, "max_violation"), True),
            levels(lambda run, i: run.level(i, "noise_floor"), True),
            levels(lambda run, i: min(run.usage[i]), True), levels(lambda run, i: max(run.usage[i]), True),
            levels(lambda run, i: run.level(i, "entropy")), levels(lambda run, i: run.level(i, "label_information")),
            levels(lambda run, i: run.level(i, "gradient_cosine")), levels(lambda run, i: run.level(i, "gradient_ratio")),
            figure(*row.over_seeds(lambda run: number(run.result.get("seconds_per_step"))))]))
    return html_table(["MaxVio", "noise floor", "least use", "largest use", "entropy, nats", "information on regime",
                       "gradient cosine", "gradient ratio", "s a step"], body)


def violations(rows, base, seeds):
    """MaxVio over the epochs, a chart a level, a line a row: means over the seeds."""
    charts, epochs = [], max(len(run.epochs) for row in rows for run in row.runs.values())
    every = max(1, -(-epochs // 6))
    labels = {x: str(x) for x in range(every, epochs + 1, every)}
    shown = [row for row in rows if not next(iter(row.runs.values())).dense()]
    for level in range(rows[0].levels):
        lines, floors = [], {}
        for k, row in enumerate(shown):
            points = []
            for x in range(epochs):
                values = [run.violations[level][x] for run in row.runs.values() if x < len(run.violations[level])]
                values = [v for v in values if None not in v]
                points.append((x + 1, mean(v for v, _ in values) if values else None))
                if values:
                    floors.setdefault(round(mean(f for _, f in values), 3), []).append(x + 1)
            lines.append(Series(f"e{k % 8}", row.name(base, seeds), points))
        # One line a distinct floor: it depends on how many rows there are and how many experts each goes to.
        for floor, xs in floors.items():
            lines.append(Series("m-floor", "noise floor", [(x, floor) for x in sorted(set(xs))], "dashed"))
        charts.append(f"<div><h3>Level {level + 1}</h3>"
                      f'{line_chart(f"MaxVio of level {level + 1}", "MaxVio", "epoch", lines, x_labels=labels, zero=True)}'
                      "</div>")
    keys = [(f"e{k % 8}", row.name(base, seeds), "") for k, row in enumerate(shown)]
    return f'{legend([*keys, ("m-floor", "noise floor", "dashed")])}<div class="pair">{"".join(charts)}</div>'
