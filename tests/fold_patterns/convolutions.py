"""Conv and ConvTranspose, then a batch norm: W' = s W along output channels, b' = s b + t."""

from fold_patterns.pattern import FREE, IMAGE, LINE, VOLUME, gone

W3 = {"W": (3, 2, 3, 3)}


def conv(name, call, arrays=W3, **more):
    return gone(name, f"c = {call} y = BN(c)", arrays, call.split("(")[0].split("<")[0], **more)


PATTERNS = [
    conv("conv", "Conv(x, W)"),
    conv("conv with bias", "Conv(x, W, B)", {**W3, "B": (3,)}),
    conv("conv, bias named by the empty string", 'Conv(x, W, "")'),
    conv("conv 1-d", "Conv(x, W, B)", {"W": (3, 2, 4), "B": (3,)}, x=LINE),
    conv("conv 3-d", "Conv(x, W, B)", {"W": (3, 2, 2, 3, 1), "B": (3,)}, x=VOLUME),
    conv("conv with options", "Conv<strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]>(x, W)"),
    conv("conv in groups", "Conv<group = 2>(x, W, B)", {"W": (4, 1, 3, 3), "B": (4,)}, channels=4),
    conv("depthwise conv", "Conv<group = 2>(x, W)", {"W": (2, 1, 3, 3)}, channels=2),
    conv("depthwise conv, two outputs a channel", "Conv<group = 2>(x, W)", {"W": (4, 1, 3, 3)}, channels=4),
    conv("conv 1-d in groups", "Conv<group = 2>(x, W)", {"W": (6, 1, 3)}, x=LINE, channels=6),
    conv("conv to one channel", "Conv(x, W)", {"W": (1, 2, 1, 1)}, channels=1),
    conv("conv padded the same, more above", 'Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, W)'),
    conv("conv padded the same, more below", 'Conv<auto_pad = "SAME_LOWER">(x, W)', {"W": (3, 2, 2, 4)}),
    conv("conv with auto_pad VALID", 'Conv<auto_pad = "VALID">(x, W)'),
    conv("conv of free height and width", "Conv<pads = [1, 1, 1, 1]>(x, W)", x=FREE),
    gone("conv, large epsilon", "c = Conv(x, W) y = BN<epsilon = 0.5>(c)", W3, "Conv"),
    conv("conv transpose", "ConvTranspose<strides = [2, 2], output_padding = [1, 0]>(x, W)", {"W": (2, 3, 3, 3)}),
    conv("conv transpose with bias", "ConvTranspose<pads = [1, 1, 1, 1]>(x, W, B)", {"W": (2, 3, 3, 3), "B": (3,)}),
    conv("conv transpose 1-d", "ConvTranspose(x, W)", {"W": (2, 3, 3)}, x=LINE),
    conv("conv transpose 3-d", "ConvTranspose(x, W)", {"W": (2, 3, 2, 1, 2)}, x=VOLUME),
    conv(
        "conv transpose in groups",
        "ConvTranspose<group = 2, strides = [2, 2]>(x, W)",
        {"W": (4, 3, 3, 3)},
        x="float[N, 4, 5, 5] x",
        channels=6,
    ),
    conv(
        "conv transpose in groups with bias",
        "ConvTranspose<group = 2, dilations = [2, 1]>(x, W, B)",
        {"W": (4, 3, 3, 3), "B": (6,)},
        x="float[N, 4, 5, 5] x",
        channels=6,
    ),
    conv("depthwise conv transpose", "ConvTranspose<group = 2>(x, W)", {"W": (2, 1, 3, 3)}, channels=2),
    conv(
        "conv transpose padded the same",
        'ConvTranspose<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, W)',
        {"W": (2, 3, 3, 3)},
    ),
    gone("conv, two batch norms", "c = Conv(x, W) d = BN(c) y = BN2(d)", W3, "Conv"),
    gone("conv, three batch norms", "c = Conv(x, W) d = BN(c) e = BN2(d) y = BN3(e)", W3, "Conv"),
    gone(
        "three convs in a row",
        "c = Conv(x, W) d = BN(c) e = Conv(d, V) f = BN2(e) g = Relu(f) h = Conv(g, V) y = BN3(h)",
        {**W3, "V": (3, 3, 1, 1)},
        "Conv Conv Relu Conv",
    ),
    gone("batch norm read twice", "c = Conv(x, W) d = BN(c) e = Relu(d) y = Add(d, e)", W3, "Conv Relu Add"),
    gone("batch norm exported and read", "c = Conv(x, W) d = BN(c) y = Relu(d)", W3, "Conv Relu", exported=("d",)),
    gone("the same input twice", "c = Conv(x, W) d = BN(c) y = Mul(d, d)", W3, "Conv Mul", x=IMAGE),
]
