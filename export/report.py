"""The report of ``python -m export`` as text."""

from typing import Any

from export.adapt import render_calibration


def render(report: dict[str, Any]) -> str:
    """The command's report, the same figures as its JSON, a line or a few for each subject."""
    lines: list[tuple[str, str]] = []
    if "restored" in report:
        undone = f"{report['restored']} batch norms have their statistics of {report['undo']}"
        lines = [("read", report["source"]), ("written", report["output"]), ("restored", undone)]
        return _text(lines)
    training = report.get("training")
    if training:
        how = f"{training['epochs']} epochs, {training['seconds']:.1f} s"
        lines.append(("trained", f"LeNet-BN on {training['data']}, {how}"))
    if report.get("source"):
        lines.append(("read", report["source"]))
    written = [f"{report['output']} ({'batch norms kept' if report['fold'] is None else 'folded'})"]
    written += [f"{report['unfolded']} (unfolded)"] if report.get("unfolded") else []
    written += [report["checkpoint"]] if report.get("checkpoint") else []
    written += [f"{report['undo']} (the old statistics)"] if report.get("undo") else []
    lines += _block("written", written)
    if report.get("calibration"):
        lines += render_calibration(report["calibration"])
    if report["fold"] is not None:
        lines += _fold_lines(report["fold"])
    names = {"fastbn": "the fastbn model", "unfolded": "the unfolded ONNX"}
    errors = [
        f"abs {figures['max_abs']:.1e}, rel {figures['max_rel']:.1e} against {names[name]}"
        for name, figures in report["verify"].items()
        if figures is not None
    ]
    lines += _block("largest error", errors)
    if report.get("accuracy"):
        shares = ", ".join(f"{name} {share:.4f}" for name, share in report["accuracy"].items())
        lines.append(("accuracy", f"{shares} ({report['test_samples']:,} test samples)"))
    if report["latency_ms"]:
        latency = " -> ".join(f"{milliseconds:.3f} ms" for milliseconds in report["latency_ms"].values())
        lines.append(("latency", f"{latency} (median of onnxruntime as it comes, batch 1)"))
    tolerance = next(figures["tolerance"] for figures in report["verify"].values() if figures is not None)
    verdict = f"yes, within {tolerance:g}" if report["ok"] else f"NO: the outputs differ by more than {tolerance:g}"
    lines.append(("verified", verdict))
    return _text(lines)


def _text(lines: list[tuple[str, str]]) -> str:
    return "\n".join(f"{label:<14}{text}" for label, text in lines)


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
