"""The bar of a training run, and an epoch's figures in one line."""

from fastbn._progress import Bar
from fastbn.training.history import Epoch


class Progress(Bar):
    """A bar over epochs and their batches, shown only if ``wanted`` and stderr is a terminal."""

    def __init__(self, wanted: bool, epochs: int, batches: int, done: int = 0) -> None:
        self._epochs = epochs
        self._number = done + 1
        super().__init__(self._title(), steps=batches, wanted=wanted)

    def _title(self) -> str:
        return f"epoch {min(self._number, self._epochs)}/{self._epochs}"

    def finish_batch(self, loss: float) -> None:
        """One more batch is done; ``loss`` is the mean so far."""
        self.advance()
        self.say(behind=f"loss {loss:.4f}")

    def finish_epoch(self, epoch: Epoch) -> None:
        """Print the epoch's figures above the bar, and start the bar anew."""
        self.restart(f"{self._title()}  {epoch_line(epoch)}")
        self._number += 1
        self.say(before=self._title())


def epoch_line(epoch: Epoch) -> str:
    """An epoch's figures in one line."""
    line = f"loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
    if epoch.val_loss is not None and epoch.val_accuracy is not None:
        line += f"  test loss {epoch.val_loss:.4f}  test accuracy {epoch.val_accuracy:.4f}"
    return f"{line}  lr {epoch.lr:.4g}  {epoch.seconds:.1f} s"
