"""Pictures with ground truth, prediction, errors and the experts that the router chose."""

import base64
from html import escape

from .results import number, numbers

SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def picture(results, path):
    """A picture of the folder as a data URI, or None with the reason noted."""
    folder = results.folder.resolve()
    file = (folder / str(path or "")).resolve()
    if not path or folder not in file.parents or not file.is_file():
        results.missing.append(f"Picture {path or '(no name)'}: not found in the folder of the report.")
        return None
    content = file.read_bytes()
    kind = next((k for signature, k in SIGNATURES.items() if content.startswith(signature)), None)
    if kind is None:
        results.missing.append(f"Picture {path}: not a PNG or JPEG file.")
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _tile(uri, name, caption):
    inner = '<span class="none">missing</span>'
    if uri:
        inner = f'<img src="{uri}" alt="{escape(caption)} of {escape(name)}">'
    return f"<figure>{inner}<figcaption>{caption}</figcaption></figure>"


def _errors(truth, prediction):
    """Hits white, misses green, false alarms magenta: truth and prediction as coloured light, added up."""
    if not truth or not prediction:
        return _tile(None, "", "errors")
    return ('<figure><div class="errors" role="img" aria-label="hits, misses and false alarms">'
            f'<i class="miss" style="background-image:url({truth}),linear-gradient(#0f0,#0f0)"></i>'
            f'<i class="alarm" style="background-image:url({prediction}),linear-gradient(#f0f,#f0f)"></i></div>'
            "<figcaption>errors</figcaption></figure>")


def _card(results, sample, tag):
    name = str(sample.get("name", ""))
    image, truth, prediction = (picture(results, sample.get(k)) for k in ("image", "truth", "prediction"))
    iou = number(sample.get("iou"))
    chosen = [k for k in sample.get("experts") or [] if isinstance(k, int) and k >= 0]
    weights = numbers(sample.get("weights")) or [None] * len(chosen)
    bars = []
    for expert, weight in sorted(zip(chosen, weights), key=lambda pair: -(pair[1] or 0)):
        label = escape(results.name(f"expert_{expert}"))
        share = 0 if weight is None else 100 * min(max(weight, 0), 1)
        shown = "–" if weight is None else f"{weight:.2f}"
        bars.append(f'<div class="weight e{expert % 8}" title="{label}: weight {shown}"><span>{label}</span>'
                    f'<i><b style="width:{share:.1f}%"></b></i><span>{shown}</span></div>')
    routing = "".join(bars) or '<p class="gap">no routing given</p>'
    badge = f'<span class="badge">{tag}</span>' if tag else ""
    return (f'<article class="card" title="{escape(name)}"><div class="views">{_tile(image, name, "image")}'
            f'{_tile(truth, name, "truth")}{_tile(prediction, name, "prediction")}{_errors(truth, prediction)}</div>'
            f'<div class="below"><p class="iou"><b>{"–" if iou is None else f"{iou:.2f}"}</b> IoU{badge}</p>'
            f'<div class="weights">{routing}</div></div></article>')


def gallery(results, dataset_name):
    """The samples of a data set, a block a regime, the best first."""
    samples = [s for s in results.samples if s.get("dataset", dataset_name) == dataset_name]
    if not samples:
        return ""
    scored = [s for s in samples if number(s.get("iou")) is not None]
    tags = {}
    if len(scored) > 1:
        tags[id(min(scored, key=lambda s: s["iou"]))] = "worst shown"
        tags[id(max(scored, key=lambda s: s["iou"]))] = "best shown"
    blocks = []
    order = sorted({s.get("regime") if isinstance(s.get("regime"), int) else -1 for s in samples})
    for regime in order:
        group = [s for s in samples if (s.get("regime") if isinstance(s.get("regime"), int) else -1) == regime]
        group.sort(key=lambda s: -(number(s.get("iou")) or 0))
        cards = "".join(_card(results, s, tags.get(id(s), "")) for s in group)
        blocks.append(f'<section class="regime"><h3>{escape(results.regime(regime))}</h3>'
                      f'<div class="cards">{cards}</div></section>')
    absent = [name for i, name in enumerate(results.regimes) if i not in order]
    note = f'<p class="gap">No picture of: {escape(", ".join(absent))}.</p>' if absent else ""
    return "".join(blocks) + note
