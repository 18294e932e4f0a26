"""A client half that trains by a torch loop of the user's own, as Flower's clients do (`docs/from-flower.md`).

An algorithm made with it is FedAvg but for what a device does in a round: Config, Down, Up and Server are those of
`algorithms/fedavg.py`, and Client is a `TorchLoop` whose `train` calls the loop. Such a device needs torch, and the
model as code. All that lies around training is as for any algorithm: sealed messages, codings with error feedback,
checkpoints, budgets, robust means, reports. It goes without what works through an oracle: packed sparse training, and
the promise that two backends agree.
"""

import copy
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from edge_runtime import sgd
from edge_runtime.algorithm import Batches
from edge_runtime.algorithms import fedavg
from edge_runtime.algorithms.fedavg import Down, Up
from edge_runtime.backends.torch import TorchOracle
from edge_runtime.errors import DeviceError
from edge_runtime.tree import Flat


class TorchLoop(fedavg.Client):
    """The device's half of FedAvg with another training: subclass it, and write `train`."""

    keys: ClassVar[tuple[str, str] | None] = None
    """What a batch calls its inputs and labels, if it is a dictionary, `("img", "label")`; None: it is a pair."""

    def train(self, net: torch.nn.Module, trainloader: DataLoader[Any], device: torch.device) -> None:
        """Train `net`, which holds the shared model's parameters, in place.

        torch's own generator is seeded for this round, so that dropout and the loader's order come out the same if the
        round is done again; what else is drawn should come from it too. `self.config` has the settings.
        """
        raise NotImplementedError

    @property
    def config(self) -> fedavg.Config:
        """Give the settings, those of [algorithm]."""
        return self._config

    def round(self, down: Down, batches: Batches) -> Up:
        """Train w_t to x_N.

        Raises:
            DeviceError: the device's backend is not torch, or the training diverged.
        """
        start = fedavg.checked(down, self._model.layout)
        oracle = self._model.oracle
        if not isinstance(oracle, TorchOracle):
            raise DeviceError(
                "this algorithm trains with torch: start the agent with --backend torch and --allow-model, and leave "
                "run.input out, which would give it graphs instead of the module"
            )
        net = self._holding(oracle.module, start)
        torch.manual_seed(int(batches.rng.integers(2**31)))
        self.train(net, self._loader(batches), oracle.device)
        trained = {name: value.detach().cpu().numpy() for name, value in net.named_parameters()}
        self._trained = self._model.layout.join(trained)
        sgd.check(self._trained, self._config, down.round)
        return Up(down.round, len(batches), start - self._trained)

    def _holding(self, module: torch.nn.Module, values: Flat) -> torch.nn.Module:
        """Copy a module, and write parameters [size] into the copy."""
        net = copy.deepcopy(module)
        views = self._model.layout.views(values)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(torch.from_numpy(views[name].copy()))
        return net

    def _loader(self, batches: Batches) -> DataLoader[Any]:
        """Put the device's samples into a loader as torch has them."""
        every = next(iter(batches.epoch(len(batches))))
        x, y = (torch.from_numpy(np.ascontiguousarray(array)) for array in (every.x, every.y))
        return DataLoader(_Samples(x, y, self.keys), batch_size=self._config.batch_size, shuffle=True)


class _Samples(Dataset[Any]):
    """Samples as pairs, or as dictionaries with two keys."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, keys: tuple[str, str] | None) -> None:
        self._x, self._y, self._keys = x, y, keys

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> Any:
        sample = self._x[index], self._y[index]
        return sample if self._keys is None else dict(zip(self._keys, sample, strict=True))
