"""Small models with batch norms, each with what must become of them: the table that tests and benches walk through."""

from fold_patterns import backward, convolutions, corners, forward, matrices, merged, nested, refused, types, weights

SUBJECTS = (convolutions, matrices, backward, forward, merged, weights, nested, types, refused, corners)
PATTERNS = {pattern.name: pattern for subject in SUBJECTS for pattern in subject.PATTERNS}
