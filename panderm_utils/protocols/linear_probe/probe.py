"""The paper's linear probe: multinomial logistic regression on frozen features.

With N rows, D features and K classes, W `[K, D]` and b `[K]` minimise

    mean cross-entropy(W x + b)  +  (1 / C) * 0.5 * ||W||,    C = D * K / 100.

Quirk of the published code, kept: the norm is not squared, so the penalty is not ridge and W = 0 can be the exact
optimum. The bias is not penalised. (The paper's text gives the inverse coefficient.)

Three solvers, all on the CPU:

| solver | objective | result |
|---|---|---|
| published | above | where the published float32 L-BFGS stops, to the last digit; short of the optimum |
| converged | above | the optimum, several times faster |
| sklearn | *squared* norm, same C passed to scikit-learn | a different model, to teach the difference |

A fit uses one thread, so that repeating it gives the same bits whatever else the machine does: with two threads the
published path stops at another point of its plateau. So may another type of CPU.
"""

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from panderm_utils.messages import UserError
from panderm_utils.protocols.linear_probe import solvers as probe_solvers
from panderm_utils.protocols.linear_probe.solvers import BLOCK, objective

SOLVERS = {
    "published": probe_solvers.solve_published,
    "converged": probe_solvers.solve_converged,
    "sklearn": probe_solvers.solve_sklearn,
}


class ProbeError(UserError):
    """Features, labels or settings that cannot be fitted; the message says which and what to do."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        weight: `[K, D]`; float32 from the published solver, else float64.
        bias: `[K]`, same dtype; minus infinity for a class without a training row (not from the published solver).
        solver: One of `SOLVERS`.
        seed: Seed of the initial weights of the published solver; the others do not depend on it.
        c: The penalty's C.
        objective: The published objective on the training rows in float64, for every solver.
        converged: Whether the solver met its stopping rule before the limit of iterations.
        iterations: Number of iterations.
        seconds: Wall-clock time of the fit.
        history: Columns iteration and loss: the solver's objective, before the first and after each iteration.
    """

    weight: np.ndarray
    bias: np.ndarray
    solver: str
    seed: int
    c: float
    objective: float
    converged: bool
    iterations: int
    seconds: float
    history: pd.DataFrame = field(repr=False)

    def predict_proba(self, x) -> np.ndarray:
        """Returns class probabilities `[N, K]` in float64 of features `[N, D]`.

        Logits and softmax have the precision of the weights, so the published solver's probabilities have the ties and
        rounding of float32, like the published ones.
        """
        return predict_proba(self.weight, self.bias, x)

    def describe(self) -> dict:
        """Returns the settings and the outcome of the fit, for a record."""
        names = ("solver", "seed", "c", "objective", "converged", "iterations")
        return {name: getattr(self, name) for name in names}


def predict_proba(weight: np.ndarray, bias: np.ndarray, x) -> np.ndarray:
    """Returns `LinearProbe.predict_proba` of a probe with this weight `[K, D]` and bias `[K]`."""
    features = _features(x)
    if features.shape[1] != weight.shape[1]:
        raise ProbeError(
            f"the probe was fitted on {weight.shape[1]} features per row, these rows have {features.shape[1]}: extract "
            "them with the same encoder"
        )
    weight, bias = torch.from_numpy(weight), torch.from_numpy(bias)
    if weight.dtype == torch.float32:
        return functional.linear(features, weight, bias).softmax(1).double().numpy()
    blocks = [functional.linear(block.double(), weight, bias).softmax(1) for block in features.split(BLOCK)]
    return torch.cat(blocks).numpy()


