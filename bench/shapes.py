"""Named shapes of batch norm inputs, (N, C, H, W) or (N, C)."""

SHAPES = {
    "lenet-1": (256, 6, 24, 24),
    "lenet-fc": (256, 120),
    "resnet50-stem": (32, 64, 112, 112),
    "resnet50-stage1": (32, 256, 56, 56),
    "resnet50-stage3": (32, 1024, 14, 14),
    "resnet50-stage4": (32, 2048, 7, 7),
}
