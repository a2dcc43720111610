"""A diagnosis as text: a table of the batch norms, and a line for each finding."""

from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from fastbn._tables import Row, print_line, print_table
from fastbn.diagnosis.doctor import Diagnosis, Examined
from fastbn.diagnosis.finding import SEVERITIES, Finding, is_healthy
from fastbn.diagnosis.gap import OutputGap
from fastbn.diagnosis.vitals import Range

COLUMNS = ("batch norm", "channels", "eps", "momentum", "batches", "gamma", "mean", "variance", "scale", "gap")

SHOWN = 8  # findings of one kind, of however many


def print_diagnosis(diagnosis: Diagnosis, file: TextIO | None = None) -> None:
    """Every batch norm and every finding; on a terminal, rows with an error or a warning stand out."""
    norms, findings = diagnosis.batch_norms, diagnosis.findings
    suspicious = {finding.layer for finding in findings if not is_healthy([finding])}
    marked = [index for index, norm in enumerate(norms) if _name(norm) in suspicious]
    print_count(len(norms), len(marked), file)
    if norms:
        print_table(COLUMNS, [_row(norm) for norm in norms], file, marked=marked)
    print_output(diagnosis.output, file)
    print_findings(findings, file)


def print_count(norms: int, suspicious: int, file: TextIO | None = None) -> None:
    """How many batch norms there are, and with how many something is wrong."""
    print_line(f"{'batch norms':<14}{f'{norms:,}, {suspicious:,} with warnings' if norms else 'none'}", file)


def print_output(gap: OutputGap | None, file: TextIO | None = None) -> None:
    """What other statistics change in the output, where that was measured."""
    if gap is not None:
        relative = "an output that is no number" if gap.relative is None else f"the output moves by {gap.relative:.2%}"
        changed = "" if gap.changed is None else f", the largest entry of {gap.changed:,} rows is another one"
        line = f"with the statistics of the data {relative}{changed} ({gap.samples:,} samples)"
        print_line(f"{'output':<14}{line}", file)


def print_findings(findings: Sequence[Finding], file: TextIO | None = None) -> None:
    """A line for each, what matters most first, those of one kind together; then the verdict."""
    alike: dict[tuple[str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        alike.setdefault((finding.severity, finding.kind), []).append(finding)
    for (severity, kind), group in alike.items():
        for finding in group[:SHOWN]:
            way_out = f"; {finding.way_out}" if finding.way_out else ""
            print_line(f"{severity:<14}{finding.layer}: {finding.what}{way_out}", file)
        if len(group) > SHOWN:
            print_line(f"{severity:<14}{len(group) - SHOWN:,} more with {kind}", file)
    print_line(f"{'healthy':<14}{_verdict(findings)}", file)


def _verdict(findings: Sequence[Finding]) -> str:
    numbers = Counter(finding.severity for finding in findings)
    said = [f"{numbers[s]:,} {s}{'' if numbers[s] == 1 else 's'}" for s in SEVERITIES if numbers[s]]
    return ("yes" if is_healthy(findings) else "NO") + (f": {', '.join(said)}" if said else "")


def _name(norm: Examined) -> str:
    return norm.layer or norm.kind


def _row(norm: Examined) -> Row:
    tracks = norm.batches is not None
    momentum = "frozen" if norm.frozen else "mean" if norm.momentum is None else f"{norm.momentum:g}"
    return (
        _name(norm),
        f"{norm.channels:,}",
        f"{norm.eps:g}",
        momentum if tracks else "",
        f"{norm.batches:,}" if tracks else "",
        *(_range(values) for values in (norm.gamma, norm.mean, norm.variance, norm.scale)),
        "" if norm.gap is None else f"{norm.gap:.2g}",
    )


def _range(values: Range | None) -> str:
    return "" if values is None else f"{values[0]:.3g} .. {values[1]:.3g}"
