"""The three solvers of `linear_probe.fit_linear_probe`, on checked tensors; see there for the objective.

Each takes x `[N, D]` float32, y `[N]` int64, K, C, a seed, the limit of iterations and a `Path` that records its
losses, and returns W `[K, D]`, b `[K]` and whether it met its stopping rule.
"""

import warnings

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from tqdm.auto import tqdm

GRADIENT_TOLERANCE = 3e-7  # looser ones (3e-5) can end above the published solver's objective
LOSS_TOLERANCE = 1e-10  # a smaller gain per iteration is stagnation, or float32 noise
WORTH_ANOTHER = 1e-9  # the last restart gains less
DAMPING = 0.1  # fraction of the mean eigenvalue added to the covariance; 0.001 is slower on few rows
DOUBLE_BELOW = 1_000_000  # features (N * D) up to which "converged" works on a float64 copy of them
BLOCK = 8192  # rows at once where float64 is needed, so that no float64 copy of large features is made


def objective(x, y, weight, bias, c: float) -> float:
    """Returns the published objective in float64: mean cross-entropy + (1 / C) * 0.5 * ||W||, x `[N, D]`, y `[N]`."""
    x, y = torch.as_tensor(x), torch.as_tensor(y).long()
    weight, bias = torch.as_tensor(weight).double(), torch.as_tensor(bias).double()
    total = sum(
        functional.cross_entropy(functional.linear(rows.double(), weight, bias), labels, reduction="sum").item()
        for rows, labels in zip(x.split(BLOCK), y.split(BLOCK), strict=True)
    )
    return total / len(x) + 0.5 / c * weight.norm().item()


def solve_published(x, y, num_classes, c, seed, max_iterations, path):
    """Follows upstream's path: nothing here may change the order or the precision of the arithmetic."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed GPUs; the CPU numbers are the same.
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


def solve_converged(x, y, num_classes, c, seed, max_iterations, path):
    """Finds the optimum by L-BFGS on centred and preconditioned features.

    All changes of variables are exact: the shift is absorbed by the bias, and with fewer rows than features an
    orthogonal rotation preserves the norm of W. V = W L with L L' = covariance + damping improves the conditioning; the
    penalty stays on W. Parameters, softmax and sums are float64; only the two products with large features are float32.
    """
    present, y = torch.unique(y, return_inverse=True)
    classes, rows = len(present), len(x)
    few = rows < x.shape[1]
    precision = torch.float64 if few or x.numel() <= DOUBLE_BELOW else torch.float32
    shift = x.mean(0, dtype=torch.float64).to(precision)
    z = x.to(precision) - shift
    rotation = None
    if few:
        rotation, triangle = torch.linalg.qr(z.T)
        z = triangle.T.contiguous()
    targets = functional.one_hot(y, classes).double()
    prior = targets.mean(0)

    # At W = 0 the best bias is the log prior. W = 0 is optimal if no direction descends faster than the norm grows.
    slope = ((prior - targets).to(precision).T @ z).double() / rows
    if slope.norm() <= 0.5 / c:
        path.add(0, functional.cross_entropy(prior.log().expand(rows, -1), y).item())
        return *_embed(torch.zeros(classes, x.shape[1]).double(), prior.log(), present, num_classes), True

    covariance = (z.T @ z).double() / rows
    damping = DAMPING * covariance.diagonal().mean()
    eye = torch.eye(len(covariance)).double()
    weight, bias = torch.linalg.solve(covariance + damping * eye, -slope.T).T, prior.log()  # a descent step from 0
    gained, stationary = torch.inf, False
    while not stationary and gained > WORTH_ANOTHER and path.last < max_iterations:
        lower = torch.linalg.cholesky(covariance + damping * eye)
        before = path.losses.get(path.last, torch.inf)
        weight, bias, stationary = _descend(z, y, targets, weight, bias, lower, c, max_iterations - path.last, path)
        gained = before - path.losses[path.last]
        # A restart means stagnation: near W = 0 the curvature of the norm, 1 / ||W||, exceeds that of the features.
        damping = torch.maximum(damping, 4 * 0.5 / c / weight.norm())
    converged = stationary or path.last < max_iterations
    if rotation is not None:
        weight = weight @ rotation.T
    return *_embed(weight, bias.detach() - weight @ shift.double(), present, num_classes), converged


def _descend(z, y, targets, weight, bias, lower, c, limit, path):
    """Runs L-BFGS from (weight, bias) in V = W L: returns the new pair and whether its gradient is within tolerance."""
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower)).double(), upper=False)
    v, bias = (weight @ lower).requires_grad_(), bias.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [v, bias],
        max_iter=limit,
        max_eval=2 * limit,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=LOSS_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure():
        weight = v @ inverse
        norm = weight.norm()
        log_proba = (functional.linear(z, weight.to(z.dtype)).double() + bias).log_softmax(1)
        loss = -log_proba.gather(1, y[:, None]).mean() + 0.5 / c * norm
        residual = log_proba.exp_().sub_(targets).div_(len(z))
        bias.grad = residual.sum(0)
        v.grad = ((residual.to(z.dtype).T @ z).double() + 0.5 / c * weight / norm) @ inverse.T
        path.note(optimiser, loss)
        return loss

    path.restart()
    optimiser.step(closure)
    closure()  # the last evaluation of the line search may be elsewhere
    steepest = max(v.grad.abs().max().item(), bias.grad.abs().max().item())
    return v.detach() @ inverse, bias.detach(), steepest <= GRADIENT_TOLERANCE


def solve_sklearn(x, y, num_classes, c, seed, max_iterations, path):
    """Fits scikit-learn's LogisticRegression, where the same C weights the *sum* of losses against 0.5 * ||W||^2."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # a second of import that only this solver needs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fit_linear_probe warns instead
        model = LogisticRegression(C=c, max_iter=max_iterations).fit(x.numpy(), y.numpy())
    weight, bias = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
    if len(weight) == 1:  # two classes: splitting the one row of logits evenly gives the same probabilities
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    # It does not expose its path: only the first (W = 0) and the last loss are recorded.
    path.add(0, np.log(len(weight)))
    ridge = weight.square().sum().item() * (2 if len(weight) == 2 else 1) / (2 * c * len(x))
    present, places = torch.unique(y, return_inverse=True)
    iterations = int(model.n_iter_[0])
    path.add(iterations, objective(x, places, weight, bias, np.inf) + ridge)
    return *_embed(weight, bias, present, num_classes), iterations < max_iterations


