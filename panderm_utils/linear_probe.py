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

Repeating a fit gives the same bits on one machine with one number of threads. Another number of threads, or another
processor, changes the order of float32 sums: the published path then stops elsewhere on its plateau, while the other
two move only within their tolerance. `LinearProbe.describe()` therefore notes the number of threads.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from tqdm.auto import tqdm

SOLVERS = ("published", "converged", "sklearn")
GRADIENT_TOLERANCE = 1e-6  # looser ones (3e-5) were seen to end above the published solver's objective
DAMPING = 0.1  # of the mean eigenvalue, added to the covariance; 0.001 is slower on few rows
DOUBLE_BELOW = 4_000_000  # features (N * D) up to which "converged" keeps a float64 copy of them
COVARIANCE_ROWS = 10  # times D: more rows do not make the preconditioner better
BLOCK = 8192  # rows at once where float64 is needed, so that no float64 copy of large features is made


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
        threads: The number of threads that torch used.
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
    threads: int
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
        names = ("solver", "seed", "c", "objective", "converged", "iterations", "threads")
        return {name: getattr(self, name) for name in names}


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
    solve = {"published": _solve_published, "converged": _solve_converged, "sklearn": _solve_sklearn}[solver]
    started = time.perf_counter()
    with torch.inference_mode(False), torch.enable_grad(), tqdm(desc="probe", unit="it", delay=3, leave=False) as bar:
        path = _Path(bar)
        weight, bias, converged = solve(features, labels, num_classes, c, seed, max_iterations, path)
    seconds = time.perf_counter() - started
    value = objective(features, labels, weight, bias, c)
    if not np.isfinite(value):
        raise ProbeError(
            f"the {solver} solver overflowed (objective {value}): the features reach {features.abs().max():.3g}; "
            'scale them, or use solver="converged"'
        )
    if not converged:
        warnings.warn(f"the {solver} solver stopped at the limit of {max_iterations} iterations", stacklevel=2)
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
        threads=torch.get_num_threads(),
        history=history,
    )


def penalty_c(num_features: int, num_classes: int) -> float:
    """C = D * K / 100, as the published code has it."""
    return num_features * num_classes / 100


def objective(x, y, weight, bias, c: float) -> float:
    """The published objective in float64: mean cross-entropy + (1 / C) * 0.5 * ||W||, x `[N, D]`, y `[N]`."""
    x, y = torch.as_tensor(x), torch.as_tensor(y).long()
    weight, bias = torch.as_tensor(weight).double(), torch.as_tensor(bias).double()
    total = sum(
        functional.cross_entropy(functional.linear(rows.double(), weight, bias), labels, reduction="sum").item()
        for rows, labels in zip(x.split(BLOCK), y.split(BLOCK), strict=True)
    )
    return total / len(x) + 0.5 / c * weight.norm().item()


