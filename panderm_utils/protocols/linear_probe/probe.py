"""The paper's linear probe: multinomial logistic regression on frozen features.

With N rows, D features and K classes, W `[K, D]` and b `[K]` minimise

    mean cross-entropy(W x + b)  +  (1 / C) * 0.5 * ||W||,    C = D * K / 100.

Quirk of the published code, kept: the norm is not squared, so the penalty is not the usual ridge and W = 0 can be the
exact optimum. The bias is free. (The paper's text gives the inverse coefficient.)

Three solvers, all on the CPU:

| solver | what it minimises | what it returns |
|---|---|---|
| published | the objective above | where the published float32 L-BFGS stops, to the last digit; short of the optimum |
| converged | the objective above | its optimum, several times faster |
| sklearn | the *squared* norm, with the same C handed to scikit-learn | another model: for teaching the difference |

A fit computes on one thread, so that repeating it gives the same bits, whatever else the machine does and however many
runs share it: the published path on two threads stops elsewhere on its plateau. Another kind of processor may too.
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

from panderm_utils.protocols.linear_probe import solvers as probe_solvers
from panderm_utils.protocols.linear_probe.solvers import BLOCK, objective

SOLVERS = {
    "published": probe_solvers.solve_published,
    "converged": probe_solvers.solve_converged,
    "sklearn": probe_solvers.solve_sklearn,
}


class ProbeError(ValueError):
    """Features, labels or settings that cannot be fitted; the message says which and what to do."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        weight: `[K, D]`; float32 from the published solver, else float64.
        bias: `[K]`, same dtype; minus infinity for a class without a training row (not from the published solver).
        solver: One of `SOLVERS`.
        seed: Decides the initial weights of the published solver; the others do not depend on it.
        c: The penalty's C.
        objective: The published objective on the training rows, in float64, whatever the solver minimised.
        converged: Whether the solver's own stopping rule ended it, not the limit of iterations.
        iterations: How many it took.
        seconds: Wall-clock time of the fit.
        history: Columns iteration and loss: what the solver minimised, before the first and after each iteration.
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
        """Class probabilities `[N, K]` in float64 of features `[N, D]`.

        Logits and softmax have the precision of the weights, so the published solver's probabilities carry float32's
        ties and rounding as the published ones do.
        """
        features = _features(x)
        if features.shape[1] != self.weight.shape[1]:
            raise ProbeError(
                f"the probe was fitted on {self.weight.shape[1]} features a row, these rows have "
                f"{features.shape[1]}: extract them with the same encoder"
            )
        weight, bias = torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        if weight.dtype == torch.float32:
            return functional.linear(features, weight, bias).softmax(1).double().numpy()
        blocks = [functional.linear(block.double(), weight, bias).softmax(1) for block in features.split(BLOCK)]
        return torch.cat(blocks).numpy()

    def describe(self) -> dict:
        """The settings and the outcome of the fit, ready for a record."""
        names = ("solver", "seed", "c", "objective", "converged", "iterations")
        return {name: getattr(self, name) for name in names}


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
    """Fits the linear probe of the paper on frozen features.

    A class without a row keeps its place: the layer has `num_classes` outputs and C counts them all, so that C is the
    same for every fraction of a training split. (Upstream counts the labels that occur, which is the same number
    whenever it runs, and crashes when one is missing.) "published" then leaves that class a small probability;
    "converged" and "sklearn" give it none, which is the limit that its free bias tends to.

    Args:
        x: Features `[N, D]`, array or tensor; used as float32, copied, never changed.
        y: Integer labels `[N]` in 0..K-1.
        num_classes: K; None takes the highest label + 1.
        seed: Seed of PyTorch's default initialisation; the caller's random state is left as it was.
        solver: "published", "converged" or "sklearn", see the module.
        max_iterations: Limit of L-BFGS iterations (published: 1,000, and 1.25 times as many evaluations).

    Raises:
        ProbeError: Wrong shapes, features that are not finite, labels outside 0..K-1, one class only, an unknown
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
            f"the {solver} solver overflowed (objective {value}): the features reach {features.abs().max():.3g}; "
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
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def penalty_c(num_features: int, num_classes: int) -> float:
    """C = D * K / 100, as the published code has it."""
    return num_features * num_classes / 100


def _features(x) -> torch.Tensor:
    """A float32 copy `[N, D]` of finite features. Always a copy: torch aligns it alike, so repeated fits sum alike."""
    x = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiub":
        raise ProbeError(f"features must be numbers [N, D] with N and D at least 1, got {x.dtype} {list(x.shape)}")
    features = torch.empty(x.shape, dtype=torch.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported below
        features.numpy()[...] = x
    bad = [start + i for start in range(0, len(x), BLOCK) for i in _bad_rows(features[start : start + BLOCK])]
    if bad:
        raise ProbeError(
            f"features of {len(bad)} of {len(x)} rows are not finite in float32 (counted from 0: "
            f'{", ".join(map(str, bad[:5]))}{", ..." if len(bad) > 5 else ""}): extract them with precision="fp32"'
        )
    return features


def _bad_rows(block: torch.Tensor) -> list[int]:
    return torch.nonzero(~block.isfinite().all(dim=1)).flatten().tolist()


def _labels(y, rows: int, num_classes: int | None) -> tuple[torch.Tensor, int]:
    """The labels as int64 `[N]` and K, checked."""
    y = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if y.shape != (rows,):
        raise ProbeError(f"labels must be one a row, [{rows}], got {list(y.shape)}")
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
            "take a larger fraction"
        )
    return labels, num_classes
