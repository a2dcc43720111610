"""The report of ``python -m export`` as one HTML file that needs nothing else: no script, no network."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.report.charts import Group, Point, bars, errors_by_layer
from export.report.elements import section, table, text
from export.report.page import page
from export.report.statistics_section import statistics_section
from export.report.text import ERRORS, SiteErrors, against_float64, error_texts, judgement, remarks, site_errors
from fastbn._files import replacing
from fastbn._tables import printable

AGAINST = {"fastbn": "the fastbn model", "unfolded": "the unfolded model"}
RUNTIMES = {"latency_ms": "onnxruntime as it comes", "latency_unoptimised_ms": "optimisations off"}
REASONS = 10  # listed of why batch norms stayed, the commonest first
ARROW = " \N{RIGHTWARDS ARROW} "
NAMED = re.compile(r"\b([A-Z]\w+) [^\s;:,]*[/.\d_][^\s;:,]*")  # an operator and the name of its node
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def write_html(report: dict[str, Any], path: str | Path) -> None:
    """Write ``html_page(report)`` to ``path``, whole or not at all. Raises ModelError where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(html_page(report), encoding="utf-8")


def html_page(report: dict[str, Any]) -> str:
    """The command's report as a page: verdict, figures, errors, latency, size, and a row for each batch norm.

    report: what the command prints as JSON. Every name in it is shown as text, whatever it holds.
    """
    title = f"{_name(report.get('source')) or 'fastbn'} \N{RIGHTWARDS ARROW} {_name(report['output']) or 'not written'}"
    sections = [
        *_heading(title, report),
        *_remarks(report),
        *_figures(report),
        *_kept(report),
        *_errors(report),
        *_latency(report),
        *_size(report),
        *statistics_section(report),
        *_sites(report),
        f"<footer>{text(_versions())}</footer>",
    ]
    return page(text(title), "\n".join(sections))


def _heading(title: str, report: dict[str, Any]) -> Iterator[str]:
    yield f"<header><h1>{text(title)}</h1>"
    proofs = _proofs(report)
    if not proofs:
        yield '<p class="verdict">Nothing was written, so there is nothing to prove.</p></header>'
    else:
        colour, mark = ("good", "\N{CHECK MARK}") if report["ok"] else ("bad", "\N{BALLOT X}")
        said = judgement(proofs, proofs[0]["tolerance"])
        said = f"Verified: {said}" if report["ok"] else said
        yield f'<p class="verdict {colour}">{mark} {text(said)}.</p>'
        yield f'<p class="note">{text(" ".join(_tried(report, proofs)))}</p></header>'