def _solve_published(x, y, num_classes, c, seed, max_iterations, path):
    """Upstream's path: nothing here may change the order or the precision of the arithmetic."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the caller's GPUs; the CPU's numbers are the same.
        torch.default_generator.manual_seed(seed)
        layer = torch.nn.Linear(x.shape[1], num_classes, dtype=torch.float32)
    optimiser = torch.optim.LBFGS(layer.parameters(), lr=1, max_iter=max_iterations, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = functional.cross_entropy(layer(x), y) + (1 / c) * 0.5 * layer.weight.norm()
        loss.backward()
        path.note(optimiser, loss)
        return loss

    optimiser.step(closure)
    return layer.weight.detach(), layer.bias.detach(), path.within(optimiser)


def _solve_converged(x, y, num_classes, c, seed, max_iterations, path):
    """The optimum, by L-BFGS on centred and preconditioned features.

    Exact changes of variables only: the shift goes into the free bias, and on fewer rows than features an orthogonal
    rotation leaves the norm of W as it is. V = W L with L L' = covariance + damping makes the problem round; the
    penalty stays on W. Parameters, softmax and sums are float64; only the two products with large features are float32.
    """
    present, y = torch.unique(y, return_inverse=True)
    classes, rows = len(present), len(x)
    precision = torch.float64 if x.numel() <= DOUBLE_BELOW else torch.float32
    shift = x.mean(0, dtype=torch.float64).to(precision)
    z = x.to(precision) - shift
    rotation = None
    if rows < x.shape[1]:
        rotation, triangle = torch.linalg.qr(z.T)
        z = triangle.T.contiguous()
    targets = functional.one_hot(y, classes).double()
    prior = targets.mean(0)

    # With W = 0 the best bias is the log prior. It is the optimum if no direction descends faster than the norm rises.
    slope = ((prior - targets).to(precision).T @ z).double() / rows
    if slope.norm() <= 0.5 / c:
        path.add(0, functional.cross_entropy(prior.log().expand(rows, -1), y).item())
        return *_embed(torch.zeros(classes, x.shape[1]).double(), prior.log(), present, num_classes), True

    some = z[:: max(1, rows // (COVARIANCE_ROWS * z.shape[1]))]
    covariance = (some.T @ some).double() / len(some)
    covariance.diagonal().add_(DAMPING * covariance.diagonal().mean())
    lower = torch.linalg.cholesky(covariance)
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower)).double(), upper=False)

    v = -slope @ inverse.T  # a unit step down from W = 0, where the norm has no gradient
    bias = prior.log()
    v.requires_grad_(), bias.requires_grad_()
    optimiser = torch.optim.LBFGS(
        [v, bias],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure():
        weight = v @ inverse
        norm = weight.norm()
        log_proba = (functional.linear(z, weight.to(precision)).double() + bias).log_softmax(1)
        loss = -log_proba.gather(1, y[:, None]).mean() + 0.5 / c * norm
        residual = log_proba.exp_().sub_(targets).div_(rows)
        bias.grad = residual.sum(0)
        v.grad = ((residual.to(precision).T @ z).double() + 0.5 / c * weight / norm) @ inverse.T
        path.note(optimiser, loss)
        return loss

    optimiser.step(closure)
    weight = v.detach() @ inverse
    if rotation is not None:
        weight = weight @ rotation.T
    return *_embed(weight, bias.detach() - weight @ shift.double(), present, num_classes), path.within(optimiser)


def _solve_sklearn(x, y, num_classes, c, seed, max_iterations, path):
    """scikit-learn's LogisticRegression with the same C: there C weighs the *sum* of losses against 0.5 * ||W||^2."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # here, as only this solver needs its second of import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fit_linear_probe says it in our words
        model = LogisticRegression(C=c, max_iter=max_iterations).fit(x.numpy(), y.numpy())
    weight, bias = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    if len(weight) == 1:  # two classes: one row of logits, shared out evenly, gives the same probabilities
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    # It does not tell its path: the first (W = 0) and the last loss must do.
    path.add(0, np.log(len(weight)))
    ridge = weight.square().sum().item() * (2 if len(weight) == 2 else 1) / (2 * c * len(x))
    present, places = torch.unique(y, return_inverse=True)
    iterations = int(model.n_iter_[0])
    path.add(iterations, objective(x, places, weight, bias, np.inf) + ridge)
    return *_embed(weight, bias, present, num_classes), iterations < max_iterations


class _Path:
    """Listens to a solver without touching its arithmetic: the losses it met, and a progress bar after 3 seconds."""

    def __init__(self, bar: tqdm):
        self.bar = bar
        self.losses: dict[int, float] = {}

    def note(self, optimiser: torch.optim.LBFGS, loss: torch.Tensor) -> None:
        """Notes one evaluation. The line search accepts the lowest of an iteration's, so that one is kept."""
        self.add(_state(optimiser).get("n_iter", 0), loss.item())

    def add(self, iteration: int, loss: float) -> None:
        if iteration not in self.losses:
            self.bar.update(iteration - self.bar.n)
            self.bar.set_postfix(loss=f"{loss:.5f}", refresh=False)
        self.losses[iteration] = min(loss, self.losses.get(iteration, np.inf))

    def within(self, optimiser: torch.optim.LBFGS) -> bool:
        """Whether L-BFGS ended by its tolerances rather than by its limits."""
        state, group = _state(optimiser), optimiser.param_groups[0]
        return state["n_iter"] < group["max_iter"] and state["func_evals"] < group["max_eval"]

    def history(self) -> pd.DataFrame:
        return pd.DataFrame({"iteration": list(self.losses), "loss": list(self.losses.values())})


def _state(optimiser: torch.optim.LBFGS) -> dict:
    return optimiser.state[optimiser.param_groups[0]["params"][0]]


def _embed(weight, bias, present, num_classes):
    """Puts the classes that have rows in their places; the others get W = 0 and a bias of minus infinity."""
    full_weight = torch.zeros(num_classes, weight.shape[1], dtype=weight.dtype)
    full_bias = torch.full((num_classes,), -torch.inf, dtype=bias.dtype)
    full_weight[present], full_bias[present] = weight, bias
    return full_weight, full_bias


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
            f"features of {len(bad)} of {len(x)} rows are not finite in float32 (rows counted from 0: "
            f'{", ".join(map(str, bad[:5]))}{", ..." if len(bad) > 5 else ""}): extract them again with precision="fp32"'
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
