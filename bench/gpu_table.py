"""Tables of the benchmarks bench_gpu_*: one a group, each case with its byte floor and LibTorch's time.

    python bench/gpu_table.py bench/results/gpu_routing.json
    python bench/gpu_table.py --trim FILE      also drops from the file what says nothing about the GPU
"""

import json
import sys

CONTEXT = ("date", "device", "multiprocessors", "commit", "libtorch", "copy_bandwidth_GBs", "bfloat16_TFLOPs")
FIELDS = ("name", "real_time", "time_unit", "bytes", "floor_us", "peak_MB", "tflops",
          "images_per_second", "error_occurred", "error_message")


def parse(name):
    """'plan/N:64/E:6/by:kernel/...' -> ('plan', 'N 64, E 6', 'kernel')."""
    group, *parts = name.split("/")
    fields = dict(part.split(":", 1) for part in parts if ":" in part)
    fields.pop("iterations", None)
    by = fields.pop("by")
    return group, ", ".join(f"{key} {value}" for key, value in fields.items()), by


def number(value):
    if value is None:
        return ""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def print_dispatchers(group, cases, report):
    """A column a row of the case, in ms, with TFLOP/s and peak MB; ratios to the bound where there is one."""
    columns = list(dict.fromkeys(by for row in cases.values() for by in row))
    ceiling = float(report["context"].get("bfloat16_TFLOPs", 0))
    bounds = [by for by in columns if by.startswith("bound")]
    ratios = [(by, "bound_graph" if by.endswith("_graph") else "bound") for by in columns
              if by.startswith(("grouped", "skewed"))] if bounds else []
    if {"skewed_graph", "grouped_graph"} <= set(columns):
        ratios.append(("skewed_graph", "grouped_graph"))
    head = (["case"] + [f"{by} ms" for by in columns] + [f"{by} / {bound}" for by, bound in ratios] +
            ["grouped TFLOP/s", "of the ceiling"] + [f"{by} peak MB" for by in columns if not by.endswith("_graph")])
    print(f"\n### {group}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for case, row in cases.items():
        time = {by: entry["real_time"] / 1e3 for by, entry in row.items() if not entry.get("error_occurred")}
        rate = max((row[by]["tflops"] for by in ("grouped", "grouped_graph") if by in time), default=0)
        cells = [case] + [f"{time[by]:.3f}" if by in time else "" for by in columns]
        cells += [f"{time[by] / time[bound]:.2f}" if by in time and bound in time else "" for by, bound in ratios]
        cells += [number(rate), f"{100 * rate / ceiling:.0f} %" if ceiling else ""]
        cells += [number(row[by]["peak_MB"]) if by in time else "" for by in columns if not by.endswith("_graph")]
        print(f"| {' | '.join(cells)} |")


def print_models(group, cases):
    """Images per second of each row of a case, times over the dense mixture's, and peak MB."""
    columns = list(dict.fromkeys(by for row in cases.values() for by in row))
    head = (["case"] + [f"{by} images/s" for by in columns] + [f"time {by} / dense" for by in columns if by != "dense"] +
            [f"{by} peak MB" for by in columns])
    print(f"\n### {group}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for case, row in cases.items():
        time = {by: entry["real_time"] for by, entry in row.items() if not entry.get("error_occurred")}
        cells = [case] + [number(row[by]["images_per_second"]) if by in time else "" for by in columns]
        cells += [f"{time[by] / time['dense']:.2f}" if {by, "dense"} <= time.keys() else "" for by in columns if by != "dense"]
        cells += [number(row[by]["peak_MB"]) if by in time else "" for by in columns]
        print(f"| {' | '.join(cells)} |")


def trimmed(report):
    return {"context": {key: report["context"][key] for key in CONTEXT if key in report["context"]},
            "benchmarks": [{key: entry[key] for key in FIELDS if key in entry} for entry in report["benchmarks"]]}


def print_tables(report):
    groups = {}
    for entry in report["benchmarks"]:
        group, case, by = parse(entry["name"])
        row = groups.setdefault(group, {}).setdefault(case, {})
        row[by] = entry
    print(", ".join(f"{key} {value}" for key, value in report["context"].items() if key in CONTEXT))
    for group, cases in groups.items():
        if any("dense" in row for row in cases.values()):
            print_models(group, cases)
            continue
        if not any("kernel" in row or "libtorch" in row for row in cases.values()):
            print_dispatchers(group, cases, report)
            continue
        cases = {case: {by: None if entry.get("error_occurred") else entry["real_time"] for by, entry in row.items()} |
                 {"floor": next(iter(row.values())).get("floor_us")} for case, row in cases.items()}
        eager = any("kernel_eager" in row for row in cases.values())
        head = ["case", "µs", "floor µs", "floor / time", "LibTorch µs", "times faster"] + ["eager µs"] * eager
        print(f"\n### {group}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for case, row in cases.items():
            time, floor, libtorch = row.get("kernel"), row["floor"], row.get("libtorch")
            cells = [case, number(time), number(floor), f"{100 * floor / time:.0f} %" if time else "",
                     number(libtorch), f"{libtorch / time:.1f}" if time and libtorch else ""]
            print(f"| {' | '.join(cells + [number(row.get('kernel_eager'))] * eager)} |")


def main(*arguments):
    path = arguments[-1]
    with open(path) as file:
        report = json.load(file)
    if "--trim" in arguments:
        report = trimmed(report)
        with open(path, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
    print_tables(report)


if __name__ == "__main__":
    main(*sys.argv[1:])
