"""The report of ``python -m export`` as one HTML file that needs nothing else: no script, no network."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.report.charts import Group, Point, bars, errors_by_layer
from export.report.page import page
from export.report.table import printable
from export.report.text import ERRORS, SiteErrors, error_texts, judgement, remarks, site_errors
from fastbn._files import replacing

AGAINST = {"fastbn": "the fastbn model", "unfolded": "the unfolded model"}
RUNTIMES = {"latency_ms": "onnxruntime as it comes", "latency_unoptimised_ms": "optimisations off"}
REASONS = 10  # listed of why batch norms stayed, the commonest first
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
        *_sites(report),
        f"<footer>{_text(_versions())}</footer>",
    ]
    return page(_text(title), "\n".join(sections))


def _heading(title: str, report: dict[str, Any]) -> Iterator[str]:
    yield f"<header><h1>{_text(title)}</h1>"
    proofs = [figures for figures in report["verify"].values() if figures is not None]
    if not proofs:
        yield '<p class="verdict">Nothing was written, so there is nothing to prove.</p></header>'
    else:
        colour, mark = ("good", "\N{CHECK MARK}") if report["ok"] else ("bad", "\N{BALLOT X}")
        said = f"{'Verified' if report['ok'] else 'Not verified'}: {judgement(proofs, proofs[0]['tolerance'])}"
        yield f'<p class="verdict {colour}">{mark} {_text(said)}.</p></header>'


def _remarks(report: dict[str, Any]) -> Iterator[str]:
    found = remarks(report)
    if found:
        items = "".join(f"<li><b>{_text(label)}</b> {_text(said)}</li>" for label, said in found)
        yield f'<ul class="remarks">{items}</ul>'


def _figures(report: dict[str, Any]) -> Iterator[str]:
    cards = []
    fold = report["fold"]
    if fold is not None:
        gone = sum(site["into"] is not None for site in fold["sites"])
        cards.append(("batch norms folded", f"{gone:,} of {len(fold['sites']):,}" if fold["sites"] else "none to fold"))
        before, after = fold["before"], fold["after"]
        cards += [(key, _change(before[key], after[key], "{:,}".format)) for key in ("nodes", "parameters")]
        cards.append(("size of the weights", _change(before["bytes"], after["bytes"], _bytes)))
    for name, figures in report["verify"].items():
        if figures is not None:
            cards.append((f"largest relative difference from {AGAINST[name]}", f"{figures['max_rel']:.1e}"))
    faster = {
        label: f"{figures['unfolded'] / figures['folded']:.2f}\N{MULTIPLICATION SIGN}"
        for key, label in RUNTIMES.items()
        if "folded" in (figures := report.get(key) or {})
    }
    if faster:
        cards.append((f"speed-up, {' and '.join(faster)}", ", ".join(faster.values())))
    items = "".join(f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>" for label, value in cards)
    yield f'<dl class="cards">{items}</dl>'


def _change(before: float, after: float, text: Callable[[float], str]) -> str:
    return text(after) if before == after else f"{text(before)} \N{RIGHTWARDS ARROW} {text(after)}"


def _kept(report: dict[str, Any]) -> Iterator[str]:
    sites = [] if report["fold"] is None else report["fold"]["sites"]
    reasons = Counter(site["reason"] for site in sites if site["into"] is None)
    if reasons:
        common = reasons.most_common(REASONS)
        items = "".join(f"<li><b>{count:,}</b> {_text(reason)}</li>" for reason, count in common)
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
        note = f"Largest difference from {'float64' if judged else 'the source'}, relative to the largest value there."
        yield _section(title, note, (LEGEND_MARKS if judged else "") + errors_by_layer(title, points))
    rows = [
        (output["output"], AGAINST[name], f"{output['max_abs']:.1e}", *error_texts(_errors_of(output)))
        for name, figures in report["verify"].items()
        if figures is not None
        for output in figures["outputs"]
    ]
    if rows:
        yield _section(
            "Outputs",
            "",
            _table(("output", "against", "absolute difference", "relative difference", *ERRORS[1:]), rows),
        )


def _errors_of(output: dict[str, Any]) -> SiteErrors:
    return output["max_rel"], output.get("reference_error"), output.get("candidate_error")


def _latency(report: dict[str, Any]) -> Iterator[str]:
    groups = [_group(label, report[key]) for key, label in RUNTIMES.items() if report.get(key)]
    if groups:
        title = "Latency"
        yield _section(
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
        note = "Parameters and bytes are those of the initialisers, running statistics included."
        yield _section("Size", note, LEGEND + bars("Size", groups, shared=False))


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
    yield _section("Batch norms", "", _table(columns, rows, kept=[site["into"] is None for site in sites]))


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


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[bool] = ()) -> str:
    """Columns without any text are left out; the first cell of a row is its heading."""
    used = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    head = "".join(f'<th scope="col">{_text(columns[index])}</th>' for index in used)
    lines = []
    for number, row in enumerate(rows):
        first, *others = (_text(row[index]) for index in used)
        mark = ' class="kept"' if kept and kept[number] else ""
        lines.append(f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>')
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


LEGEND = '<p class="legend"><i class="before"></i> before <i class="after"></i> after</p>'
LEGEND_MARKS = (
    '<p class="legend"><i class="before round"></i> the source <i class="after turned"></i> the folded model</p>'
)


def _section(title: str, note: str, content: str) -> str:
    said = f'<p class="note">{_text(note)}</p>' if note else ""
    return f"<section><h2>{_text(title)}</h2>{said}{content}</section>"


def _text(value: str) -> str:
    return escape(printable(value))


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
