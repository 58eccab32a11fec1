"""A monitor in the training loops of Lightning and of Transformers.

    lightning.Trainer(callbacks=[lightning_callback(loss, (x, y), every=500)])
    transformers.Trainer(..., callbacks=[trainer_callback(loss, batch, every=500)])

`callback.monitor` is the `Monitor` once the training has begun; the options are those of `monitor`.
"""

import importlib
from typing import Any

from landscape.errors import LandscapeError
from landscape.monitoring.looking import Monitor, monitor


def lightning_callback(loss: Any = None, data: Any = None, **options: Any) -> Any:
    """A `lightning.Callback` that monitors the module's training with its first optimizer.

    Forward passes are seen where `training_step` calls the module itself, `self(x)`; give module=
    to name the network that it calls instead (an attribute of the LightningModule).
    """
    base = _class("Callback", "lightning.pytorch", "pytorch_lightning")
    name = options.pop("module", None)

    class LightningMonitor(base):
        monitor: Monitor | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            network = pl_module if name is None else getattr(pl_module, name)
            self.monitor = monitor(network, trainer.optimizers[0], loss, data, **options)
            self.monitor.__enter__()

        def on_train_end(self, *_: Any) -> None:
            self._end()

        def on_exception(self, *_: Any) -> None:
            self._end()

        def _end(self) -> None:
            if self.monitor is not None and self.monitor.active:
                self.monitor.__exit__(None, None, None)

    return LightningMonitor()


def trainer_callback(loss: Any = None, data: Any = None, **options: Any) -> Any:
    """A `transformers.TrainerCallback` that monitors the model of a Trainer."""
    base = _class("TrainerCallback", "transformers")

    class TrainerMonitor(base):
        monitor: Monitor | None = None

        def on_train_begin(self, *_: Any, **has: Any) -> None:
            optimizer = has["optimizer"]
            optimizer = getattr(optimizer, "optimizer", optimizer)  # of accelerate
            self.monitor = monitor(has["model"], optimizer, loss, data, **options)
            self.monitor.__enter__()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            if self.monitor is not None and self.monitor.active:
                self.monitor.__exit__(None, None, None)

    return TrainerMonitor()


def _class(name: str, *modules: str) -> Any:
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError:
            continue
    package = modules[0].partition(".")[0]
    raise LandscapeError(
        f"This callback needs {package}, which is not installed: pip install {package}."
    )
