"""The network of `one_network.py` in PyTorch."""

from __future__ import annotations

import torch
from tests.data import one_network
from torch import nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(one_network.COLORS, one_network.CHANNELS, 3)
        self.dense = nn.Linear(one_network.CHANNELS, one_network.CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.convolution(image.permute(0, 3, 1, 2)))
        return torch.softmax(self.dense(hidden.mean(dim=(2, 3))), dim=1)


def module() -> nn.Module:
    """The network with its weights."""
    made = Network()
    made.load_state_dict(
        {
            "convolution.weight": torch.from_numpy(one_network.KERNEL.transpose(3, 2, 0, 1).copy()),
            "convolution.bias": torch.from_numpy(one_network.KERNEL_BIAS),
            "dense.weight": torch.from_numpy(one_network.DENSE.T.copy()),
            "dense.bias": torch.from_numpy(one_network.DENSE_BIAS),
        }
    )
    return made.eval()
