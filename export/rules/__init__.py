"""What may take a batch norm, one rule a file: ``refuse`` says why not, ``rewrite`` does it."""

from export.rules import conv, conv_transpose, gemm

RULES = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm}

__all__ = ["RULES"]
