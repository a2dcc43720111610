"""Every norm at batches from 1 to 128: where batch norm fails and the others do not."""

from typing import TYPE_CHECKING, Any

from fastbn.data import Dataset
from fastbn.errors import ShapeError
from fastbn.lab.descent import accuracy, descend
from fastbn.lab.drawing import accuracy_axis, finish, label_of, style_of, wrong
from fastbn.lab.experiment import Claim, Experiment, Figures, Options
from fastbn.lab.networks import initialise
from fastbn.lab.progress import Bar
from fastbn.models.lenet import lenet
from fastbn.models.norms import NORMS
from fastbn.nn.init import manual_seed, xavier_normal_
from fastbn.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (1, 2, 4, 8, 32, 128)
SAMPLES = 10_000  # seen in training, whatever the batch
RATE, AT = 0.25, 32  # the rate is proportional to the batch
OWN_START = ("fixup",)  # norms that are a way to start


def _measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    samples = options.scaled(SAMPLES, max(SIZES))
    progress.expect(len(NORMS) * sum(samples // size for size in SIZES))
    runs: Figures = {norm: [] for norm in NORMS}
    for norm in NORMS:
        for size in SIZES:
            progress.begin(f"{label_of(norm)}, batch {size}")
            runs[norm].append(_accuracy(norm, size, dataset, samples // size, options.seed, progress))
    return {"sizes": SIZES, "samples": samples, "runs": runs}


def _accuracy(norm: str, size: int, data: Dataset, steps: int, seed: int, progress: Bar) -> float | None:
    """Of the test digits; None where the norm refuses such a batch or the run diverges."""
    manual_seed(seed)
    model = lenet(norm=norm)
    if norm not in OWN_START:
        initialise(model, xavier_normal_)
    optimizer = SGD(model.parameters(), lr=RATE * size / AT)
    try:
        losses = list(descend(model, data.train, optimizer, progress, batch_size=size, steps=steps, seed=seed))
    except ShapeError:  # one value a channel has no variance
        progress.advance(steps)
        return None
    return accuracy(model, data.test) if losses[-1] == losses[-1] else None


def _judge(figures: Figures) -> list[Claim]:
    sizes, runs = figures["sizes"], figures["runs"]
    batch = dict(zip(sizes, runs["batch"], strict=True))
    lost = 100 * ((batch[32] or 0) - (batch[2] or 0))
    claims = [
        Claim(
            "batch norm cannot be trained with one sample a step",
            batch[1] is None,
            "refused" if batch[1] is None else f"{100 * batch[1]:.1f} %",
        ),
        Claim("batch norm loses accuracy at a batch of 2, beside 32", lost > 1, f"{lost:.1f} points"),
    ]
    for norm in runs:
        if norm in ("batch", "none"):
            continue
        value = dict(zip(sizes, runs[norm], strict=True))[2] or 0
        claims.append(
            Claim(
                f"at a batch of 2 {label_of(norm)} reads more than batch norm",
                value > (batch[2] or 0),
                f"{100 * value:.1f} % against {100 * (batch[2] or 0):.1f} %",
            )
        )
    return claims


def _draw(figures: Figures, figure: "Figure") -> None:
    axes: Any = figure.subplots()
    norms = list(figures["runs"])
    for norm in norms:
        style = style_of(norm, norms)
        known = [(size, value) for size, value in zip(figures["sizes"], figures["runs"][norm], strict=True)]
        trained = [(size, value) for size, value in known if value is not None]
        axes.plot([size for size, _ in trained], wrong([value for _, value in trained]), label=label_of(norm), **style)
        refused = [size for size, value in known if value is None]
        if refused:
            axes.plot(refused, [100] * len(refused), "x", color=style["color"], markersize=11, mew=3, clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks(figures["sizes"], [str(size) for size in figures["sizes"]])
    accuracy_axis(axes)
    if any(None in values for values in figures["runs"].values()):
        axes.plot([], [], "kx", markersize=9, mew=3, label="cannot be trained")
    finish(axes, f"Test accuracy after {figures['samples']:,} samples", "batch size (samples)", "correct (%)")
    figure.legend(loc="outside right center", fontsize="small", frameon=False)


BATCH_SIZE = Experiment(
    name="batch-size",
    title="LeNet-5 at small batches, by norm",
    source="Wu and He 2018, arXiv 1803.08494, figure 1",
    measure=_measure,
    judge=_judge,
    draw=_draw,
    size=(9, 5.6),
)
