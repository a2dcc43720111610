"""The report of ``python -m export`` as text."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

from export.calibration.adapt import render_calibration
from fastbn._tables import Row, print_line, print_table

LONG = 40  # batch norms; of more, those that were folded are counted, not named
ERRORS = ("difference", "error, source", "error, folded")  # between both models; of each from float64
COLUMNS = ("batch norm", "where", "how", *ERRORS)
MODELS = {"fastbn": "the fastbn model", "unfolded": "the unfolded ONNX"}
Line = tuple[str, str]
SiteErrors = tuple[float | None, ...]  # as in ERRORS, None where not measured


def print_report(report: dict[str, Any], file: TextIO | None = None, *, verbose: bool = False) -> None:
    """The command's report, the same figures as its JSON: a line or a few for each subject, a row for each batch norm.

    verbose: name every batch norm, of however many. At a terminal the batch norms are a table of rich's, anywhere
    else plain lines that are never wrapped.
    """
    if "restored" in report:
        undone = f"{report['restored']} batch norms have their statistics of {report['undo']}"
        _print_lines([("read", report["source"]), ("written", report["output"]), ("restored", undone)], file)
        return
    _print_lines(_origin(report), file)
    if report.get("calibration"):
        _print_lines(render_calibration(report["calibration"]), file)
    fold = report["fold"]
    if fold is not None:
        _print_lines(_block("folded", [_verdict(report, verbose=verbose)]), file)
        if fold["sites"]:
            rows, kept = site_rows(report, verbose=verbose)
            print_table(COLUMNS, rows, file, marked=kept)
            _print_lines(_sizes(fold), file)
    _print_lines(_proof(report), file)


def site_rows(report: dict[str, Any], *, verbose: bool) -> tuple[list[Row], set[int]]:
    """A row for each batch norm, as in COLUMNS; and the numbers of those rows whose batch norm stays.

    Of more than LONG, unless ``verbose``, the folded ones are counted by what they went into.
    """
    sites = report["fold"]["sites"]
    gone = [site for site in sites if site["into"] is not None]
    counted = gone if len(sites) > LONG and not verbose else []
    groups = Counter((site["into"].split(" ", 1)[0], site.get("how") or "") for site in counted)
    rows: list[Row] = [
        (f"{count:,} batch norms", f"into {into}", how, "", "", "") for (into, how), count in groups.items()
    ]
    listed = [site for site in sites if site["into"] is None] if counted else sites
    kept = {len(rows) + index for index, site in enumerate(listed) if site["into"] is None}
    errors = site_errors(report)
    return rows + [_row(site, errors.get(site["batch_norm"])) for site in listed], kept


def site_errors(report: dict[str, Any]) -> dict[str, SiteErrors]:
    """By batch norm the largest of what the proof measured at its site, in the proof's order."""
    found: dict[str, SiteErrors] = {}
    for figures in report["verify"].values():
        for site in (figures or {}).get("sites", ()):
            here = (site["max_rel"], site.get("reference_error"), site.get("candidate_error"))
            pairs = zip(found.get(site["layer"], (None, None, None)), here, strict=True)
            found[site["layer"]] = tuple(max((v for v in pair if v is not None), default=None) for pair in pairs)
    return found


def error_texts(errors: SiteErrors | None) -> tuple[str, ...]:
    """A cell in two digits for each of ERRORS; nothing where it was not measured."""
    return tuple("" if error is None else f"{error:.1e}" for error in errors or (None, None, None))


def against_float64(figures: dict[str, Any]) -> tuple[str, ...]:
    """The largest relative errors of both models' outputs from float64; nothing where it was not measured."""
    keys = ("reference_error", "candidate_error")
    found = [[o[key] for o in figures["outputs"] if o.get(key) is not None] for key in keys]
    return tuple(f"{max(errors):.1e}" if errors else "" for errors in found)


def remarks(report: dict[str, Any]) -> list[Line]:
    """What the proof found beside the outputs: where the models part, and what onnxruntime's optimiser does to them."""
    lines: list[Line] = []
    for figures in report["verify"].values():
        if figures is None:
            continue
        if figures.get("first_difference"):
            lines.append(("differs at", figures["first_difference"]))
        for run in figures.get("optimised", ()):
            if not run["ok"]:
                model = "the source" if run["model"] == "reference" else "the written model"
                error = "it fails" if run["error"] is None else f"its outputs are off by {run['error']:.1e}"
                lines.append(("warning", f"onnxruntime's own optimiser changes {model}: {error}"))
        lines += [("note", note) for note in figures.get("notes", ())]
    return lines


