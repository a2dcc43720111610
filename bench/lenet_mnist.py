"""``python -m bench.lenet_mnist``: LeNet-BN on MNIST, fastbn beside PyTorch: the same network, batches and schedule.

The two take turns, an epoch each, in one process; both start from the same weights and see the same batches. Ours is
fused and replayed, see ``fastbn.fuse``; theirs is eager.
"""

import argparse
import time

import numpy as np
import torch

import fastbn
from fastbn import nn, optim
from fastbn.functional.samples import samples


def torch_lenet() -> torch.nn.Sequential:
    t = torch.nn
    return t.Sequential(
        t.Conv2d(1, 6, 5), t.BatchNorm2d(6), t.Sigmoid(), t.AvgPool2d(2),
        t.Conv2d(6, 16, 5), t.BatchNorm2d(16), t.Sigmoid(), t.AvgPool2d(2), t.Flatten(),
        t.Linear(256, 120), t.BatchNorm1d(120), t.Sigmoid(),
        t.Linear(120, 84), t.BatchNorm1d(84), t.Sigmoid(), t.Linear(84, 10),
    )  # fmt: skip


def batches(count: int, size: int, epoch: int) -> list[np.ndarray]:
    order = np.random.default_rng([0, epoch]).permutation(count)
    return [order[start : start + size] for start in range(0, count, size)]


def fastbn_epoch(model, optimizer, split, size, epoch) -> float:
    loss = nn.CrossEntropyLoss()
    model.train()
    begun = time.perf_counter()
    for batch in batches(len(split.labels), size, epoch):
        optimizer.zero_grad()
        loss(model(samples(split.images, batch)), split.labels[batch])
        model.backward(loss.backward(), need_dx=False)
        optimizer.step()
    return time.perf_counter() - begun


def torch_epoch(model, optimizer, images, labels, size, epoch) -> float:
    model.train()
    begun = time.perf_counter()
    for batch in batches(len(labels), size, epoch):
        index = torch.from_numpy(batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
        optimizer.step()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    dataset = fastbn.data.load(options.data)
    torch.set_num_threads(fastbn.get_num_threads())

    fastbn.manual_seed(0)
    ours, theirs = fastbn.fuse(fastbn.models.lenet(), replay=True), torch_lenet()
    theirs.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in ours.state_dict().items()})
    images, labels = (torch.from_numpy(array) for array in dataset.train)
    test_images = torch.from_numpy(dataset.test.images)
    our_sgd = optim.SGD(ours.parameters(), lr=0.05, momentum=0.9)
    their_sgd = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    our_rates = optim.CosineAnnealingLR(our_sgd, T_max=options.epochs)
    their_rates = torch.optim.lr_scheduler.CosineAnnealingLR(their_sgd, T_max=options.epochs)

    # Compilation and first touches stay outside the clock.
    fastbn.warmup(ours, (options.batch_size, *dataset.train.images.shape[1:]))
    samples(dataset.train.images, np.arange(options.batch_size))

    print(f"LeNet-BN, {dataset.name}, batch {options.batch_size}, {fastbn.get_num_threads()} threads")
    print("epoch   fastbn s  accuracy   torch s  accuracy   torch / fastbn")
    for epoch in range(options.epochs):
        our_time = fastbn_epoch(ours, our_sgd, dataset.train, options.batch_size, epoch)
        their_time = torch_epoch(theirs, their_sgd, images, labels, options.batch_size, epoch)
        our_rates.step()
        their_rates.step()
        _, our_accuracy = fastbn.evaluate(ours, dataset.test)
        theirs.eval()
        with torch.no_grad():
            their_accuracy = (theirs(test_images).argmax(1).numpy() == dataset.test.labels).mean()
        print(
            f"{epoch + 1:5}   {our_time:8.2f}  {our_accuracy:8.4f}  {their_time:8.2f}  {their_accuracy:8.4f}"
            f"   {their_time / our_time:14.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