@torch.inference_mode(False)  # a caller's inference mode would forbid the gradients
@torch.enable_grad()
def fit_linear_probe(
    x,
    y,
    num_classes: int | None = None,
    seed: int = 0,
    solver: str = "published",
    max_iterations: int = 1000,
) -> LinearProbe:
    """Returns the linear probe of the paper, fitted on frozen features.

    A class without rows is kept: the layer has `num_classes` outputs and C depends on this number, so C is the same for
    every label fraction. (Upstream counts the labels that occur and crashes if one is missing.) "published" leaves
    such a class a small probability; "converged" and "sklearn" give it zero, the limit of its unpenalised bias.

    Args:
        x: Features `[N, D]`, array or tensor; copied to float32.
        y: Integer labels `[N]` in 0..K-1.
        num_classes: K; None: the highest label + 1.
        seed: Seed of PyTorch's default initialisation; the global random state is not changed.
        solver: "published", "converged" or "sklearn"; see the module docstring.
        max_iterations: Limit of L-BFGS iterations (published: 1,000, and 1.25 times as many evaluations).

    Raises:
        ProbeError: Wrong shapes, features that are not finite, labels outside 0..K-1, only one class, an unknown
            solver, or a published fit that overflowed.
    """
    if solver not in SOLVERS:
        raise ProbeError(f"unknown solver {solver!r}: use one of {', '.join(map(repr, SOLVERS))}")
    features = _features(x)
    labels, num_classes = _labels(y, len(features), num_classes)
    c = penalty_c(features.shape[1], num_classes)
    solve = SOLVERS[solver]
    started = time.perf_counter()
    with _one_thread(), tqdm(desc="probe", unit="it", delay=3, leave=False) as bar:
        path = probe_solvers.Path(bar)
        weight, bias, converged = solve(features, labels, num_classes, c, seed, max_iterations, path)
    seconds = time.perf_counter() - started
    value = objective(features, labels, weight, bias, c)
    if not np.isfinite(value):
        raise ProbeError(
            f"the {solver} solver overflowed (objective {value}): features are as large as {features.abs().max():.3g}; "
            'scale them, or use solver="converged"'
        )
    if not converged:
        message = f"the {solver} solver stopped at the limit of {max_iterations} iterations"
        warnings.warn(message, stacklevel=4)  # past the decorators
    history = path.history()
    return LinearProbe(
        weight=weight.numpy(),
        bias=bias.numpy(),
        solver=solver,
        seed=seed,
        c=c,
        objective=value,
        converged=converged,
        iterations=int(history["iteration"].iloc[-1]),
        seconds=seconds,
        history=history,
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def penalty_c(num_features: int, num_classes: int) -> float:
    """Returns C = D * K / 100, as in the published code."""
    return num_features * num_classes / 100


def _features(x) -> torch.Tensor:
    """A float32 copy `[N, D]` of finite features; always a copy, whose alignment makes repeated fits bit-equal."""
    x = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiub":
        raise ProbeError(f"features must be numbers [N, D] with N and D at least 1, got {x.dtype} {list(x.shape)}")
    features = torch.empty(x.shape, dtype=torch.float32)
    with np.errstate(over="ignore"):  # overflow is reported below
        features.numpy()[...] = x
    finite = torch.cat([block.isfinite().all(dim=1) for block in features.split(BLOCK)])
    bad = torch.nonzero(~finite).flatten().tolist()
    if bad:
        raise ProbeError(
            f"features of {len(bad)} of {len(x)} rows are not finite in float32 (counted from 0: "
            f'{", ".join(map(str, bad[:5]))}{", ..." if len(bad) > 5 else ""}): extract them with precision="fp32"'
        )
    return features


def _labels(y, rows: int, num_classes: int | None) -> tuple[torch.Tensor, int]:
    """Returns the checked labels as int64 `[N]`, and K."""
    y = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if y.shape != (rows,):
        raise ProbeError(f"labels must be one per row, [{rows}], got {list(y.shape)}")
    if y.dtype.kind not in "iub":
        raise ProbeError(f"labels must be integers, got {y.dtype}: convert them with y.astype(int)")
    labels = torch.from_numpy(y.astype(np.int64))
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    outside = labels[(labels < 0) | (labels >= num_classes)].unique().tolist()
    if outside:
        raise ProbeError(f"labels {outside[:5]} are outside 0..{num_classes - 1}: check the CSV or num_classes")
    if len(labels.unique()) < 2:
        raise ProbeError(
            f"all {rows} training rows have label {labels[0].item()}: a probe needs at least two classes; "
            "use a larger fraction"
        )
    return labels, num_classes