def _row(site: dict[str, Any], errors: SiteErrors | None) -> Row:
    operators = site.get("operators", "BatchNormalization")
    name = site["batch_norm"] if operators == "BatchNormalization" else f"{site['batch_norm']} ({operators})"
    where = f"kept: {site['reason']}" if site["into"] is None else f"into {site['into']}"
    return name, where, site.get("how") or "", *error_texts(errors)


def _verdict(report: dict[str, Any], *, verbose: bool) -> str:
    sites = report["fold"]["sites"]
    if not sites:
        written = "" if report["output"] or report.get("dry_run") else "; no file is written, --copy writes one"
        return f"nothing: the model has no batch norm{written}"
    hint = " (--verbose names each)" if len(sites) > LONG and not verbose else ""
    gone = sum(site["into"] is not None for site in sites)
    return f"{gone:,} of {len(sites):,} batch norms{hint}"


def _origin(report: dict[str, Any]) -> list[Line]:
    lines: list[Line] = []
    training = report.get("training")
    if training:
        how = f"{training['epochs']} epochs, {training['seconds']:.1f} s"
        lines.append(("trained", f"LeNet-BN on {training['data']}, {how}"))
    if report.get("source"):
        lines.append(("read", report["source"]))
    fold = report["fold"]
    state = "batch norms kept" if fold is None else "folded" if fold["sites"] else "as it was"
    written = [f"{report['output']} ({state})"]
    written += [f"{report['unfolded']} (unfolded)"] if report.get("unfolded") else []
    written += [report["checkpoint"]] if report.get("checkpoint") else []
    written += [f"{report['undo']} (the old statistics)"] if report.get("undo") else []
    if report.get("dry_run"):
        written = ["nothing: a dry run"]
    return lines + (_block("written", written) if report["output"] or report.get("dry_run") else [])


def _sizes(fold: dict[str, Any]) -> list[Line]:
    before, after = fold["before"], fold["after"]
    notes = {"nodes": "", "parameters": ", statistics included", "bytes": ""}
    return [(what, f"{before[what]:,} -> {after[what]:,}{note}") for what, note in notes.items()]


def _proof(report: dict[str, Any]) -> list[Line]:
    proofs = {name: figures for name, figures in report["verify"].items() if figures is not None}
    errors = [
        f"abs {figures['max_abs']:.1e}, rel {figures['max_rel']:.1e} against {MODELS[name]}"
        for name, figures in proofs.items()
    ]
    errors += [
        f"rel {source} of the source, {made} of the written model, against float64"
        for source, made in (against_float64(figures) for figures in proofs.values())
        if source and made
    ]
    lines = _proved_on(report.get("inputs")) + _block("largest error", errors)
    if report.get("accuracy"):
        shares = ", ".join(f"{name} {share:.4f}" for name, share in report["accuracy"].items())
        lines.append(("accuracy", f"{shares} ({report['test_samples']:,} test samples)"))
    lines += _latency(report)
    if proofs:
        tolerance = next(iter(proofs.values()))["tolerance"]
        lines.append(("verified", judgement(list(proofs.values()), tolerance)))
    return lines + remarks(report)


def _proved_on(inputs: dict[str, Any] | None) -> list[Line]:
    if inputs is None:
        return []
    left_out = f", {inputs['left_out']:,} left out" if inputs["left_out"] else ""
    return [("proved on", f"{inputs['samples']:,} samples of {inputs['data']}{left_out}")]


def judgement(proofs: Sequence[dict[str, Any]], tolerance: float) -> str:
    """What the proofs say, in one line."""
    outputs = [output for figures in proofs for output in figures["outputs"]]
    if all(figures["ok"] for figures in proofs):
        near = all(output["max_rel"] <= tolerance for output in outputs)
        return f"yes, within {tolerance:g}" if near else "yes: as near to float64 as the source"
    what = "values inside" if all(output["ok"] for output in outputs) else "the outputs"
    return f"NO: {what} differ by more than {tolerance:g}"


def _latency(report: dict[str, Any]) -> list[Line]:
    how = {"latency_ms": "as it comes", "latency_unoptimised_ms": "without its optimiser"}
    texts = [
        f"{' -> '.join(f'{figure:.3f} ms' for figure in report[key].values())} (median of onnxruntime {name}, batch 1)"
        for key, name in how.items()
        if report.get(key)
    ]
    return _block("latency", texts)


def _block(label: str, texts: Sequence[str]) -> list[Line]:
    return [(label if index == 0 else "", text) for index, text in enumerate(texts)]


def _print_lines(lines: Sequence[Line], file: TextIO | None) -> None:
    for label, text in lines:
        print_line(f"{label:<14}{text}", file)