class Path:
    """Records the losses of a solver without touching its arithmetic, and shows a progress bar after 3 seconds."""

    def __init__(self, bar: tqdm):
        self.bar = bar
        self.losses: dict[int, float] = {}
        self.offset = 0

    @property
    def last(self) -> int:
        """The number of the last iteration."""
        return max(self.losses, default=0)

    def restart(self) -> None:
        """Makes a new optimiser count on from the last iteration."""
        self.offset = self.last

    def note(self, optimiser: torch.optim.LBFGS, loss: torch.Tensor) -> None:
        """Records one evaluation; keeps the lowest of an iteration, which the line search accepts."""
        self.add(self.offset + _state(optimiser).get("n_iter", 0), loss.item())

    def add(self, iteration: int, loss: float) -> None:
        if iteration not in self.losses:
            self.bar.update(iteration - self.bar.n)
            self.bar.set_postfix(loss=f"{loss:.5f}", refresh=False)
        self.losses[iteration] = min(loss, self.losses.get(iteration, np.inf))

    def within(self, optimiser: torch.optim.LBFGS) -> bool:
        """Whether L-BFGS stopped at its tolerances, not its limits."""
        state, group = _state(optimiser), optimiser.param_groups[0]
        return state["n_iter"] < group["max_iter"] and state["func_evals"] < group["max_eval"]

    def history(self) -> pd.DataFrame:
        return pd.DataFrame({"iteration": list(self.losses), "loss": list(self.losses.values())})


def _state(optimiser: torch.optim.LBFGS) -> dict:
    return optimiser.state[optimiser.param_groups[0]["params"][0]]


def _embed(weight, bias, present, num_classes):
    """Expands to all classes: those without rows get W = 0 and a bias of minus infinity."""
    full_weight = torch.zeros(num_classes, weight.shape[1], dtype=weight.dtype)
    full_bias = torch.full((num_classes,), -torch.inf, dtype=bias.dtype)
    full_weight[present], full_bias[present] = weight, bias
    return full_weight, full_bias
