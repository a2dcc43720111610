"""The inputs of batch norm in named networks, (C, H, W) or (C,), in the order in which a forward pass meets them."""

NETWORKS = {
    "ResNet-50": [
        (64, 112, 112),
        (64, 56, 56),
        (256, 56, 56),
        (128, 56, 56),
        (128, 28, 28),
        (512, 28, 28),
        (256, 28, 28),
        (256, 14, 14),
        (1024, 14, 14),
        (512, 14, 14),
        (512, 7, 7),
        (2048, 7, 7),
    ],
    "DenseNet-121": [(64, 112, 112), (128, 56, 56), (224, 56, 56), (480, 28, 28), (992, 14, 14), (1024, 7, 7)],
    "MobileNetV2": [(32, 112, 112), (96, 112, 112), (144, 56, 56), (192, 28, 28), (576, 14, 14), (960, 7, 7)],
    "LeNet": [(6, 24, 24), (16, 8, 8), (120,), (84,)],
}
BATCHES = (1, 32)

CASES = {
    f"{network}-{batch}x{'x'.join(map(str, shape))}": (network, (batch, *shape))
    for network, shapes in NETWORKS.items()
    for batch in BATCHES
    for shape in shapes
    if batch > 1 or len(shape) > 1  # one value a channel cannot be normalised
}
