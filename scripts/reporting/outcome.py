"""What came out on the test sets: verdict, comparison, metrics table, routing by regime."""

from html import escape

from .charts import label, ticks
from .results import mapping, number, numbers

# Key in summary.json, column title, explanation, whether higher is better.
MAIN_METRICS = [
    ("mean_iou", "IoU", "mean over the images of intersection over union, mask at 0.5", True),
    ("smeasure", "S", "structure measure", True),
    ("emeasure_mean", "E", "enhanced alignment measure, mean over thresholds", True),
    ("wfmeasure", "wF", "weighted F-measure", True),
    ("fmeasure_mean", "F", "F-measure, mean over thresholds", True),
    ("dice_mean", "Dice", "Dice coefficient, mean over thresholds", True),
    ("mae", "MAE", "mean absolute error", False),
    ("ber_mean", "BER", "balanced error rate, mean over thresholds", False),
]
ERRORS = ("_error", "difference")


def fixed(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value, digits=3):
    if value is None:
        return "–"
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def percent(value):
    return "–" if value is None else f"{100 * value:.0f} %"


def style_of(results, model):
    """The style class that carries a model's colour."""
    index = results.expert_index(model)
    return f"e{index % 8}" if index is not None else f"m-{model}" if model in ("ensemble", "oracle") else "m-other"


def figure(dataset, model, key):
    return number(mapping(mapping(dataset.get("models")).get(model)).get(key))


def verdict(results, dataset):
    """The main result in words that the figures bear, as HTML: (headline, second sentence)."""
    best = dataset.get("best_expert")
    iou, difference = figure(dataset, "ensemble", "mean_iou"), figure(dataset, "ensemble", "difference")
    error = figure(dataset, "ensemble", "difference_error")
    if iou is None:
        return "There is no result for the routed ensemble.", ""
    headline = f"The routed ensemble reaches a mean IoU of <b>{fixed(iou)}</b>"
    name = escape(results.name(best))
    if difference is None:
        return headline + ".", "Its difference to the best expert is not given."
    pair = fixed(abs(difference)) + ("" if error is None else f" ± {fixed(error)}")
    if error is not None and abs(difference) <= 2 * error:
        side = f"{pair} {'above' if difference >= 0 else 'below'} its best expert, {name}: too close to call."
    else:
        side = f"{pair} {'above' if difference > 0 else 'below'} its best expert, {name}."
    rivals = {m: figure(dataset, m, "mean_iou") for m in ("dense", "uniform", "best_pair", "random_top2", "alone")}
    ahead = sorted((m for m, v in rivals.items() if v is not None and v >= iou), key=lambda m: -rivals[m])
    listed = " and ".join(filter(None, [", ".join(_quote(results, rivals, m) for m in ahead[:-1]),
                                        _quote(results, rivals, ahead[-1]) if ahead else ""]))
    if ahead:
        does = "does" if len(ahead) == 1 else "do"
        second = f"{listed} {does} as well or better"
        second += ": the gain is not due to the choice of experts alone." if difference > 0 else "."
        second = second[0].upper() + second[1:]
    elif any(v is not None for v in rivals.values()):
        nearest = max((m for m in rivals if rivals[m] is not None), key=lambda m: rivals[m])
        second = f"Next comes {_quote(results, rivals, nearest)}."
    else:
        second = ""
    return f"{headline}, {side}", second


def _quote(results, values, model):
    name = results.name(model)
    return f"the {escape(name[0].lower() + name[1:])} ({fixed(values[model])})"


def tiles(results, dataset):
    routing = mapping(dataset.get("routing"))
    usage = numbers(routing.get("usage"))
    information, chance = (number(routing.get(k)) for k in ("normalised_mutual_information", "information_chance_99"))
    out = []

    def tile(value, name, note):
        if value is not None:
            out.append(f'<div class="tile"><b>{value}</b><span>{name}</span><small>{note}</small></div>')

    def shown(value, text):
        return None if value is None else text(value)

    error = figure(dataset, "ensemble", "mean_iou_error")
    tile(shown(figure(dataset, "ensemble", "mean_iou"), fixed), "IoU, routed ensemble",
         "standard error " + fixed(error) if error is not None else "mean over images")
    error = figure(dataset, "ensemble", "difference_error")
    tile(shown(figure(dataset, "ensemble", "difference"), signed), "against the best expert",
         f"± {fixed(error)}, paired by image" if error is not None else "paired by image")
    tile(shown(figure(dataset, "oracle", "mean_iou"), fixed), "IoU, oracle",
         "the best expert of each image: the bound for any choice of one")
    if usage:
        least = min(range(len(usage)), key=lambda i: 1.0 if usage[i] is None else usage[i])
        tile(percent(usage[least]), "least used expert",
             f"{escape(results.name(f'expert_{least}'))}; an even share is {percent(1 / len(usage))}")
    note = "1 would be one expert for each regime"
    if chance is not None:
        note = f"shuffled labels stay below {fixed(chance)} in 99 of 100 draws"
    tile(shown(information, fixed), "mutual information of expert and regime", note)
    return f'<div class="tiles">{"".join(out)}</div>' if out else ""


