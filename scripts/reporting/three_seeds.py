"""A table in Markdown from the summary.json of several seeds: python3 three_seeds.py SUMMARY..."""

import json
import sys

WAYS = [("alone", "an expert of stage 1 trained alone"), ("uniform", "uniform mean of all"),
        ("random_top2", "random top-2"), ("dense", "gated mean of all"), ("best_pair", "best fixed pair"),
        ("oracle", "oracle, best expert per picture"), ("ensemble", "routed ensemble")]


def row(name, mean, cells):
    return f"| {name} | {mean} | " + " | ".join(cells) + " |"


def main(paths):
    summaries = [json.load(open(path)) for path in paths]
    sets = [next(iter(summary["datasets"].values())) for summary in summaries]
    lines = [row("mean IoU at 0.5", "mean", [f"seed {summary['seed']}" for summary in summaries]),
             "|---|" + "---|" * (len(sets) + 1)]
    best = [data["models"][data["best_expert"]]["mean_iou"] for data in sets]
    lines.append(row("best expert on validation", f"{sum(best) / len(best):.3f}", [f"{value:.3f}" for value in best]))
    for key, name in WAYS:
        models = [data["models"].get(key) for data in sets]
        if any(model is None for model in models):
            continue
        mean = sum(model["mean_iou"] for model in models) / len(models)
        gain = sum(model["difference"] for model in models) / len(models)
        lines.append(row(name, f"{mean:.3f} ({gain:+.3f})",
                         [f"{m['mean_iou']:.3f} ({m['difference']:+.3f} ± {m['difference_error']:.3f})" for m in models]))
    routing = [data["routing"] for data in sets]
    lines.append(row("use per expert", "", [", ".join(f"{use:.2f}" for use in r["usage"]) for r in routing]))
    lines.append(row("MaxVio (noise floor)", "", [f"{r['max_violation']:.2f} ({r['noise_floor']:.2f})" for r in routing]))
    lines.append(row("mutual information (99 % of shuffles)", "",
                     [f"{r['normalised_mutual_information']:.3f} ({r['information_chance_99']:.3f})" for r in routing]))
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
