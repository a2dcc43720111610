"""The report of ``python -m export`` as text."""

from typing import Any


def render(report: dict[str, Any]) -> str:
    """The command's report, the same figures as its JSON, a line or a few for each subject."""
    lines: list[tuple[str, str]] = []
    training = report.get("training")
    if training:
        how = f"{training['epochs']} epochs, {training['seconds']:.1f} s"
        lines.append(("trained", f"LeNet-BN on {training['data']}, {how}"))
    if report.get("source"):
        lines.append(("read", report["source"]))
    written = [f"{report['output']} ({'batch norms kept' if report['fold'] is None else 'folded'})"]
    written += [f"{report['unfolded']} (unfolded)"] if report.get("unfolded") else []
    written += [report["checkpoint"]] if report.get("checkpoint") else []
    lines += _block("written", written)
    if report["fold"] is not None:
        lines += _fold_lines(report["fold"])
    names = {"fastbn": "the fastbn model", "unfolded": "the unfolded ONNX"}
    errors = [
        f"abs {figures['max_abs']:.1e}, rel {figures['max_rel']:.1e} against {names[name]}"
        for name, figures in report["verify"].items()
        if figures is not None
    ]
    lines += _block("largest error", errors)
    lines += _proof_lines(report["verify"]["unfolded"])
    if report.get("accuracy"):
        shares = ", ".join(f"{name} {share:.4f}" for name, share in report["accuracy"].items())
        lines.append(("accuracy", f"{shares} ({report['test_samples']:,} test samples)"))
    if report["latency_ms"]:
        latency = " -> ".join(f"{milliseconds:.3f} ms" for milliseconds in report["latency_ms"].values())
        lines.append(("latency", f"{latency} (median of onnxruntime as it comes, batch 1)"))
    tolerance = next(figures["tolerance"] for figures in report["verify"].values() if figures is not None)
    lines.append(("verified", _verdict([figures for figures in report["verify"].values() if figures], tolerance)))
    return "\n".join(f"{label:<14}{text}" for label, text in lines)


def _proof_lines(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Both models beside float64, where they part, and what else a reader of the verdict should know."""
    if figures is None:
        return []
    lines = []
    if figures["folded_error"] is not None:
        errors = f"source {figures['source_error']:.1e}, folded {figures['folded_error']:.1e} against float64"
        lines.append(("error", f"{errors} ({figures['judged']} of {figures['inputs']} sets of inputs)"))
    worst = max(figures["sites"], key=lambda site: site["candidate_error"] or site["max_rel"], default=None)
    if worst is not None:
        error = worst["max_rel"] if worst["candidate_error"] is None else worst["candidate_error"]
        lines.append(("", f"at most {error:.1e} inside, behind {worst['layer']}"))
    if figures["first_difference"] is not None:
        lines.append(("differs", f"first in {figures['first_difference']}"))
    names = {"reference": "source", "candidate": "folded model"}
    wrong = [
        f"onnxruntime's own optimiser changes the answer of the {names[entry['model']]}"
        + (", which it cannot run" if entry["error"] is None else f": error {entry['error']:.1e}")
        for entry in figures["optimised"]
        if not entry["ok"]
    ]
    return [*lines, *_block("careful", wrong), *_block("note", figures["notes"])]


def _verdict(proofs: list[dict[str, Any]], tolerance: float) -> str:
    outputs = [output for figures in proofs for output in figures["outputs"]]
    if all(figures["ok"] for figures in proofs):
        near = all(output["max_rel"] <= tolerance for output in outputs)
        return f"yes, within {tolerance:g}" if near else "yes: as near to float64 as the source"
    what = "values inside" if all(output["ok"] for output in outputs) else "the outputs"
    return f"NO: {what} differ by more than {tolerance:g}"


def _block(label: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(label if index == 0 else "", text) for index, text in enumerate(texts)]


def _fold_lines(fold: dict[str, Any]) -> list[tuple[str, str]]:
    sites, before, after = fold["sites"], fold["before"], fold["after"]
    gone = sum(site["into"] is not None for site in sites)
    if not sites:
        return [("folded", "nothing: the model has no batch norm")]
    details = [
        f"  {site['batch_norm']} into {site['into']}"
        if site["into"]
        else f"  {site['batch_norm']} kept: {site['reason']}"
        for site in sites
    ]
    return [
        *_block("folded", [f"{gone} of {len(sites)} batch norms", *details]),
        ("nodes", f"{before['nodes']:,} -> {after['nodes']:,}"),
        ("parameters", f"{before['parameters']:,} -> {after['parameters']:,}, statistics included"),
        ("bytes", f"{before['bytes']:,} -> {after['bytes']:,}"),
    ]
