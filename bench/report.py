"""``python -m bench.report results.json``: Markdown tables and pictures of what ``pytest bench`` measured.

results.json: of ``pytest bench --benchmark-json results.json``. Written beside it, or into ``--output``: report.md,
roofline.png and, if threads were measured, scaling.png.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.operands import ARRAYS

OURS = ("fastbn", "fastbn channels-last")
COLOURS = {
    "fastbn": "#d62728",
    "fastbn channels-last": "#ff9896",
    "PyTorch": "#1f77b4",
    "PyTorch channels-last": "#aec7e8",
    "PyTorch mkldnn": "#17becf",
    "onnxruntime": "#2ca02c",
    "NumPy": "#7f7f7f",
}
ROWS = ("network", "convolution", "block")  # what tells their rows apart
# Our row and the rival's, for the ratios that are claimed: (operation, mode, ours, theirs).
CLAIMS = [
    ("training", "as called", "fastbn", "PyTorch"),
    ("backward", "as called", "fastbn", "PyTorch"),
    ("inference", "as called", "fastbn", "PyTorch"),
    ("training + residual + ReLU", "as called", "fastbn", "PyTorch"),
    ("training", "output reused", "fastbn", "PyTorch"),
    ("backward", "output reused", "fastbn", "PyTorch"),
    ("training", "output reused", "fastbn channels-last", "PyTorch channels-last"),
    ("backward", "output reused", "fastbn channels-last", "PyTorch channels-last"),
    ("inference", "output reused", "fastbn", "PyTorch"),
    ("inference", "output reused", "fastbn channels-last", "PyTorch channels-last"),
    ("inference", "as called", "fastbn", "onnxruntime"),
    ("inference", "output reused", "fastbn", "onnxruntime"),
]


def read(path: Path) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows of batch norm, convolutions and blocks, flat: what it was, its median and minimum in seconds."""
    rows = []
    for entry in json.loads(path.read_text())["benchmarks"]:
        row = {**entry["extra_info"], "median": entry["stats"]["median"], "min": entry["stats"]["min"]}
        rows.append({**row, "shape": tuple(row.get("shape", ()))})
    batch_norms, convolutions, blocks = ([row for row in rows if kind in row] for kind in ROWS)
    return batch_norms, convolutions, blocks


def by_group(rows: list[dict]) -> dict[tuple, dict[str, dict]]:
    """(network, shape, operation, mode) to rival to row."""
    groups: dict[tuple, dict[str, dict]] = defaultdict(dict)
    for row in rows:
        groups[row["network"], row["shape"], row["operation"], row["mode"]][row["rival"]] = row
    return groups


Roofs = dict[tuple[tuple[int, ...], int], float]


