"""What became of every batch norm."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FoldSite:
    """What became of one batch norm, or of a chain of Mul, Add, Sub, Div with constants that is one.

    batch_norm: the name of its node, or of its output. into: the nodes that absorbed it; reason: why it stays.
    how: "backward", "forward", or "merged" with other nodes of its kind. operators: what it was spelled with.
    values: those nearest behind it that hold the same numbers in the source and in the folded graph.
    """

    batch_norm: str
    into: str | None = None
    reason: str | None = None
    how: str | None = None
    operators: str = "BatchNormalization"
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """Nodes, parameters (elements of initialisers) and their bytes."""

    nodes: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class FoldReport:
    """Every batch norm of a model and its fate, and the model's size before and after."""

    sites: tuple[FoldSite, ...]
    before: Size
    after: Size

    @property
    def folded(self) -> int:
        """How many batch norms are gone."""
        return sum(site.into is not None for site in self.sites)
