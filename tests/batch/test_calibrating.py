"""Estimates before anything ran: a machine is measured, a stop loses nothing, and the sums are done by hand here."""

import dataclasses
import json
import math
import os
import platform

import pytest

import run_all
from panderm_utils import workspace
from panderm_utils.batch import calibrating, calibration, estimates, plan
from panderm_utils.batch.costs import Costs, format_span
from tests.small_record import write_small_record

HAM = {"train": 8207, "val": 575, "test": 1232}
ALL = sum(HAM.values())
PROBE, LARGE = "features, panderm_large, fp32", ["panderm_large"]
TUNE = "fine_tune step, panderm_large, auto, batch 128"


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("paper", tmp_path, tmp_path, tmp_path)


def make(space, protocols, datasets=("ham10000",), encoders=LARGE, **more):
    return plan.make_plan(space, datasets, encoders, protocols, **more)


def machine(measured, name=None, device="CPU", memory=None, flops=None):
    everywhere = {calibration.START: {"": (10, 12)}, calibration.READING: {"": (0.01, 0.02)}}
    host = name or platform.node()
    facts = (host, device, os.cpu_count(), "2026-11-29", {}, everywhere | measured, memory or {}, flops or {})
    return calibration.Machine(*facts)


def spans(planned):
    costs = Costs(planned)
    return [costs.of(run) and costs.of(run).span for run in planned.runs]


def near(low, high):
    return calibration.Span(pytest.approx(low), pytest.approx(high))


def test_features_are_extracted_once_and_images_decoded_once(space):
    base = "features, panderm_base, fp32"
    calibration.write_machine(space.cache, machine({PROBE: {"image": (0.1, 0.2)}, base: {"image": (0.001, 0.002)}}))
    planned = make(space, ["linear_probe"], encoders=["panderm_large", "panderm_base"], seeds=[0, 1])
    first = near(10 + 0.1 * ALL, 12 + 0.22 * ALL)  # computing hides decoding; or it does not
    second = near(10 + 0.001 * ALL, 12 + 0.002 * ALL)  # the images are decoded
    start = near(10, 12)  # another seed
    assert spans(planned) == [first, second, start, start]
    text = estimates.describe_plan(planned, verbose=True)
    total = format_span(calibration.Span(40 + 0.101 * ALL, 48 + 0.222 * ALL))
    assert f"CPU time: {total} for 4 runs, estimated from measurements on {platform.node()} (CPU, " in text
    assert "Not included: fits of probes" in text
    assert "ham10000-linear_probe-panderm_large-seed0  17 to 37 min (from measurements)" in text


def test_without_room_for_pixels_the_upper_end_decodes_for_each_encoder(space, monkeypatch):
    monkeypatch.setenv(workspace.PIXELS, "1")  # GB; the dataset has 1.5
    calibration.write_machine(space.cache, machine({"features, panderm_base, fp32": {"image": (0.001, 0.002)}}))
    planned = make(space, ["linear_probe"], encoders=["panderm_base"], overrides=["solver=converged"])
    assert spans(planned) == [near(10 + 0.01 * ALL, 12 + 0.022 * ALL)]


def test_a_training_has_the_steps_and_predictions_of_its_recipe(space):
    parts = {"image": (0.01, 0.02), "step": (0.5, 0.7), "prediction": (0.003, 0.004)}
    memory = {TUNE: 39_000}
    calibration.write_machine(space.cache, machine({TUNE: parts}, device="H100", memory=memory))
    planned = make(space, ["fine_tune"])
    steps = 50 * math.floor(8207 / 128)
    trained, predicted = 128 * steps, 51 * 575 + 6 * 1232  # each epoch scores val; at the end val, test, five views
    low = 10 + 0.01 * trained + 0.5 * steps + 0.003 * predicted
    high = 12 + 0.02 * trained + 0.7 * steps + 0.004 * predicted + 0.02 * (trained + predicted)
    assert spans(planned) == [near(low, high)]
    assert str(Costs(planned).of(planned.runs[0])).endswith(" h, 39.0 GB of a H100 (from measurements)")
    shorter = make(space, ["fine_tune"], overrides=["epochs=5", "train_fraction=0.5"])
    assert spans(shorter)[0].low < low / 15


