"""The section of the HTML report on what ``--calibrate`` estimated, and how to undo it."""

from collections.abc import Iterator
from typing import Any

from export.report.elements import section, table, text

HOW = {"layers": "layer by layer, later ones behind corrected earlier ones", "once": "all in one pass"}


def statistics_section(report: dict[str, Any]) -> Iterator[str]:
    """How far the statistics of every batch norm moved; nothing for a report without a calibration."""
    found = report.get("calibration")
    if not found:
        return
    note = f"Estimated anew from {found['samples']:,} samples of {found['data']}, {HOW[found['mode']]}."
    if found["left_out"]:
        note += f" {found['left_out']:,} samples were left out, too few for the model's fixed batch."
    columns = ("batch norm", "channels", "values in each", "mean moved by", "variance", "remark")
    content = table(columns, [_row(layer) for layer in found["layers"]]) if found["layers"] else ""
    if report.get("undo"):
        model = report.get("unfolded") or report["output"]
        command = f"python -m export {model} --undo {report['undo']} -o back.onnx"
        content += f'<p class="note">The old ones are back with <code>{text(command)}</code></p>'
    yield section("Statistics", note, content)


def _row(layer: dict[str, Any]) -> tuple[str, ...]:
    shift, ratio = layer["mean_shift"], layer["var_ratio"]
    remarks = [layer["recovers"], layer["reason"] and f"left as it is: {layer['reason']}"]
    remarks.append(f"{layer['constant']} channels without variance" if layer["constant"] else None)
    return (
        layer["batch_norm"],
        f"{layer['channels']:,}" if layer["channels"] else "",
        f"{layer['values']:,}" if layer["values"] else "",
        "" if shift is None else f"{shift:.3g} old deviations",
        "" if ratio is None else f"\N{MULTIPLICATION SIGN} {ratio:.3g}",
        "; ".join(remark for remark in remarks if remark),
    )
