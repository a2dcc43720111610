"""What ``verify`` found."""

from dataclasses import dataclass

from export.proof.compare import Comparison
from export.proof.sites import SiteError


@dataclass(frozen=True)
class Optimised:
    """Whether onnxruntime's own default optimiser keeps a model's answers ("reference" or "candidate").

    error: the largest relative distance from the right answer, None where it could not run the model.
    """

    model: str
    error: float | None
    ok: bool


@dataclass(frozen=True)
class VerifyReport:
    """The comparison of every output; ``inputs``: how many sets of inputs were run.

    judged: for how many of them float64's answer is known. sites: the values inside. first_difference: the first layer
    that differs. optimised: what onnxruntime's own optimiser makes of both models; it has no part in ``ok``.
    notes: what could not be done, and what was done instead.
    """

    outputs: tuple[Comparison, ...]
    inputs: int
    tolerance: float
    judged: int = 0
    sites: tuple[SiteError, ...] = ()
    first_difference: str | None = None
    optimised: tuple[Optimised, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every output and every value inside agrees."""
        return all(output.ok for output in self.outputs) and all(site.ok for site in self.sites)

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of any output."""
        return max((output.max_abs for output in self.outputs), default=0.0)

    @property
    def max_rel(self) -> float:
        """The largest relative difference of any output."""
        return max((output.max_rel for output in self.outputs), default=0.0)

    @property
    def reference_error(self) -> float | None:
        """The reference's largest relative distance from float64, None where that is not known."""
        return max((o.reference_error for o in self.outputs if o.reference_error is not None), default=None)

    @property
    def candidate_error(self) -> float | None:
        """The candidate's largest relative distance from float64, None where that is not known."""
        return max((o.candidate_error for o in self.outputs if o.candidate_error is not None), default=None)
