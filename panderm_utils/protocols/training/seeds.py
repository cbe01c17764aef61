"""The seed of every random draw, from its purpose and position, so that a resumed training draws the same."""

import numpy as np
import torch

# Purposes, the first number of a seed: a training image, the order of an epoch, test-time views, mixing, dropping.
IMAGE, ORDER, VIEWS = range(3)
MIX, DROP = 10, 11


def generator_for(purpose: int, *numbers: int) -> torch.Generator:
    """Returns a generator seeded by its purpose and non-negative numbers."""
    # torch's generator uses only 32 bits.
    (state,) = np.random.SeedSequence([purpose, *numbers]).generate_state(1)
    return torch.Generator().manual_seed(int(state))


def seed_of(*numbers: int) -> int:
    """Returns a seed for torch from a purpose and non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)  # torch takes 63 bits