def test_unknown_splits_are_guessed_and_that_is_said(space):
    parts = {"image": (0.01, 0.02), "step": (0.5, 0.7), "prediction": (0.003, 0.004)}
    calibration.write_machine(space.cache, machine({TUNE: parts}))
    planned = make(space, ["fine_tune"], ["hiba"])
    assert "Split 70:10:20 there, as the splits are unknown: hiba." in estimates.describe_plan(planned)
    assert spans(planned)[0].low > 10 + 0.01 * 50 * 1000


def test_what_is_not_measured_is_unknown_and_the_remedy_is_said(space):
    planned = make(space, ["linear_probe"])
    text = estimates.describe_plan(planned)
    assert "Time and memory of 1 run: unknown" in text and "--calibrate" in text
    space.cache.mkdir()
    (space.cache / calibration.NAME).write_text('{"machines": [{"name": ')  # as a full disk leaves it
    assert spans(planned) == [None]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(60, 60, "60 s"), (50, 90, "50 to 90 s"), (50, 150, "50 s to 2 min"), (7200, 1e6, "2.0 h to 12 days")],
)
def test_a_range_names_its_unit_once(low, high, text):
    assert format_span(calibration.Span(low, high)) == text


def test_each_measured_machine_has_a_total(space):
    calibration.write_machine(space.cache, machine({PROBE: {"image": (0.001, 0.001)}}, "node7", "NVIDIA H100"))
    planned = make(space, ["linear_probe"])
    assert "GPU time: " in estimates.describe_plan(planned)  # of a login node nothing is known
    calibration.write_machine(space.cache, machine({PROBE: {"image": (0.7, 0.8)}}))
    text = estimates.describe_plan(planned)
    assert "CPU time: 1.9 to 2.3 h for 1 run" in text
    node = calibration.read_machines(space.cache)[f"node7, NVIDIA H100, {os.cpu_count()}"]
    assert f"On {node}: 2 to 4 min for 1 run, estimated from measurements" in text


def test_gpus_that_nobody_measured_have_a_total_by_their_data_sheets(space):
    measured = {PROBE: {"image": (0.7, 0.8)}, TUNE: {"image": (2, 2), "step": (9, 9), "prediction": (1, 1)}}
    flops = {PROBE: {"image": 120e9}, TUNE: {"image": 360e9, "step": 0, "prediction": 120e9}}
    calibration.write_machine(space.cache, machine(measured, flops=flops))
    planned = make(space, ["linear_probe", "fine_tune"])
    (_, here, _), (a100, *on_a100), (h100, *on_h100) = Costs(planned).by_machine(list(planned.runs))
    assert (a100.device, h100.device) == ("A100", "H100")
    assert here.low > on_a100[0].low
    trained, predicted = 128 * 50 * math.floor(8207 / 128), 51 * 575 + 6 * 1232
    training = (360e9 * trained + 120e9 * predicted) / 312e12  # seconds at the peak in bfloat16
    reading = [seconds * os.cpu_count() / 16 for seconds in (0.01, 0.02)]
    low = 20 + max(120e9 * ALL / 19.5e12 / 0.6, reading[0] * ALL) + max(training / 0.6, reading[0] * ALL)
    high = 24 + (120e9 / 19.5e12 / 0.15 + reading[1]) * ALL + training / 0.15 + reading[1] * (trained + predicted)
    assert on_a100 == [near(low, high), 2]
    assert on_h100[0].high < on_a100[0].high
    text = estimates.describe_plan(planned)
    assert "On a machine (H100, 16 cores, not measured): " in text
    assert "for 2 runs, estimated from its GPU's data sheet, at 15% to 60% of its peak" in text
    calibration.write_machine(space.cache, machine(measured, "node7", "NVIDIA H100 80GB HBM3"))
    assert "(H100, 16 cores, not measured)" not in estimates.describe_plan(planned)


