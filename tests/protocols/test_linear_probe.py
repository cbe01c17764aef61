"""The linear probe against a plain torch run, SciPy, scikit-learn and closed forms."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from panderm_utils.protocols.linear_probe.neighbours import neighbour_proba
from panderm_utils.protocols.linear_probe.probe import ProbeError, fit_linear_probe, penalty_c
from panderm_utils.protocols.linear_probe.solvers import Path, objective

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(rows, width, classes, seed=0):
    """Anisotropic features with class means and an offset, unbalanced labels of which each occurs."""
    rng = np.random.default_rng(seed)
    scale = 1 / np.arange(1, width + 1)
    scale *= np.sqrt(width / np.square(scale).sum())
    rotation = np.linalg.qr(rng.standard_normal((width, width)))[0]
    means = rng.standard_normal((classes, width)) * scale / width**0.25
    y = np.concatenate([np.arange(classes), rng.choice(classes, rows - classes, p=rng.dirichlet([3.0] * classes))])
    x = (rng.standard_normal((rows, width)) * scale + means[y]) @ rotation + rng.standard_normal(width) / 2
    return x.astype(np.float32), y


def standardised(x):
    spread = x.std(0)
    return ((x - x.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)


def plain_objective(x, y, weight, bias, c):
    """The definition, in NumPy and float64."""
    logits = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    return -log_softmax(logits, axis=1)[np.arange(len(y)), y].mean() + np.sqrt(np.square(weight, dtype=float).sum()) / (
        2 * c
    )


def plain_lbfgs(x, y, classes, seed=0):
    """The published fit in plain torch, as the protocol's facts describe it."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(x.shape[1], classes)
    x, y = torch.tensor(x), torch.tensor(y)
    c = x.shape[1] * classes / 100
    optimiser = torch.optim.LBFGS(layer.parameters(), lr=1, max_iter=1000, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.CrossEntropyLoss()(layer(x), y) + (1 / c) * (0.5 * layer.weight.norm(p=2))
        loss.backward()
        return loss

    optimiser.step(closure)
    return layer


def scipy_optimum(x, y, classes):
    """The optimum's objective by SciPy in float64, from the raw features shifted to mean zero."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    c, targets = penalty_c(x.shape[1], classes), np.eye(classes)[y]

    def value_and_slope(flat):
        weight, bias = flat[:-classes].reshape(classes, -1), flat[-classes:]
        logits, norm = x @ weight.T + bias, np.linalg.norm(weight)
        residual = (softmax(logits, axis=1) - targets) / len(y)
        value = -(targets * log_softmax(logits, axis=1)).sum() / len(y) + norm / (2 * c)
        return value, np.concatenate([(residual.T @ x + weight / norm / (2 * c)).ravel(), residual.sum(0)])

    start = np.random.default_rng(1).standard_normal(classes * (x.shape[1] + 1)) * 0.01
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 50}
    return minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options=options).fun


@pytest.mark.parametrize(("rows", "width", "classes", "seed"), [(600, 96, 5, 0), (300, 64, 2, 7), (30, 256, 7, 0)])
def test_published_walks_a_plain_torch_run_to_the_last_bit(rows, width, classes, seed):
    x, y = draw(rows + 200, width, classes)
    layer = plain_lbfgs(x[:rows], y[:rows], classes, seed)
    probe = fit_linear_probe(x[:rows], y[:rows], classes, seed=seed)
    np.testing.assert_array_equal(probe.weight, layer.weight.detach().numpy())
    np.testing.assert_array_equal(probe.bias, layer.bias.detach().numpy())
    with torch.no_grad():
        expected = torch.softmax(layer(torch.tensor(x[rows:])), dim=1).numpy()
    proba = probe.predict_proba(x[rows:])
    assert proba.dtype == np.float64 and proba.shape == (200, classes)
    np.testing.assert_array_equal(proba, expected)
    for ours, theirs in zip(all_metrics(y[rows:], proba), all_metrics(y[rows:], expected), strict=True):
        assert ours == theirs
    assert probe.objective == pytest.approx(plain_objective(x[:rows], y[:rows], probe.weight, probe.bias, probe.c))


def all_metrics(y, proba):
    best = proba.argmax(1)
    proba = proba.astype(np.float64)
    auroc = (
        roc_auc_score(y, proba[:, 1])
        if proba.shape[1] == 2
        else roc_auc_score(y, proba / proba.sum(1, keepdims=True), multi_class="ovo")
    )
    return f1_score(y, best, average="weighted"), balanced_accuracy_score(y, best), auroc


CASES = {
    "plain": lambda x, y: (x, y),
    "standardised": lambda x, y: (standardised(x), y),
    "30 rows": lambda x, y: (x[:30], y[:30]),
    "30 rows standardised": lambda x, y: (standardised(x[:30]), y[:30]),
    "constant features": lambda x, y: (np.where(np.arange(x.shape[1]) % 3, x, np.float32(1.7)), y),
    "duplicated features": lambda x, y: (np.concatenate([x, x, x[:, :9]], axis=1), y),
    "far from zero": lambda x, y: (x + 100, y),
    "large": lambda x, y: (x * 100, y),
    "an outlier": lambda x, y: (np.where(np.arange(len(x))[:, None] == 3, x * 300, x), y),
    "noise": lambda x, y: (x, np.random.default_rng(0).integers(0, 4, len(y))),
    "two classes": lambda x, y: (x, (y > 1).astype(int)),
}


@pytest.mark.parametrize("case", CASES)
def test_converged_is_never_above_published(case):
    x, y = CASES[case](*draw(500, 80, 4))
    published = fit_linear_probe(x, y)
    converged = fit_linear_probe(x, y, solver="converged")
    assert converged.converged
    for probe in (published, converged):
        own = plain_objective(x, y, probe.weight, probe.bias, probe.c)
        assert probe.objective == pytest.approx(own, abs=1e-9)
        assert own == pytest.approx(objective(x, y, probe.weight, probe.bias, probe.c), abs=1e-9)
    assert converged.objective <= published.objective + 1e-7


def test_converged_is_never_above_published_when_products_are_float32(monkeypatch):
    monkeypatch.setattr("panderm_utils.protocols.linear_probe.solvers.DOUBLE_BELOW", 0)  # as it is for large features
    for case in ("plain", "standardised", "far from zero", "duplicated features"):
        x, y = CASES[case](*draw(500, 80, 4))
        converged = fit_linear_probe(x, y, solver="converged")
        assert converged.objective <= fit_linear_probe(x, y).objective + 1e-7, case
        monkeypatch.setattr("panderm_utils.protocols.linear_probe.solvers.DOUBLE_BELOW", 10**7)
        assert converged.objective <= fit_linear_probe(x, y, solver="converged").objective + 5e-8, case
        monkeypatch.setattr("panderm_utils.protocols.linear_probe.solvers.DOUBLE_BELOW", 0)


@pytest.mark.parametrize(("rows", "width", "classes"), [(400, 48, 4), (30, 100, 3), (300, 40, 2)])
def test_converged_reaches_scipys_optimum(rows, width, classes):
    x, y = draw(rows, width, classes, seed=3)
    probe = fit_linear_probe(x, y, solver="converged")
    best = scipy_optimum(x, y, classes)
    assert abs(plain_objective(x, y, probe.weight, probe.bias, probe.c) - best) < 5e-8
    assert probe.history["loss"].iloc[-1] == pytest.approx(best, abs=1e-7)


def test_converged_is_the_fixed_point_of_scikit_learn():
    """The optimum with the plain norm is scikit-learn's squared one at C = 2 ||W|| / (n * lambda), lambda = 1 / C."""
    x, y = draw(500, 40, 4)
    probe = fit_linear_probe(x, y, solver="converged")
    matching = 2 * np.linalg.norm(probe.weight) * probe.c / len(y)
    oracle = LogisticRegression(C=matching, tol=1e-10, max_iter=20_000)
    oracle.fit(x.astype(np.float64) - x.mean(0, dtype=np.float64), y)
    expected = oracle.predict_proba(x.astype(np.float64) - x.mean(0, dtype=np.float64))
    np.testing.assert_allclose(probe.predict_proba(x), expected, atol=2e-4)
    shifted = oracle.intercept_ - oracle.coef_ @ x.mean(0, dtype=np.float64)
    assert abs(probe.objective - plain_objective(x, y, oracle.coef_, shifted, probe.c)) < 1e-8


def test_where_the_norm_outweighs_every_direction_the_optimum_is_the_class_frequencies():
    x, y = draw(400, 24, 3)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    frequencies = np.bincount(y) / len(y)
    steepest = np.linalg.norm((frequencies - np.eye(3)[y]).T @ centred / len(y))
    edge = 0.5 / penalty_c(24, 3) / steepest  # features this many times as large are at the edge
    below = fit_linear_probe((x * (0.99 * edge)).astype(np.float32), y, solver="converged")
    assert not below.weight.any() and below.converged
    np.testing.assert_allclose(below.predict_proba(x[:5]), np.tile(frequencies, (5, 1)), atol=1e-12)
    assert below.objective == pytest.approx(-(frequencies * np.log(frequencies)).sum(), abs=1e-12)
    for factor in (1.001, 1.01, 1.2):
        scaled = (x * (factor * edge)).astype(np.float32)
        above = fit_linear_probe(scaled, y, solver="converged")
        assert above.converged and above.iterations < 400  # the norm's curvature has no bound here
        assert above.weight.any() and above.objective < below.objective
        assert above.objective == pytest.approx(scipy_optimum(scaled, y, 3), abs=5e-8)


def test_all_features_constant():
    y = np.array([0, 1, 1, 2] * 5)
    probe = fit_linear_probe(np.full((20, 6), 3.3), y, solver="converged")
    np.testing.assert_allclose(probe.predict_proba(np.zeros((2, 6))), [[0.25, 0.5, 0.25]] * 2, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_sklearn_is_scikit_learn_with_the_same_c(classes):
    x, y = draw(300, 24, classes)
    probe = fit_linear_probe(x, y, classes, solver="sklearn")
    model = LogisticRegression(C=24 * classes / 100, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(probe.predict_proba(x), model.predict_proba(x), atol=1e-5)
    other = fit_linear_probe(x, y, classes, solver="converged")
    assert probe.objective > other.objective + 1e-4  # another objective: not the published one's optimum
    ridge = np.square(model.coef_).sum() / (2 * probe.c * len(y))
    loss = plain_objective(x, y, probe.weight, probe.bias, np.inf) + ridge
    assert probe.history["loss"].iloc[-1] == pytest.approx(loss, rel=1e-6)


def test_history_starts_at_the_initial_loss_and_falls_to_the_last():
    x, y = draw(400, 48, 4)
    torch.manual_seed(5)
    layer = torch.nn.Linear(48, 4)
    probe = fit_linear_probe(x, y, seed=5)
    loss = probe.history["loss"].to_numpy()
    assert list(probe.history["iteration"]) == list(range(probe.iterations + 1)) and probe.iterations > 20
    first = plain_objective(x, y, layer.weight.detach().numpy(), layer.bias.detach().numpy(), probe.c)
    assert loss[0] == pytest.approx(first, abs=1e-5)
    assert (np.diff(loss) <= 1e-6).all() and loss[-1] == pytest.approx(probe.objective, abs=1e-5)


def test_the_limit_of_iterations_is_kept_and_said():
    x, y = draw(400, 48, 4)
    for solver in ("published", "converged", "sklearn"):
        with pytest.warns(UserWarning, match="limit of 5 iterations"):
            probe = fit_linear_probe(x, y, solver=solver, max_iterations=5)
        assert probe.iterations <= 5 and not probe.converged


def test_repeats_are_identical_and_leave_the_callers_state_alone():
    x, y = draw(300, 32, 3)
    given = x.copy()
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    with torch.no_grad(), torch.inference_mode():  # as a caller may be
        torch.set_default_dtype(torch.float64)
        try:
            once, twice, other = (fit_linear_probe(x, y, seed=s) for s in (0, 0, 1))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(x, given)
    np.testing.assert_array_equal(once.weight, twice.weight)
    assert (once.weight != other.weight).any()
    converged = [fit_linear_probe(x, y, seed=s, solver="converged").weight for s in (0, 1)]
    np.testing.assert_array_equal(*converged)


def test_arrays_tensors_and_read_only_arrays_give_the_same():
    x, y = draw(200, 16, 3)
    frozen = x.copy()
    frozen.flags.writeable = False
    expected = fit_linear_probe(x, y).weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for features, labels in [
            (torch.tensor(x, requires_grad=True), torch.tensor(y)),
            (frozen, y.astype(np.uint8)),
            (np.asfortranarray(x).astype(np.float64), list(y)),
        ]:
            np.testing.assert_array_equal(fit_linear_probe(features, labels).weight, expected)


@pytest.mark.parametrize("solver", ["published", "converged"])
def test_a_fit_does_not_depend_on_the_number_of_threads(solver):
    x, y = draw(2000, 128, 5)
    before = torch.get_num_threads()
    try:
        probes = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            probes.append(fit_linear_probe(x, y, solver=solver))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(probes[0].weight, probes[1].weight)
    np.testing.assert_array_equal(probes[0].predict_proba(x), probes[1].predict_proba(x))


@pytest.mark.parametrize("solver", ["published", "converged", "sklearn"])
@pytest.mark.parametrize("missing", [1, 3])
def test_a_class_without_rows_keeps_its_place(solver, missing):
    x, y = draw(300, 32, 4)
    rows = y != missing
    probe = fit_linear_probe(x[rows], y[rows], num_classes=4, solver=solver)
    proba = probe.predict_proba(x)
    assert probe.c == 32 * 4 / 100
    assert proba.shape == (300, 4) and np.isfinite(proba).all()
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-5)
    assert proba[:, missing].mean() < 0.01 and (solver == "published" or not proba[:, missing].any())
    assert np.mean(proba.argmax(1)[rows] == y[rows]) > 0.6
    if solver == "converged":
        assert probe.objective <= fit_linear_probe(x[rows], y[rows], num_classes=4).objective + 1e-7
        assert np.isfinite(probe.objective)


def test_class_count_defaults_to_the_highest_label():
    x, y = draw(200, 16, 3)
    assert fit_linear_probe(x, y).weight.shape == (3, 16)
    assert fit_linear_probe(x, y, num_classes=5).predict_proba(x).shape == (200, 5)


X, Y = draw(40, 8, 3)
NAN = np.where((np.arange(40) == 7)[:, None], np.nan, X)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (NAN, Y, {}, r"1 of 40 rows are not finite.*: 7\)"),
        (X.astype(np.float64) * 1e39, Y, {}, "40 of 40 rows are not finite in float32"),
        (X[0], Y, {}, r"\[N, D\]"),
        (X[:0], Y[:0], {}, r"\[N, D\]"),
        (X.astype(str), Y, {}, r"\[N, D\]"),
        (X, Y[:-1], {}, r"\[40\], got \[39\]"),
        (X, Y + 0.5, {}, "integers"),
        (X, Y, {"num_classes": 2}, r"labels \[2\] are outside 0..1"),
        (X, Y - 1, {}, r"labels \[-1\] are outside"),
        (X, np.full(40, 2), {}, "at least two classes"),
        (X, Y, {"solver": "newton"}, "'published', 'converged', 'sklearn'"),
        (X * np.float32(3e37), Y, {}, "overflowed.*converged"),
    ],
)
def test_what_cannot_be_fitted_is_an_error_that_says_why(x, y, options, message):
    with pytest.raises(ProbeError, match=message):
        fit_linear_probe(x, y, **options)


