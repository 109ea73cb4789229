"""One thread: the tensors here are so small that more only wait for one another."""

import torch

torch.set_num_threads(1)
