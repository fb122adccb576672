"""What a picture shows better than a table: how a net's loss fell. The home of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yieldlab.forecast.protocol import EpochDone


def learning_curve(history: Sequence[EpochDone], path: Path, *, title: str) -> None:
    """Write train and validation loss per epoch as a PNG; the epoch whose state was kept is marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    epochs = [each.epoch for each in history]
    axes.plot(epochs, [each.train_loss for each in history], marker="o", label="train")
    valid = [(each.epoch, each.valid_loss) for each in history if each.valid_loss is not None]
    if valid:
        axes.plot([epoch for epoch, _ in valid], [loss for _, loss in valid], marker="o", label="validation")
    kept = [each.epoch for each in history if each.best]
    if kept:
        axes.axvline(kept[-1], linestyle=":", color="grey", label=f"kept: epoch {kept[-1]}")
    axes.set(title=title, xlabel="epoch", ylabel="loss (scaled units)")
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png")
        part.replace(path)
    finally:
        pyplot.close(figure)
        part.unlink(missing_ok=True)