def roofs(rows: list[dict]) -> Roofs:
    """Bytes a second of the fastest copy, for each shape and number of arrays."""
    best: Roofs = defaultdict(float)
    for row in rows:
        if row["operation"] == "copy":
            key = row["shape"], row["arrays"]
            best[key] = max(best[key], row["bytes"] / row["median"])
    return best


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def markdown(rows: list[dict]) -> str:
    measured = [row for row in rows if "threads" not in row]
    groups, roof = by_group(measured), roofs(measured)
    lines = ["# Batch norm beside its rivals", "", *claims(groups), "", *of_the_roof(groups, roof)]
    titles = dict.fromkeys((key[0], key[1][0], key[2], key[3]) for key in groups if key[2] != "copy")
    for network, batch, operation, mode in titles:
        part = {
            key[1]: group
            for key, group in groups.items()
            if (key[0], key[1][0], key[2], key[3]) == (network, batch, operation, mode)
        }
        names = [name for name in COLOURS if any(name in group for group in part.values())]
        lines += ["", f"## {network}, batch {batch}: {operation}, {mode}", ""]
        lines += ["Median milliseconds; bold is the fastest. Roof: our bytes a second over those of the best copy.", ""]
        lines += [f"| shape | {' | '.join(names)} | of the roof |", "|---" * (len(names) + 2) + "|"]
        for shape, group in part.items():
            fastest = min(row["median"] for row in group.values())
            cells = []
            for name in names:
                median = group[name]["median"] if name in group else None
                text = "-" if median is None else milliseconds(median)
                cells.append(f"**{text}**" if median == fastest else text)
            share = fraction(group.get("fastbn"), roof.get((shape, ARRAYS[operation])))
            lines.append(f"| {size(shape[1:])} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines) + "\n"


def convolutions(rows: list[dict]) -> str:
    """GFLOP/s of every convolution."""
    names = [name for name in COLOURS if any(row["rival"] == name for row in rows)]
    lines = ["# Convolutions beside PyTorch's", "", "GFLOP/s at the median time; bold is the fastest.", ""]
    lines += [f"| convolution | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        title = f"{row['convolution']}, {row['operation']}"
        groups[title][row["rival"]] = row["operations"] / row["median"] / 1e9
    for title, group in groups.items():
        best = max(group.values())
        texts = {name: f"**{speed:.0f}**" if speed == best else f"{speed:.0f}" for name, speed in group.items()}
        cells = [texts.get(name, "-") for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def training_blocks(rows: list[dict]) -> str:
    """Milliseconds of every block's training step, and how many times faster than the best of PyTorch."""
    names = list(dict.fromkeys(row["rival"] for row in rows))
    theirs = [name for name in names if name.startswith("PyTorch")]
    peak = max(rows[0]["peak"], rows[0]["matrix peak"])
    machine = f"the machine's {peak / 1e9:.0f} GFLOP/s and {rows[0]['bandwidth'] / 1e9:.0f} GB/s"
    lines = ["# Training steps of convolution, batch norm and ReLU", ""]
    lines += [f"Median milliseconds, batch 16; the limit is that of {machine}.", ""]
    lines += [
        f"| block | {' | '.join(names)} | limit | against PyTorch's best | batch norm and ReLU add | passes alone |",
        "|---" * (len(names) + 5) + "|",
    ]
    groups: dict[str, dict[str, dict]] = defaultdict(dict)
    for row in rows:
        groups[row["block"]][row["rival"]] = row
    ratios, added, moved = [], [], []
    for block, group in groups.items():
        cells = [milliseconds(group[name]["median"]) if name in group else "-" for name in names]
        own = group["fastbn"]["median"]
        ratios.append(min(group[name]["median"] for name in theirs if name in group) / own)
        alone = group["fastbn convolution"]["median"]
        added.append(own / alone)
        moved.append(1 + group["passes"]["median"] / alone)
        limit, beyond = milliseconds(group["fastbn"]["limit"]), f"{percent(added[-1])} | {percent(moved[-1])}"
        lines.append(f"| {block} | {' | '.join(cells)} | {limit} | {ratios[-1]:.2f} | {beyond} |")
    blanks = " | ".join([""] * (len(names) + 1))
    beyond = " | ".join(percent(geometric_mean(values)) for values in (added, moved))
    lines.append(f"| geometric mean | {blanks} | {geometric_mean(ratios):.2f} | {beyond} |")
    return "\n".join(lines) + "\n"


def percent(ratio: float) -> str:
    """What it is beyond 1."""
    return f"{100 * ratio - 100:.0f} %"


def fraction(row: dict | None, roof: float | None) -> str:
    return "-" if row is None or not roof else f"{row['bytes'] / row['median'] / roof:.2f}"


def claims(groups: dict[tuple, dict[str, dict]]) -> list[str]:
    """How many times faster, over the shapes of each network and batch."""
    lines = ["How many times faster: geometric mean over the shapes, the worst shape in parentheses.", ""]
    sets = list(dict.fromkeys((key[0], key[1][0]) for key in groups))
    lines += ["| | " + " | ".join(f"{network}, batch {batch}" for network, batch in sets) + " |"]
    lines += ["|---" * (len(sets) + 1) + "|"]
    for operation, mode, ours, theirs in CLAIMS:
        cells = []
        for network, batch in sets:
            ratios = [
                group[theirs]["median"] / group[ours]["median"]
                for key, group in groups.items()
                if (key[0], key[1][0]) == (network, batch)
                and key[2:] == (operation, mode)
                and ours in group
                and theirs in group
            ]
            cells.append(f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "-")
        lines.append(f"| {operation}, {mode}: {ours} against {theirs} | {' | '.join(cells)} |")
    return lines


def of_the_roof(groups: dict[tuple, dict[str, dict]], roof: Roofs) -> list[str]:
    """The share of the best copy's bandwidth for each operation on the largest input."""
    if not roof:
        return []
    shape = max((shape for shape, _ in roof), key=math.prod)
    lines = [f"The largest input, {size(shape)}, output reused; the roof is a copy in as many arrays:", ""]
    lines += ["| | roof, GB/s | of the roof | channels-last |", "|---|---|---|---|"]
    for key, group in groups.items():
        if key[1] == shape and key[3] == "output reused" and key[2] != "copy":
            copied = roof[shape, ARRAYS[key[2]]]
            cells = [f"{copied / 1e9:.0f}", *(fraction(group.get(name), copied) for name in OURS)]
            lines.append(f"| {key[2]} | {' | '.join(cells)} |")
    return lines


def draw_roofline(rows: list[dict], path: Path) -> None:
    """Bytes a second over the input's size, beside the roof: one panel an operation."""
    rows = [row for row in rows if "threads" not in row and row["mode"] == "output reused"]
    operations = [name for name in dict.fromkeys(row["operation"] for row in rows) if name != "copy"]
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), sharex=True, sharey=True, layout="constrained")
    for axis, operation in zip(axes.flat, operations, strict=False):
        roof = sorted(
            (4 * math.prod(shape) / 1e6, speed / 1e9)
            for (shape, arrays), speed in roofs(rows).items()
            if arrays == ARRAYS[operation]
        )
        axis.plot(*zip(*roof, strict=True), color="black", linewidth=1.5, label="roof: the best copy")
        for name, colour in COLOURS.items():
            points = sorted(
                (4 * math.prod(row["shape"]) / 1e6, row["bytes"] / row["median"] / 1e9)
                for row in rows
                if row["operation"] == operation and row["rival"] == name
            )
            if points:
                style = {"marker": "o" if name in OURS else "s", "markersize": 5, "linestyle": "none"}
                axis.plot(*zip(*points, strict=True), color=colour, label=name, **style)
        axis.set(title=operation, xscale="log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(True, which="both", alpha=0.25)
    axes[0, 0].set_ylim(bottom=0)  # shared; after all have been drawn
    for axis in axes[-1]:
        axis.set_xlabel("input, MB")
    for axis in axes[:, 0]:
        axis.set_ylabel("bytes that must move / time, GB/s")
    figure.suptitle(
        "Batch norm, output reused: bytes that must move over time, against the best copy in as much memory"
    )
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_scaling(rows: list[dict], path: Path) -> bool:
    """Bytes a second over threads; False if no threads were measured."""
    rows = [row for row in rows if "threads" in row]
    if not rows:
        return False
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex=True, sharey=True, layout="constrained")
    for axis, operation in zip(axes.flat, operations, strict=False):
        for name, colour in COLOURS.items():
            points = sorted(
                (row["threads"], row["bytes"] / row["median"] / 1e9)
                for row in rows
                if row["operation"] == operation and row["rival"] == name
            )
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker="o", label=name)
        axis.set_title(operation)
        axis.set_xscale("log", base=2)
        threads = sorted({row["threads"] for row in rows})
        axis.set_xticks(threads, list(map(str, threads)))
        axis.grid(True, alpha=0.25)
    axes[0, 0].set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("threads")
    for axis in axes[:, 0]:
        axis.set_ylabel("bytes that must move / time, GB/s")
    shape = rows[0]["shape"]
    figure.suptitle(f"Batch norm of {size(shape)} on more threads, output reused")
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path, help="of pytest bench --benchmark-json")
    parser.add_argument("-o", "--output", type=Path, help="folder to write into; that of the results otherwise")
    options = parser.parse_args()
    try:
        rows, convolution_rows, block_rows = read(options.results)
    except (OSError, ValueError, KeyError) as error:
        parser.exit(2, f"bench.report: results must be a file of pytest bench --benchmark-json, got {error!r}\n")
    folder = options.output or options.results.parent
    folder.mkdir(parents=True, exist_ok=True)
    written = ["report.md"]
    text = markdown(rows) if rows else ""
    if rows:
        draw_roofline(rows, folder / "roofline.png")
        written.append("roofline.png")
        written += ["scaling.png"] if draw_scaling(rows, folder / "scaling.png") else []
    if convolution_rows:
        text += convolutions(convolution_rows)
    if block_rows:
        text += training_blocks(block_rows)
    (folder / "report.md").write_text(text)
    print("written", *(folder / name for name in written))


if __name__ == "__main__":
    main()
