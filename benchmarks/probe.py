"""Times the converged solver of the linear probe against the published one, in interleaved pairs.

    python -m benchmarks.probe           all three sizes (about 10 minutes on 2 cores)
    python -m benchmarks.probe --quick   the smallest one

The host may stall for seconds, so single pairs vary: read the medians. The random features resemble a vision
transformer's: a spectrum that falls as 1/rank, class means along it, an offset, unit mean variance.
"""

import argparse

from benchmarks.measuring import Pairs, conclude, describe_machine

# isort: split
import torch

from panderm_utils.protocols.linear_probe import fit_linear_probe

# rows, features, classes, goal: the training splits of a small, a medium and the largest dataset of the paper
SIZES = ((1_493, 1_024, 6, 2), (8_207, 1_024, 7, 2), (71_000, 1_024, 16, 8))


def draw_features(rows: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns anisotropic features `[rows, width]` float32 with class means, and unbalanced labels `[rows]`."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / torch.arange(1, width + 1)
    scale *= (width / scale.square().sum()).sqrt()
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    means = torch.randn(classes, width, generator=generator) * scale / width**0.25
    frequencies = torch.randn(classes, generator=generator).softmax(0)
    y = torch.multinomial(frequencies, rows, replacement=True, generator=generator)
    x = (torch.randn(rows, width, generator=generator) * scale + means[y]) @ rotation
    return x + torch.randn(width, generator=generator) / 2, y


def compare(rows: int, width: int, classes: int, goal: float, pairs: int) -> None:
    """Prints each pair, then the median ratio and both objectives in float64."""
    x, y = draw_features(rows, width, classes)
    measured = Pairs()
    for _ in range(pairs):
        naive = fit_linear_probe(x, y, classes, solver="published")
        ours = fit_linear_probe(x, y, classes, solver="converged")
        print(measured.add(naive.seconds, ours.seconds), flush=True)
    title = f"probe, {rows:,} x {width:,} x {classes}"
    measured.conclude(title, goal, f"iterations {naive.iterations} / {ours.iterations}")
    objectives = f"published {naive.objective:.9f}, converged {ours.objective:.9f}"
    above = ours.objective - naive.objective
    conclude(f"{title}: objective above the published one's", above, 1e-7, "", True, objectives)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the smallest size")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs per size (default: 5)")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    for size in SIZES[:1] if arguments.quick else SIZES:
        compare(*size, arguments.pairs)