def test_runs_on_other_datasets_are_scaled_by_their_images(space):
    facts = {"peak_memory_mb": {"process": 2_000, "gpu": None}, "environment": {"gpu": None}, "written": "2026"}
    timings = {"features_seconds": 60.0, "total_seconds": 100.0}
    data = {"split_sizes": {"train": 427, "val": 83, "test": 137}}
    name = "ddi-linear_probe-panderm_large-seed3"
    write_small_record(space.records / name, **facts, timings=timings, data=data, dataset="ddi")
    planned = make(space, ["linear_probe"])
    ratio = ALL / 647
    assert spans(planned) == [near(40 + 60 * ratio, 100 * ratio)]
    assert "(from a similar run on other datasets, scaled by images)" in estimates.describe_plan(planned, verbose=True)
    other = make(space, ["linear_probe"], overrides=["precision=bf16"])
    assert spans(other) == [None]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(calibrating, "GROUP_SECONDS", 0)
    monkeypatch.setattr(calibrating, "IMPORTS", "pass")
    monkeypatch.setattr(calibrating, "FILES", 8)


def test_a_machine_is_measured_for_every_run_of_a_plan(quick, space, capsys):
    planned = make(space, ["linear_probe", "fine_tune"], encoders=["panderm_tiny"], overrides=["batch_size=2"])
    masks = make(space, ["segmentation"], ["isic2018_task1"], ["panderm_tiny"], overrides=["channels=8"])
    planned = dataclasses.replace(planned, runs=planned.runs + masks.runs)
    assert None in spans(planned)
    file = calibrating.calibrate(planned)
    found = json.loads(file.read_text())["machines"]
    assert len(found) == 1 and found[0]["name"] == platform.node() and found[0]["versions"]["torch"]
    ends = [ends for parts in found[0]["measured"].values() for ends in parts.values()]
    assert len(ends) == 2 + 1 + 3 + 3 and all(0 < low <= high for low, high in ends)
    assert None not in spans(planned)
    probe, tune, masks = found[0]["flops"].values()
    assert probe["image"] == pytest.approx(0.263e9, rel=0.01)  # by hand: 0.174 linear, 0.060 attention, 0.029 patches
    assert tune["prediction"] == pytest.approx(probe["image"], rel=0.01) and tune["step"] == 0
    assert 2.7 < tune["image"] / probe["image"] < 3.1 and masks["image"] > tune["image"]
    calibrating.calibrate(planned)
    assert capsys.readouterr().out.splitlines()[-1].endswith("5 measurements, 0 of them new")


def test_a_stop_keeps_what_is_measured_and_one_failure_does_not_stop_the_rest(quick, space, monkeypatch, capsys):
    planned = make(space, ["linear_probe"], encoders=["random_tiny", "panderm_tiny", "panderm_base"])
    measured, tried = calibrating._measure, []

    def measure(what, device):
        tried.append(str(what))
        if "panderm_base" in str(what):
            raise RuntimeError("out of memory")
        if "panderm_tiny" in str(what) and tried.count(str(what)) == 1:
            raise KeyboardInterrupt
        return measured(what, device)

    monkeypatch.setattr(calibrating, "_measure", measure)
    with pytest.raises(KeyboardInterrupt):
        calibrating.calibrate(planned)
    calibrating.calibrate(planned)
    assert [tried.count(what) for what in dict.fromkeys(tried)] == [1, 1, 1, 2, 1]
    assert "features, panderm_base, fp32: not measured: out of memory" in capsys.readouterr().out
    assert [span is None for span in spans(planned)] == [False, False, True]


def test_the_command_measures_what_its_selection_needs_and_the_plan_uses_it(quick, tmp_path, capsys):
    selection = ["--profile", "paper", "--protocols", "linear_probe", "--encoders", "random_tiny"]
    arguments = [*selection, "--datasets", "bcn20000", "--output-root", str(tmp_path), "--data-root", str(tmp_path)]
    assert run_all.main([*arguments, "--calibrate"]) == 0
    assert f"wrote {tmp_path / 'cache' / calibration.NAME}" in capsys.readouterr().out
    assert run_all.main([*arguments, "--plan"]) == 0
    text = capsys.readouterr().out
    assert "for 1 run, estimated from measurements on " in text
    assert f"features {4 * 96 * 12413 / 1e6:.0f} MB" in text


def test_old_versions_are_measured_again(quick, space):
    planned = make(space, ["linear_probe"], encoders=["random_tiny"])
    calibrating.calibrate(planned)
    (first,) = calibration.read_machines(space.cache).values()
    calibration.write_machine(space.cache, dataclasses.replace(first, versions={**first.versions, "torch": "1.0"}))
    calibrating.calibrate(planned)
    (second,) = calibration.read_machines(space.cache).values()
    assert second.versions == first.versions and second.measured != first.measured