def test_other_features_than_fitted_are_refused():
    probe = fit_linear_probe(X, Y)
    with pytest.raises(ProbeError, match="fitted on 8 features per row, these rows have 7"):
        probe.predict_proba(X[:, :7])


def test_describe_is_plain_values():
    facts = fit_linear_probe(X, Y, seed=2).describe()
    assert facts["solver"] == "published" and facts["seed"] == 2 and facts["c"] == 0.24
    assert all(type(value) in (str, int, float, bool) for value in facts.values())


def test_a_solver_that_used_its_last_evaluation_did_not_converge():
    """However few iterations that were: a limit that was met exactly is a limit."""
    x = torch.zeros(2, requires_grad=True)
    within = []
    for most in (5, 1000):
        optimiser = torch.optim.LBFGS([x], lr=0.01, max_iter=20_000, max_eval=most)

        def loss(optimiser=optimiser):
            optimiser.zero_grad()
            value = (x - 1).square().sum()
            value.backward()
            return value

        optimiser.step(loss)
        within.append(Path.within(None, optimiser))
        if most == 5:
            assert optimiser.state[x]["func_evals"] == 5
    assert within == [False, True]


def test_the_neighbours_vote_as_in_a_brute_force_loop():
    x, y = draw(90, 6, 3)
    train, train_y, test = x[:60], np.where(y[:60] == 1, 3, y[:60]), x[60:]  # class 1 has no training row
    unit, queries = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, test))
    expected = np.zeros((30, 4))
    for row, query in enumerate(queries):
        similarity = unit @ query
        for near in np.argsort(-similarity)[:20]:
            expected[row, train_y[near]] += np.exp(similarity[near] / 0.07)
    proba = neighbour_proba(train, train_y, test, 4)
    np.testing.assert_allclose(proba, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)
    assert not proba[:, 1].any()
    few = neighbour_proba(train[:3], np.array([0, 1, 1]), test, 2)  # fewer rows than neighbours
    np.testing.assert_allclose(few.sum(axis=1), 1)