def comparison(results, dataset):
    """A dot with its paired error for every model, from the best to the worst."""
    rows = [(m, figure(dataset, m, "mean_iou"), figure(dataset, m, "difference"),
             figure(dataset, m, "difference_error")) for m in mapping(dataset.get("models"))]
    rows = sorted((r for r in rows if r[1] is not None and r[2] is not None), key=lambda r: (r[0] != "oracle", -r[2]))
    if not rows:
        return '<p class="gap">No mean IoU with its difference to the best expert is given.</p>'
    marks = ticks(min(min(d - (e or 0) for _, _, d, e in rows), 0.0), max(d + (e or 0) for _, _, d, e in rows), 5)
    low, high = marks[0], marks[-1]

    def at(value):
        return f"{100 * (value - low) / (high - low):.2f}%"

    grid = "".join(f'<line class="{"zero" if abs(v) < 1e-12 else "grid"}" x1="{at(v)}" x2="{at(v)}" y1="0" y2="100%"/>'
                   for v in marks)
    out = ['<div class="dots"><div class="row head"><span></span><span></span><span>IoU</span>'
           '<span>difference</span></div>']
    for model, iou, difference, error in rows:
        best = model == dataset.get("best_expert")
        whisker = ""
        if error:
            ends = f'x1="{at(difference - error)}" x2="{at(difference + error)}"'
            whisker = f'<line class="whisker" {ends} y1="50%" y2="50%"/>'
        values = "best expert" if best else signed(difference) + (f"<i> ± {fixed(error)}</i>" if error else "")
        title = f"{results.name(model)}: {results.explanation(model)}"
        out.append(f'<div class="row {style_of(results, model)}" title="{escape(title)}">'
                   f'<span>{escape(results.name(model))}</span>'
                   f'<svg class="track" width="100%" height="26" aria-hidden="true">{grid}{whisker}'
                   f'<circle cx="{at(difference)}" cy="50%" r="5.5"/></svg><span>{fixed(iou)}</span>'
                   f'<span>{values}</span></div>')
    step = marks[1] - marks[0]
    signs = ["" if abs(v) < 1e-12 else "+" if v > 0 else "−" for v in marks]
    axis = "".join(f'<text x="{at(v)}" y="12">{sign + label(abs(v), step) if sign else "0"}</text>'
                   for v, sign in zip(marks, signs))
    out.append(f'<div class="row axis-row"><span></span><svg class="track" width="100%" height="34">{axis}'
               '<text class="axis" x="50%" y="30">IoU minus that of the best expert</text></svg>'
               "<span></span><span></span></div></div>")
    return "".join(out)


def table(results, dataset, metrics, caption):
    models = mapping(dataset.get("models"))
    columns = [m for m in metrics if any(figure(dataset, model, m[0]) is not None for model in models)]
    if not columns:
        return '<p class="gap">No metrics are given.</p>'
    best = {}
    for key, _, _, higher in columns:
        values = [figure(dataset, model, key) for model in models if model != "oracle"]
        values = [round(v, 3) for v in values if v is not None]
        best[key] = (max if higher else min)(values) if values else None
    head = "".join(f'<th scope="col" title="{escape(text)}, {"higher" if up else "lower"} is better">{escape(title)}'
                   f' <span class="arrow">{"↑" if up else "↓"}</span></th>' for _, title, text, up in columns)
    body = []
    for model in results.ordered(models):
        cells = []
        for key, *_ in columns:
            value = figure(dataset, model, key)
            mark = value is not None and model != "oracle" and round(value, 3) == best[key]
            cells.append(f'<td{" class=best" if mark else ""}>{fixed(value)}</td>')
        body.append(f'<tr class="{style_of(results, model)}">'
                    f'<th scope="row" title="{escape(results.explanation(model))}"><i class="chip"></i>'
                    f'{escape(results.name(model))}</th>{"".join(cells)}</tr>')
    return (f'<p class="caption">{caption}</p><div class="scroll"><table class="metrics"><thead><tr>'
            f'<th scope="col">Model</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>')