def _tried(report: dict[str, Any], proofs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the verdict rests on, in sentences."""
    figures = proofs[-1]
    sets, judged = figures.get("inputs"), figures.get("judged")
    given = report.get("inputs")
    if given:
        left_out = f" ({given['left_out']:,} left out)" if given["left_out"] else ""
        yield f"Tried on {given['samples']:,} samples of {given['data']}{left_out}."
    elif sets:
        yield f"Tried on {sets} sets of inputs, random and difficult ones."
    if sets:
        yield f"The right answer, in float64, is known for {'all' if judged == sets else judged or 'none'} of them."


def _remarks(report: dict[str, Any]) -> Iterator[str]:
    found = remarks(report)
    if found:
        items = "".join(f"<li><b>{text(label)}</b> {text(said)}</li>" for label, said in found)
        yield f'<ul class="remarks">{items}</ul>'


def _figures(report: dict[str, Any]) -> Iterator[str]:
    cards = []
    fold = report["fold"]
    if fold is not None:
        gone = sum(site["into"] is not None for site in fold["sites"])
        cards.append(("batch norms folded", f"{gone:,} of {len(fold['sites']):,}" if fold["sites"] else "none to fold"))
        before, after = fold["before"], fold["after"]
        cards.append(("nodes", _change(before["nodes"], after["nodes"], "{:,}".format)))
        cards.append(("size of the weights", _change(before["bytes"], after["bytes"], _bytes)))
    for name, figures in report["verify"].items():
        if figures is not None:
            cards.append((f"largest relative difference from {AGAINST[name]}", f"{figures['max_rel']:.1e}"))
            errors = against_float64(figures)
            if all(errors):
                cards.append(("error of the source and of the folded model, against float64", ARROW.join(errors)))
    faster = {
        label: f"{figures['unfolded'] / figures['folded']:.2f}\N{MULTIPLICATION SIGN}"
        for key, label in RUNTIMES.items()
        if "folded" in (figures := report.get(key) or {})
    }
    if faster:
        cards.append((f"speed-up, {' and '.join(faster)}", ", ".join(faster.values())))
    items = "".join(f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd></div>" for label, value in cards)
    yield f'<dl class="cards">{items}</dl>'


def _change(before: float, after: float, figure: Callable[[float], str]) -> str:
    return figure(after) if before == after else ARROW.join((figure(before), figure(after)))


def _kept(report: dict[str, Any]) -> Iterator[str]:
    sites = [] if report["fold"] is None else report["fold"]["sites"]
    reasons = Counter(NAMED.sub(r"\1", site["reason"]) for site in sites if site["into"] is None)
    if reasons:
        common = reasons.most_common(REASONS)
        items = "".join(f"<li><b>{count:,}</b> {text(reason)}</li>" for reason, count in common)
        if len(reasons) > REASONS:
            items += f"<li>and {len(reasons) - REASONS:,} reasons more, in the table of batch norms</li>"
        yield f"<section><h2>Why {sum(reasons.values()):,} stayed</h2><ul>{items}</ul></section>"


def _errors(report: dict[str, Any]) -> Iterator[str]:
    layers = site_errors(report)
    if layers:
        judged = any(source is not None for _, source, _ in layers.values())
        points = [
            Point(printable(name), source, folded if judged else difference)
            for name, (difference, source, folded) in layers.items()
        ]
        title = "Error at each batch norm"
        note = f"Largest difference from {'float64' if judged else 'the source'}, relative to the largest value there; "
        note += "above the dashed line a model is wrong, unless its source is as far off."
        yield section(
            title, note, (LEGEND_MARKS if judged else "") + errors_by_layer(title, points, _tolerance(report))
        )
    rows = [
        (output["output"], AGAINST[name], f"{output['max_abs']:.1e}", *error_texts(_errors_of(output)))
        for name, figures in report["verify"].items()
        if figures is not None
        for output in figures["outputs"]
    ]
    if rows:
        yield section(
            "Outputs",
            "",
            table(("output", "against", "absolute difference", "relative difference", *ERRORS[1:]), rows),
        )


def _proofs(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [figures for figures in report["verify"].values() if figures is not None]


def _tolerance(report: dict[str, Any]) -> float | None:
    return max((figures["tolerance"] for figures in _proofs(report)), default=None)


def _errors_of(output: dict[str, Any]) -> SiteErrors:
    return output["max_rel"], output.get("reference_error"), output.get("candidate_error")


def _latency(report: dict[str, Any]) -> Iterator[str]:
    groups = [_group(label, report[key]) for key, label in RUNTIMES.items() if report.get(key)]
    if groups:
        title = "Latency"
        yield section(
            title, "Median of one run on this machine's CPU, batch 1.", LEGEND + bars(title, groups, shared=True)
        )


def _group(label: str, milliseconds: dict[str, float]) -> Group:
    before, *after = milliseconds.values()
    return Group(label, before, after[0] if after else None, lambda value: f"{value:.3g} ms")


def _size(report: dict[str, Any]) -> Iterator[str]:
    fold = report["fold"]
    if fold is not None:
        groups = [
            Group(
                key, fold["before"][key], fold["after"][key], _bytes if key == "bytes" else lambda count: f"{count:,}"
            )
            for key in ("nodes", "parameters", "bytes")
        ]
        note = "Parameters and bytes are those of the stored weights, running statistics included."
        yield section("Size", note, LEGEND + bars("Size", groups, shared=False))


def _sites(report: dict[str, Any]) -> Iterator[str]:
    if report["fold"] is None:
        return
    sites, layers = report["fold"]["sites"], site_errors(report)
    if not sites:
        yield "<section><h2>Batch norms</h2><p>The model has none.</p></section>"
        return
    columns = ("batch norm", "operators", "fate", "where, or why not", "how", *ERRORS)
    decomposed = any(site.get("operators", "BatchNormalization") != "BatchNormalization" for site in sites)
    rows = [_site(site, layers.get(site["batch_norm"]), decomposed) for site in sites]
    wrong = {site["layer"] for figures in _proofs(report) for site in figures.get("sites", ()) if not site["ok"]}
    marks = ["bad" if s["batch_norm"] in wrong else "kept" if s["into"] is None else "" for s in sites]
    yield section("Batch norms", "", table(columns, rows, marks))


def _site(site: dict[str, Any], errors: SiteErrors | None, decomposed: bool) -> tuple[str, ...]:
    gone = site["into"] is not None
    return (
        site["batch_norm"],
        site.get("operators", "BatchNormalization") if decomposed else "",
        "folded" if gone else "kept",
        site["into"] if gone else site["reason"],
        site.get("how") or "",
        *error_texts(errors),
    )


LEGEND = '<p class="legend"><i class="before"></i> before <i class="after"></i> after</p>'
LEGEND_MARKS = (
    '<p class="legend"><i class="before round"></i> the source <i class="after turned"></i> the folded model</p>'
)


def _name(path: str | None) -> str:
    return "" if path is None else Path(path).name


def _bytes(count: float) -> str:
    """Bytes in decimal units, three digits."""
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {UNITS[power]}"


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("onnx", "onnx-ir", "onnxruntime"))
