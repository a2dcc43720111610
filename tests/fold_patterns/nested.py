"""Batch norms in the bodies of If, Loop and Scan, and in functions of the model; constants from outside."""

import numpy as np

from fold_patterns.pattern import either, gone, stays

W3 = {"W": (3, 2, 3, 3)}
W2 = {"W": (2, 2, 1, 1)}
IF = {"x": "float[N, 2, 6, 6] x, bool p", "rank": 4}
TRIPS = "float[N, 2, 6, 6] x"


def choice(yes, no, before="", after="y = Identity(o)"):
    """An If whose branches give float[N, C, H, W]; in each the result is called t or e."""
    kind = "float[a, b, d, f]"
    return (
        f"{before} o = If (p) <then_branch = yes () => ({kind} t) {{ {yes} }}, "
        f"else_branch = no () => ({kind} e) {{ {no} }}> {after}"
    )


def loop(body, **arrays):
    """Two rounds over h, which starts as x; ``body`` makes h2 of h."""
    text = (
        "y = Loop (trips, yes, x) <body = round (int64 i, bool going, float[a, b, d, f] h) => "
        f"(bool on, float[g, j, k, l] h2) {{ on = Identity(going) {body} }}>"
    )
    return text, {"trips": np.int64(2), "yes": np.array(True), **arrays}


def scan(body, **arrays):
    """``body`` makes o of every image q, (2, 6, 6, 6) along the first axis of x."""
    text = (
        "sums, y = Scan <num_scan_inputs = 1, body = each (float[1] a, float[2, 2, 6, 6] q) => "
        f"(float[1] a2, float[c0, c1, c2, c3] o) {{ a2 = Identity(a) {body} }}> (start, x)"
    )
    return text, {"start": np.float32([0]), **arrays}


CONV_BN = "c = Conv(x, W) t = BN(c)"
BLOCK = """<domain: "own", opset_import: ["" : 17]> Block (q) => (r) {
  w = Constant<value = float[3, 2, 1, 1] {1, -2, 3, 4, -5, 6}>()
  g = Constant<value = float[3] {1, -2, 0.5}>()
  u = Constant<value = float[3] {0.5, 1, 2}>()
  h = Conv(q, w)
  r = BatchNormalization(h, g, u, g, u)
}"""
THEN_RELU = BLOCK.replace("r = Batch", "j = Batch").removesuffix("}") + "r = Relu(j) }"
GIVEN = """<domain: "own", opset_import: ["" : 17]> Given (q, w, g, u) => (r) {
  h = Conv(q, w)
  r = BatchNormalization(h, g, u, g, u)
}"""
GIVEN_ARRAYS = {**W3, "g": np.float32([1, -2, 0.5]), "u": np.float32([0.5, 1, 2])}

PATTERNS = [
    gone("If, constants from outside", choice(CONV_BN, "e = Conv(x, W)"), W3, "If Identity", **IF),
    gone("If, both branches normed, one weight", choice(CONV_BN, "d = Conv(x, W) e = BN2(d)"), W3, "If Identity", **IF),
    gone("If, constants inside",
         choice("w = Constant<value = float[2, 2, 1, 1] {1, -2, 3, 4}>() n = Constant<value = float[2] {1, 2}>() "
                "c = Conv(x, w) t = BatchNormalization(c, n, n, n, n)", "e = Identity(x)"), {}, "If Identity", **IF),
    gone("If, a weight that the main graph reads too", choice(CONV_BN, "e = Identity(z)", before="z = Conv(x, W)"), W3,
         "Conv If Identity", **IF),
    gone("If in If",
         choice("t = If (p) <then_branch = deep () => (float[g, h, i, j] t3) { c = Conv(x, W) t3 = BN(c) }, "
                "else_branch = other () => (float[g, h, i, j] e3) { e3 = Conv(x, W) }>", "e = Conv(x, W)"),
         W3, "If Identity", **IF),
    gone("If, a batch norm before a conv inside", choice("d = BN(x) t = Conv(d, W)", "e = Conv(x, W)"), W3,
         "If Identity", channels=2, **IF),
    gone("If, Mul and Add inside", choice("c = Conv(x, W) d = Mul(c, k) t = Add(d, l)", "e = Conv(x, W)"),
         {**W3, "k": (3, 1, 1), "l": (3, 1, 1)}, "If Identity", **IF),
    stays("If, a conv of the main graph that the other branch reads", "subgraph|read|outside|c",
          choice("t = BN(c)", "e = Identity(c)", before="c = Conv(x, W)"), W3, **IF),
    stays("conv read by a branch", "subgraph|read|elsewhere",
          choice("t = Identity(c)", "e = Neg(c)", before="c = Conv(x, W) d = BN(c)", after="y = Add(o, d)"), W3, **IF),
    gone("Loop, constants from outside", *(lambda text, arrays: (text, arrays, "Loop"))(
        *loop("c = Conv(h, W) h2 = BN(c)", **W2)), channels=2, x=TRIPS),
    stays("Loop, a batch norm of what is carried", "input|Relu",
          *loop("n = BN(h) h2 = Relu(n)"), channels=2, x=TRIPS),
    gone("Loop, a conv carried into a batch norm and a conv", *(lambda text, arrays: (text, arrays, "Loop"))(
        *loop("n = BN(h) h2 = Conv(n, W)", **W2)), channels=2, x=TRIPS),
    gone("Scan, constants from outside", *(lambda text, arrays: (text, arrays, "Scan"))(
        *scan("c = Conv(q, W) o = BN(c)", **W3)), x="float[3, 2, 2, 6, 6] x"),
    gone("function, constants inside", "y = own.Block(x)", {}, None, functions=(BLOCK,)),
    gone("function called twice", "c = own.Block(x) n = Neg(x) d = own.Block(n) y = Sub(c, d) z = Mul(c, c)", {}, None,
         functions=(THEN_RELU,),
         exported=("z",)),
    either("function, constants given", "y = own.Given(x, W, g, u)", GIVEN_ARRAYS, functions=(GIVEN,)),
    either("function, constants given, called with others",
           "c = own.Given(x, W, g, u) d = own.Given(x, W, u, u) y = Add(c, d)", GIVEN_ARRAYS, functions=(GIVEN,)),
    stays("a function's result", "Block|function|Relu", "c = own.Block(x) y = BN(c)", {}, functions=(THEN_RELU,)),
]  # fmt: skip
