"""Training curves and routing over time, from the training logs."""

from .charts import Series, legend, line_chart
from .results import STAGES, mapping, number, numbers

CURVES = {"ensemble": "", "dense": "dashed", "uniform": "dotted"}  # the mixtures that are drawn, and how
ROUTED = ("ensemble", "dense")  # mean nothing before stage 2 has trained the router


def _style(results, model):
    index = results.expert_index(model)
    return f"e{index % 8}" if index is not None else f"m-{model}"


def curves(results):
    """Loss and validation IoU, a column a stage. Stages 2 and 3 move little, so they share an axis of their own."""
    found = {m for e in results.epochs for m, v in mapping(e.get("val_iou")).items() if number(v) is not None}
    models = [m for m in results.ordered(found) if results.expert_index(m) is not None or m in CURVES]
    values = [number(mapping(e.get("val_iou")).get(m)) for e in results.epochs if e.get("stage") != 1 for m in models]
    values = [v for v in values if v is not None]
    enlarged = (min(values), max(values)) if values else None
    columns = []
    for stage, title in STAGES.items():
        epochs = [e for e in results.epochs if e.get("stage") == stage]
        if not epochs:
            continue
        names = _epoch_labels(len(epochs))
        points = list(enumerate(epochs, 1))
        loss = line_chart(f"Training loss, stage {stage}", "training loss", "epoch",
                          [Series("m-loss", "loss", [(x, number(e.get("loss"))) for x, e in points])],
                          x_labels=names, zero=True)
        iou = line_chart(f"Validation IoU, stage {stage}", "validation IoU", "epoch",
                         [Series(_style(results, m), results.name(m),
                                 [(x, number(mapping(e.get("val_iou")).get(m))) for x, e in points], CURVES.get(m, ""))
                          for m in models if stage > 1 or m not in ROUTED],
                         bounds=enlarged if stage > 1 else None, x_labels=names)
        missing = '<p class="gap">Not in the log.</p>'
        columns.append(f'<div><h3>Stage {stage} <small>{title}</small></h3>{iou or missing}{loss or missing}</div>')
    if not columns:
        return '<p class="gap">There is no training log to draw.</p>'
    keys = legend([(_style(results, m), results.name(m), CURVES.get(m, "")) for m in models])
    note = '<p class="note">The axes of the IoU in stages 2 and 3 are the same, and enlarged against stage 1.</p>'
    return f'{keys}<div class="stages">{"".join(columns)}</div>{note if enlarged else ""}'


def _epoch_labels(count):
    every = max(1, -(-count // 6))
    round_ones = [x for x in range(every, count, every) if count - x >= 0.6 * every]
    return {x: str(x) for x in sorted({1, *round_ones, count})}


def routing_over_time(results):
    """MaxVio beside its noise floor, and the use of each expert, over the epochs that route."""
    routed = [e for e in results.epochs if number(e.get("max_violation")) is not None or numbers(e.get("usage"))]
    if not routed:
        return '<p class="gap">No epoch of the logs tells how the router balanced.</p>'
    bands, labels, start = [], {}, 0
    for stage in STAGES:
        count = sum(e.get("stage") == stage for e in routed)
        if count:
            bands.append((start + 0.5, start + count + 0.5, f"stage {stage}"))
            labels.update({start + x: text for x, text in _epoch_labels(count).items()})
            start += count
    points = list(enumerate(routed, 1))
    violation = line_chart("MaxVio over time", "MaxVio", "epoch of the stage", [
        Series("m-floor", "noise floor", [(x, number(e.get("noise_floor"))) for x, e in points], "dashed", area=True),
        Series("m-ensemble", "MaxVio", [(x, number(e.get("max_violation"))) for x, e in points])],
        x_labels=labels, bands=bands, zero=True)
    experts = max((len(e.get("usage") or []) for e in routed), default=0)
    shares = [numbers(e.get("usage")) or [] for e in routed]
    lines = [Series(f"e{k % 8}", results.name(f"expert_{k}"),
                    [(x, share[k] if k < len(share) else None) for x, share in enumerate(shares, 1)])
             for k in range(experts)]
    even = [Series("m-floor", "even", [(x, 1 / experts) for x, _ in points], "dashed")] if experts else []
    use = line_chart("Use of the experts over time", "share of choices", "epoch of the stage", even + lines,
                     x_labels=labels, bands=bands, zero=True)
    out = []
    if violation:
        keys = legend([("m-ensemble", "MaxVio", ""), ("m-floor", "noise floor of perfect balance", "dashed")])
        out.append(f"<div><h3>MaxVio <small>largest use over even use, minus 1</small></h3>{keys}{violation}</div>")
    else:
        out.append('<p class="gap">MaxVio is not in the logs.</p>')
    if use:
        keys = legend([(f"e{k % 8}", results.name(f"expert_{k}"), "") for k in range(experts)])
        share = f"{100 / experts:.0f} %"
        out.append(f"<div><h3>Use of each expert <small>dashed: even, {share}</small></h3>{keys}{use}</div>")
    else:
        out.append('<p class="gap">The use of the experts is not in the logs.</p>')
    return f'<div class="pair">{"".join(out)}</div>'