def all_metrics(dataset):
    """Every other metric that a model has, as columns like those of MAIN_METRICS."""
    known = {key for key, *_ in MAIN_METRICS}
    found = {key for model in mapping(dataset.get("models")).values() for key in mapping(model)}
    rest = sorted(key for key in found - known if not any(part in key for part in ERRORS))
    return [(key, key.replace("_", " "), key, not key.startswith(("mae", "ber"))) for key in rest]


def heat_map(row_names, columns, values, text, low, high, caption, bold_best=False):
    """A table of numbers on colour. columns: [(style class, name)]; values[row][column], None where missing."""
    head = "".join(f'<th scope="col" class="{style}"><i class="chip"></i>{escape(name)}</th>'
                   for style, name in columns)
    body = []
    for name, row in zip(row_names, values):
        row = list(row or [])[:len(columns)]
        row += [None] * (len(columns) - len(row))
        top = max((v for v in row if v is not None), default=None)
        cells = []
        for (_, column), value in zip(columns, row):
            if value is None:
                cells.append('<td class="none">–</td>')
                continue
            depth = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0
            kind = "deep" if depth > 0.8 else "pale"
            shown = f"<b>{text(value)}</b>" if bold_best and value == top else text(value)
            cells.append(f'<td class="{kind}" style="--v:{0.06 + 0.9 * depth:.3f}" '
                         f'title="{escape(name)}, {escape(column)}: {value:.3f}">{shown}</td>')
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (f'<div><p class="caption">{caption}</p><table class="heat"><thead><tr><td></td>{head}</tr></thead>'
            f'<tbody>{"".join(body)}</tbody></table></div>')


def by_regime(results, dataset):
    """Which experts the router uses in which regime, beside how well each does there."""
    routing = mapping(dataset.get("routing"))
    experts = [(f"e{i % 8}", name) for i, name in enumerate(results.experts)]
    out = []
    usage = [numbers(row) for row in routing.get("usage_by_regime") or []]
    if any(usage) and experts:
        names = [results.regime(i) for i in range(len(usage))]
        overall = numbers(routing.get("usage"))
        if overall:
            names, usage = [*names, "all"], [*usage, overall]
        top = max(v for row in usage if row for v in row if v is not None)
        out.append(heat_map(names, experts, usage, percent, 0.0, max(top, 2 / len(experts)),
                            f"<b>Share of the router’s choices.</b> Even: {percent(1 / len(experts))}."))
    else:
        out.append('<p class="gap">The routing by regime is not given.</p>')
    scores = mapping(dataset.get("iou_by_regime"))
    models = [m for m in results.ordered(scores) if results.expert_index(m) is not None or m == "ensemble"]
    columns = {m: numbers(scores[m]) or [] for m in models}
    rows = max((len(c) for c in columns.values()), default=0)
    if rows:
        values = [[columns[m][i] if i < len(columns[m]) else None for m in models] for i in range(rows)]
        known = [v for row in values for v in row if v is not None]
        heads = [(style_of(results, m), results.name(m)) for m in models]
        out.append(heat_map([results.regime(i) for i in range(rows)], heads, values, fixed, min(known), max(known),
                            "<b>Mean IoU.</b> Bold: the best of the row.", bold_best=True))
    else:
        out.append('<p class="gap">The IoU by regime is not given.</p>')
    notes = []
    violation, floor = number(routing.get("max_violation")), number(routing.get("noise_floor"))
    if violation is not None:
        beside = f" (noise floor {fixed(floor, 2)})" if floor is not None else ""
        notes.append(f"MaxVio {fixed(violation, 2)}{beside}")
    if number(routing.get("entropy")) is not None:
        notes.append(f"entropy of the gates {fixed(number(routing['entropy']), 2)} nats")
    dead = [results.name(f"expert_{i}") for i in routing.get("dead") or []]
    if dead:
        notes.append("never used: " + escape(", ".join(dead)))
    elif isinstance(routing.get("dead"), list):
        notes.append("every expert is used")
    note = f'<p class="note">{"; ".join(notes)}.</p>' if notes else ""
    return f'<div class="pair">{"".join(out)}</div>{note}'
