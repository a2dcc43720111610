"""``python -m bench.fold_peers``: folding tools on the patterns of the tests, the light models and exported networks.

"folded": a model whose batch norms, decomposed ones too, are gone and whose answer is right. "wrong": an output is
off by more than its type allows, and by more than 20 times what the model as it was is. "failed": the tool did not
end, crashed or raised, or onnxruntime does not take its result. Errors are those of onnxruntime without optimisations
against float64, relative to the largest output. Tools that are not installed are left out.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from bench.fold_tools import Outcome, Tool, installed
from bench.light import LIGHT, reseeded
from bench.light import light as light_model

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from fold_patterns import PATTERNS
from onnx_models import random_feeds
from referee import truth


@dataclass
class Case:
    """A model, inputs, its outputs in float64, and how many nodes may be left (None: not said)."""

    suite: str
    name: str
    model: onnx.ModelProto
    feeds: list[dict[str, np.ndarray]]
    tolerance: float
    options: dict
    foldable: bool
    nodes: int | None = None

    @property
    def want(self) -> list[list[np.ndarray]]:
        return [truth(self.model, feeds) for feeds in self.feeds]


def patterns() -> Iterator[Case]:
    for pattern in PATTERNS.values():
        if not pattern.runs:
            continue
        model = pattern.model()
        feeds = [pattern.feeds(model, seed) for seed in (0, 1, None)]
        answers = [len(answer.split()) for answer in pattern.left.split("|")] if pattern.left else [None]
        nested = any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute)
        most = None if nested or model.functions else max(answers)
        gone = pattern.fate == "gone"
        tolerance = max(10 * pattern.within, 1e-4)
        yield Case("patterns", pattern.name, model, feeds, tolerance, pattern.options, gone, most)


def light() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for name, (_, left) in LIGHT.items():
        for suffix, model in (("", light_model(name)), (", random weights", reseeded(name))):
            yield Case("light", name + suffix, model, [random_feeds(model, rng)], 1e-4, {}, not left)


def networks() -> Iterator[Case]:
    if not importlib.util.find_spec("torch"):
        return
    from bench import zoo

    rng = np.random.default_rng(0)
    for name, network in zoo.NETWORKS.items():
        model = zoo.exported(name)
        yield Case("networks", name, model, [random_feeds(model, rng)], 1e-4, {}, not network.left)


SUITES = {"patterns": patterns, "light": light, "networks": networks}


def error(got: list[list[np.ndarray]], want: list[list[np.ndarray]]) -> float:
    """The largest difference relative to an output's largest finite value; infinite where shapes or NaNs differ."""
    worst = 0.0
    for one, other in zip(got, want, strict=True):
        for a, b in zip(one, other, strict=True):
            finite = np.isfinite(b)
            if a.shape != b.shape or not np.array_equal(np.isfinite(a), finite):
                return float("inf")
            if finite.any():
                gap = np.abs(a.astype(np.float64)[finite] - b[finite]).max()
                worst = max(worst, float(gap / max(np.abs(b[finite]).max(), 1e-30)))
    return worst


def judged(case: Case, outcome: Outcome, want: list[list[np.ndarray]], original: float) -> dict:
    if outcome.failure:
        return {"failed": outcome.failure}
    off = error(outcome.outputs, want)
    left = outcome.operators.count("BatchNormalization")
    wrong = off > max(case.tolerance, 20 * original)
    few = case.nodes is None or len(outcome.operators) <= case.nodes
    return {
        "left": left,
        "nodes": len(outcome.operators),
        "error": off,
        "wrong": wrong,
        "folded": bool(case.foldable and not left and few and not wrong),
        "seconds": outcome.seconds,
    }


def measure(suites: list[str], names: list[str], console: Console) -> list[dict]:
    """One record for each model: its suite, name and what every tool made of it."""
    tools = {name: Tool(name) for name in ("unchanged", *names)}
    records = []
    for suite in suites:
        for case in SUITES[suite]():
            want = case.want
            before = tools["unchanged"](case.model, case.feeds, {})
            original = error(before.outputs, want)
            record = {"suite": suite, "model": case.name, "foldable": case.foldable, "error": original}
            record["batch_norms"] = before.operators.count("BatchNormalization")
            for name in names:
                outcome = tools[name](case.model, case.feeds, case.options if name == "fastbn" else {})
                record[name] = judged(case, outcome, want, original)
            records.append(record)
            console.print(f"{suite}: {case.name}", style="dim")
    for tool in tools.values():
        tool.stop()
    return records


def totals(records: list[dict], tool: str) -> dict:
    """Sums over the records of a suite."""
    outcomes = [record[tool] for record in records]
    done = [outcome for outcome in outcomes if "failed" not in outcome]
    right = [outcome["error"] for outcome in done if not outcome["wrong"]]
    return {
        "folded": sum(outcome["folded"] for outcome in done),
        "left": sum(outcome["left"] for outcome in done),
        "wrong": sum(outcome["wrong"] for outcome in done),
        "failed": len(outcomes) - len(done),
        "error": max(right, default=float("nan")),
        "seconds": sum(outcome["seconds"] for outcome in done),
    }


def tables(records: list[dict], names: list[str]) -> Iterator[Table]:
    for suite in dict.fromkeys(record["suite"] for record in records):
        chosen = [record for record in records if record["suite"] == suite]
        foldable, norms = sum(r["foldable"] for r in chosen), sum(r["batch_norms"] for r in chosen)
        table = Table(title=f"{suite}: {len(chosen)} models, {foldable} wholly foldable, {norms} batch norms")
        for column in ("", "folded", "batch norms left", "wrong", "failed", "error of the others", "seconds"):
            table.add_column(column, justify="right" if column else "left")
        for name in names:
            sums = totals(chosen, name)
            counts = [str(sums[key]) for key in ("folded", "left", "wrong", "failed")]
            table.add_row(name, *counts, f"{sums['error']:.0e}", f"{sums['seconds']:.2f}")
        yield table
        if suite != "patterns":
            yield detail(suite, chosen, names)


def detail(suite: str, records: list[dict], names: list[str]) -> Table:
    table = Table(title=f"{suite}: batch norms left")
    for column in ("", "before", *names):
        table.add_column(column, justify="right" if column else "left")
    for record in records:
        cells = []
        for name in names:
            outcome = record[name]
            cells.append("failed" if "failed" in outcome else f"{outcome['left']}{' wrong' * outcome['wrong']}")
        table.add_row(record["model"], str(record["batch_norms"]), *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("suites", nargs="*", default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--tools", nargs="+", default=[name for name in installed() if name != "unchanged"])
    parser.add_argument("--json", action="store_true", help="every figure as JSON, for standard output")
    options = parser.parse_args()
    records = measure(options.suites, options.tools, Console(stderr=True, quiet=not sys.stderr.isatty()))
    if options.json:
        json.dump(records, sys.stdout, indent=1)
        return
    for table in tables(records, options.tools):
        Console().print(table)


if __name__ == "__main__":
    main()
