"""Twelve rows of six numbers, with weights and a direction, on which several methods have recorded results."""

import torch
from torch import Tensor

__all__ = ["SEEN", "TEXT", "TWELVE"]

_i, _j = torch.arange(1, 13, dtype=torch.float64).unsqueeze(1), torch.arange(1, 7, dtype=torch.float64)

TWELVE: Tensor = (torch.sin(0.7 * _i * _j) + 0.3 * torch.cos(1.1 * _i - 0.5 * _j)).float().unsqueeze(0)
"""[1, 12, 6]"""
SEEN: Tensor = torch.softmax(torch.sin(1.7 * _i), dim=0).float().view(1, 12)
TEXT: Tensor = torch.cos(0.9 * _j).float().unsqueeze(0)
"""[1, 6]"""
