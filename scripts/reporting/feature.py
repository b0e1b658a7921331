"""The course of a feature-level training: curves, and how every level used its experts."""

from html import escape

from .charts import Series, legend, line_chart
from .outcome import heat_map
from .results import ReportError, json_lines, number, usage


class Course:
    """The epochs of all stages, one after another."""

    def __init__(self, folder):
        self.epochs, self.bands, self.labels = [], [], {}
        stage = 1
        while (path := folder / f"metrics_stage{stage}.jsonl").exists():
            begin = len(self.epochs)
            try:
                self.epochs += json_lines(path)
            except ValueError as error:
                raise ReportError(f"{path}: {error}") from error
            self.bands.append((begin + 0.5, len(self.epochs) + 0.5, f"stage {stage}"))
            stage += 1
        if not self.epochs:
            raise ReportError(f"no epoch in {folder}/metrics_stage*.jsonl: train a feature-level model into it first")
        every = max(1, -(-len(self.epochs) // 8))
        self.labels = {x: str(x) for x in range(every, len(self.epochs) + 1, every)}

    def points(self, figure):
        return [(x, figure(epoch)) for x, epoch in enumerate(self.epochs, 1)]

    def chart(self, title, y_title, series, **options):
        return line_chart(title, y_title, "epoch", series, x_labels=self.labels, bands=self.bands, **options)

    def levels(self):
        return len(self.epochs[-1].get("levels") or [])


def curves(course):
    loss = course.chart("Training loss", "training loss", zero=True,
                        series=[Series("m-loss", "loss", course.points(lambda e: number(e.get("loss"))))])
    iou = course.chart("Validation IoU", "validation IoU", zero=True, series=[
        Series("m-ensemble", "IoU", course.points(lambda e: number((e.get("val_iou") or {}).get("ensemble"))))])
    return f'<div class="pair"><div><h3>Loss</h3>{loss}</div><div><h3>Mean IoU at 0.5</h3>{iou}</div></div>'


def last_epoch(course):
    """Shares of the last epoch, a row a level, with the word that the trainer gave them."""
    rows = course.epochs[-1]["levels"]
    experts = max(len(usage(level)) for level in rows)
    names = [f"Level {i}: {level.get('balance') or 'not trained'}" for i, level in enumerate(rows, 1)]
    return heat_map(names, [(f"e{k % 8}", f"expert {k}") for k in range(experts)], [usage(level) for level in rows],
                    lambda v: f"{100 * v:.0f} %", 0.0, 2 / experts,
                    f"<b>Share of the choices in the last epoch.</b> Even: {100 / experts:.0f} %. Ideal: all within 5 "
                    "points of it; good: all at least half of it; collapsed: one below a tenth of it.")


def over_time(course):
    experts = max(len(usage(level)) for level in course.epochs[-1]["levels"])
    charts = []
    for i in range(course.levels()):
        lines = [Series("m-floor", "even", course.points(lambda e: 1 / experts), "dashed")]
        for k in range(experts):
            lines.append(Series(f"e{k % 8}", f"expert {k}", course.points(
                lambda e, k=k: usage(e["levels"][i])[k] if k < len(usage(e["levels"][i])) else None)))
        words = [escape(str(e["levels"][i].get("balance") or "–")) for e in course.epochs]
        counts = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
        charts.append(f"<div><h3>Level {i + 1} <small>epochs: {counts}</small></h3>"
                      f'{course.chart(f"Use of the experts of level {i + 1}", "share of choices", lines, zero=True)}</div>')
    keys = [(f"e{k % 8}", f"expert {k}", "") for k in range(experts)]
    return f'{legend([*keys, ("m-floor", "even", "dashed")])}<div class="pair">{"".join(charts)}</div>'


def violations(course):
    lines = [Series(f"e{i}", f"level {i + 1}",
                    course.points(lambda e, i=i: number(e["levels"][i].get("max_violation"))))
             for i in range(course.levels())]
    floor = course.points(lambda e: number(e["levels"][0].get("noise_floor")))
    lines.append(Series("m-floor", "noise floor", floor, "dashed"))
    keys = [(f"e{i}", f"level {i + 1}", "") for i in range(course.levels())]
    return (legend([*keys, ("m-floor", "noise floor of perfect balance", "dashed")]) +
            course.chart("MaxVio over time", "MaxVio", lines, zero=True))
