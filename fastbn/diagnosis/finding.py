"""One thing that was found, how much it matters, and whether a model is healthy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

SEVERITIES = ("error", "warning", "note")

UPDATE = "fastbn.update_bn_stats(model, batches) estimates the statistics anew"

WAYS_OUT = {
    "not-finite": f"go back to an earlier checkpoint; where it is only the mean and the variance, {UPDATE}",
    "negative-variance": UPDATE,
    "default-statistics": f"train, or {UPDATE}",
    "stale-statistics": f"train longer, or {UPDATE}",
    "gap": UPDATE,
    "uncounted": "set num_batches_tracked to the batches that were seen, if you know it",
    "no-statistics": "track_running_stats=True lets it be folded",
    "momentum": "0.1 is the default; bn.freeze() keeps statistics as they are",
    "dead": "no weight decay on gamma, a smaller learning rate; or take the channels out",
    "exploding": "a smaller learning rate, weight decay on gamma, inputs of about deviation 1",
    "eps": "take the channels out, or scale the input of the layer before up",
    "useless-bias": "bias=False in that layer",
    "float16": "keep these parameters in float32, or fold first and cast then",
}


class Complaint(NamedTuple):
    """A finding that does not know yet where it was found, nor the way out.

    number: the figure in ``what``, the worst one where there are several.
    """

    severity: str
    kind: str
    what: str
    number: float


@dataclass(frozen=True)
class Finding:
    """What is wrong with one batch norm.

    severity: "error", its output is wrong or not a number; "warning", it is hardly what was meant; "note", worth
    knowing, nothing is wrong. layer: the batch norm's name. kind: one of ``WAYS_OUT``. what: in words. number: the
    figure there, the worst one where there are several. way_out: what to do.
    """

    severity: str
    layer: str
    kind: str
    what: str
    number: float
    way_out: str


def located(layer: str, complaints: Iterable[Complaint], ways_out: Mapping[str, str] = WAYS_OUT) -> list[Finding]:
    """``complaints`` about ``layer`` as findings, what matters most first."""
    ordered = sorted(complaints, key=lambda complaint: SEVERITIES.index(complaint.severity))
    return [Finding(c.severity, layer, c.kind, c.what, c.number, ways_out.get(c.kind, "")) for c in ordered]


def is_healthy(findings: Iterable[Finding]) -> bool:
    """Whether there are notes at most."""
    return all(finding.severity == "note" for finding in findings)
