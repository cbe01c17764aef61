"""The rules of notebook parameters: one for notebooks, command line and package."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from panderm_utils.batch.parameters import read_parameters
from panderm_utils.data import label_fraction
from panderm_utils.encoders.devices import PRECISIONS
from panderm_utils.manifests import PARAMETERS, ParameterError
from panderm_utils.protocols import list_protocols, load_protocol
from panderm_utils.protocols.fine_tune import FineTuneRecipe
from panderm_utils.protocols.label_efficiency.subsets import honest_orders
from panderm_utils.protocols.linear_probe.probe import SOLVERS
from panderm_utils.protocols.training import Computing
from panderm_utils.stats import evaluate

ROOT = Path(__file__).parents[2]


def notebook_of(protocol: str) -> Path:
    return ROOT / f"notebooks/{protocol}/{load_protocol(protocol).canonical}.ipynb"


@pytest.mark.parametrize("name", list_protocols())
def test_every_parameter_of_a_notebook_has_a_rule_that_its_default_meets(name):
    protocol, defaults = load_protocol(name), read_parameters(notebook_of(name))
    assert [parameter for parameter in defaults if protocol.rule(parameter) is None] == []
    protocol.check_parameters(defaults)
    assert set(protocol.parameters) - {"ema_decay"} <= set(defaults)
    for parameter, default in defaults.items():
        assert protocol.rule(parameter).read(str(default)) == default


@pytest.mark.parametrize("name", list_protocols())
def test_a_notebook_refuses_all_invalid_parameters_before_it_does_anything(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PANDERM_OUTPUT_ROOT", str(tmp_path))
    cells = [cell for cell in json.loads(notebook_of(name).read_text())["cells"] if cell["cell_type"] == "code"]
    parameters, setup = ("".join(cell["source"]) for cell in cells[:2])
    changed = 'device, seed, encoder, replicates = "cude", -1, "panderm_larg", 20.0'
    with pytest.raises(ParameterError) as told:
        exec(f"{parameters}\n{changed}\n{setup}", {})
    assert [line.partition(" = ")[0] for line in str(told.value).splitlines()] == [
        "encoder",
        "seed",
        "device",
        "replicates",
    ]
    assert "device = 'cude': did you mean cuda? write one of auto, cpu, cuda, cuda:1, mps" in str(told.value)
    assert "did you mean panderm_large?" in str(told.value)
    exec(f"{parameters}\n{setup}", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("protocol", "name", "text", "value", "valid"),
    [
        ("linear_probe", "train_fraction", "1", 1.0, True),
        ("linear_probe", "train_fraction", "10", 10.0, False),
        ("linear_probe", "train_fraction", "nan", float("nan"), False),
        ("linear_probe", "batch_size", "1e3", "1e3", False),
        ("linear_probe", "device", "cuda:7", "cuda:7", True),
        ("linear_probe", "device", "cuda:", "cuda:", False),
        ("linear_probe", "encoder", "timm:resnet18", "timm:resnet18", True),
        ("linear_probe", "precision", "auto", "auto", False),
        ("linear_probe", "weights", "None", None, True),
        ("linear_probe", "allow_incomplete", "true", True, True),
        ("linear_probe", "allow_incomplete", "1", "1", False),
        ("fine_tune", "precision", "auto", "auto", True),
        ("fine_tune", "batch_size", "None", None, True),
        ("fine_tune", "batch_size", "7", 7, False),
        ("fine_tune", "micro_batch", "auto", "auto", True),
        ("fine_tune", "tta", "0", 0, True),
        ("fine_tune", "weighted_sampling", "False", False, True),
        ("label_efficiency", "fractions", "0.1, 1", "0.1, 1", True),
        ("label_efficiency", "fractions", "10%", "10%", False),
    ],
)
def test_a_text_of_the_cli_is_the_value_of_a_notebook(protocol, name, text, value, valid):
    rule = load_protocol(protocol).rule(name)
    read = rule.read(text)
    assert (type(read), str(read)) == (type(value), str(value))
    assert (rule.remedy(read) == "") == valid
    assert valid or "write " in rule.remedy(read)


def test_more_epochs_of_warm_up_than_epochs_are_refused():
    protocol = load_protocol("fine_tune")
    for epochs, warmup in ((5, 5), (None, 9), (5, None)):
        assert protocol.remedies({"epochs": epochs, "warmup_epochs": warmup}) == {}
    told = protocol.remedies({"epochs": 5, "warmup_epochs": 9})
    assert told == {"warmup_epochs": "write a whole number, 0 to 5, the epochs, or None"}


def test_a_precision_that_the_device_lacks_is_refused():
    protocol = load_protocol("linear_probe")
    assert protocol.remedies({"precision": "bf16", "device": "cpu"}) == {}
    assert protocol.remedies({"precision": "fp16", "device": "cuda"}) == {}
    assert "is for GPUs only" in protocol.remedies({"precision": "fp16", "device": "cpu"})["precision"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", True), ("seed", 1.0), ("train_fraction", True), ("solver", None), ("weights", 3), ("weights", "no.pth")],
)
def test_a_value_of_another_type_is_refused(name, value):
    assert PARAMETERS[name].remedy(value)


def test_the_choices_are_those_that_the_package_implements():
    for name, implemented in (("solver", SOLVERS), ("precision", PRECISIONS)):
        assert set(PARAMETERS[name].names()) == set(implemented)
    rules = load_protocol("fine_tune").parameters
    recipe = {field.name: field.default for field in dataclasses.fields(FineTuneRecipe) if field.name in rules}
    assert {name: rules[name].remedy(default) for name, default in recipe.items()} == dict.fromkeys(recipe, "")


TABLE = pd.DataFrame({"split": ["train"] * 8, "label": [0, 1] * 4})
PROBA = np.array([[0.8, 0.2], [0.3, 0.7]] * 4)


@pytest.mark.parametrize(
    ("protocol", "name", "values", "call"),
    [
        ("linear_probe", "train_fraction", (0.0, 0.5, 1.0, 1.1), lambda value: label_fraction(TABLE, value)),
        ("linear_probe", "replicates", (1, 2), lambda value: evaluate([0, 1] * 4, PROBA, replicates=value)),
        ("label_efficiency", "draws", (0, 1), lambda value: honest_orders(TABLE, value)),
        ("fine_tune", "micro_batch", ("auto", 0, 1, 2, 3), lambda value: Computing(micro_batch=value)),
        ("fine_tune", "processes", (0, 1), lambda value: Computing(processes=value)),
    ],
)
def test_a_rule_allows_what_the_function_takes(protocol, name, values, call):
    def taken(value):
        try:
            call(value)
        except ValueError:
            return False
        return True

    rule = load_protocol(protocol).rule(name)
    assert [rule.remedy(value) == "" for value in values] == [taken(value) for value in values]
