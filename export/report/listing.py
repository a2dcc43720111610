"""``--inspect`` as text."""

from typing import Any, TextIO

from export.report.inspection import BatchNormListing, Inspection
from fastbn._tables import Row, print_line, print_table
from fastbn.diagnosis.finding import is_healthy
from fastbn.diagnosis.text import print_count, print_findings, print_output
from fastbn.diagnosis.vitals import Range

COLUMNS = ("batch norm", "operators", "channels", "eps", "reads", "read by", "gamma", "beta", "mean", "variance", "gap")


def print_inspection(
    source: str, inspection: Inspection, account: dict[str, Any] | None = None, file: TextIO | None = None
) -> None:
    """The model's lines, a row for each batch norm, and what is wrong with them.

    account: of the samples that were measured on, see ``Samples``.
    """
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in inspection.opsets.items())
    lines = [("read", source), ("opset", opsets), ("IR version", str(inspection.ir_version))]
    if inspection.producer:
        lines.append(("made by", inspection.producer))
    for label, ports in (("inputs", inspection.inputs), ("outputs", inspection.outputs)):
        shapes = [f"{port.name}: {port.dtype} {port.shape}" for port in ports]
        lines += [(label if index == 0 else "", shape) for index, shape in enumerate(shapes)]
    lines += [(key, f"{getattr(inspection, key):,}") for key in ("nodes", "parameters", "bytes")]
    if account is not None:
        left_out = f", {account['left_out']:,} left out" if account["left_out"] else ""
        lines.append(("data", f"{account['samples']:,} samples of {account['data']}{left_out}"))
    for label, text in lines:
        print_line(f"{label:<14}{text}", file)
    norms = inspection.batch_norms
    suspicious = [index for index, norm in enumerate(norms) if not is_healthy(norm.findings)]
    print_count(len(norms), len(suspicious), file)
    if norms:
        print_table(COLUMNS, [_row(norm) for norm in norms], file, marked=suspicious)
    print_output(inspection.output, file)
    print_findings([finding for norm in norms for finding in norm.findings], file)


def _row(norm: BatchNormListing) -> Row:
    return (
        norm.batch_norm,
        "" if norm.operators == "BatchNormalization" else norm.operators,
        "?" if norm.channels is None else f"{norm.channels:,}",
        "?" if norm.eps is None else f"{norm.eps:g}",
        norm.producer,
        ", ".join(norm.consumers),
        *(_range(values) for values in (norm.gamma, norm.beta, norm.mean, norm.variance)),
        "" if norm.gap is None else f"{norm.gap:.2g}",
    )


def _range(values: Range | None) -> str:
    return "?" if values is None else f"{values[0]:.3g} .. {values[1]:.3g}"
