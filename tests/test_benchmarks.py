"""The benchmarks' tables: rows that fail do not stop the others, and the GPU script runs, tiny, on the CPU."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import __main__ as all_benchmarks
from benchmarks import finetune, gpu, gpu_device, growth, rows, segmentation, warm
from benchmarks.measuring import RESULTS, Pairs, conclude
from benchmarks.rows import Result, Row, Table

# isort: split
import torch

from panderm_utils.manifests import load_encoder_manifest

MAIN = 'if __name__ == "__main__":'
TINY = replace(
    gpu_device.CPU,
    encoders=("panderm_tiny",),
    batches=(2,),
    naive_batch=2,
    step=("panderm_tiny", 2),
    step_check=("panderm_tiny", 2),
    masks=("panderm_tiny", 8, (2,)),
    views=(2, 2),
    probe=(40, 16, 3),
    product=32,
    copy=2**16,
)


def fail(error: BaseException) -> Result:
    raise error


def test_a_row_that_fails_is_printed_and_the_others_go_on(capsys) -> None:
    table = Table(seconds=60)
    table.run(
        [
            Row("first", lambda: Result("1 image/s", 2.5, 0.5, 1234, "well"), 0),
            Row("broken", lambda: fail(ValueError("no such\nthing")), 0),
            Row("large", lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")), 0),
            Row("long", lambda: Result("never"), 1000),
            Row("last", lambda: Result("2 images/s"), 0),
        ]
    )
    values = {title: result.cells() for title, result in table.results}
    assert values == {
        "first": ("1 image/s", "2.50", "50%", "1,234", "well"),
        "broken": ("failed", "", "", "", "ValueError: no such thing"),
        "large": ("out of memory", "", "", "", "OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"),
        "last": ("2 images/s", "", "", "", ""),
    }
    assert table.left_out == ["long"]
    printed = capsys.readouterr().out
    assert "no such thing" in printed and "left out, as the time was too short: long" in printed
    assert table.markdown().splitlines()[2] == "| first | 1 image/s | 2.50 | 50% | 1,234 | well |"


def test_a_row_that_takes_too_long_is_cut_off(monkeypatch) -> None:
    table = Table(seconds=0)
    monkeypatch.setattr(table, "left", lambda: 0.01)
    table.run([Row("endless", lambda: time.sleep(60), 0), Row("next", lambda: Result("done"), 0)])
    assert [result.value for _, result in table.results] == ["cut off", "done"]


def test_results_beside_their_goals_reach_the_table_of_all(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv(RESULTS, str(tmp_path / "results"))
    Pairs([2.0, 4.0, 3.0], [1.0, 1.0, 1.0]).conclude("speed", 2.5, "detail")
    conclude("memory", 8, 7, "GB", at_most=True)
    found = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert [facts["title"] for facts in found] == ["speed", "memory"]
    assert [facts["goal"] for facts in found] == ["at least 2.5: reached", "at most 7: MISSED"]
    assert "3 times as fast as the naive way (goal at least 2.5: reached); pairs 2.00 4.00 3.00; detail" in (
        capsys.readouterr().out
    )


def test_a_benchmark_that_fails_is_a_row_and_the_exit_status(monkeypatch, capfd) -> None:
    monkeypatch.setattr(all_benchmarks, "PARTS", {"missing": ((), ())})
    assert all_benchmarks.main([]) == 1
    assert "| missing | failed with exit status 1: see its output above |" in capfd.readouterr().out


def test_the_benchmark_of_starts_asks_the_server_for_what_it_takes(monkeypatch, capsys) -> None:
    monkeypatch.setenv(warm.START, "warm")
    monkeypatch.setattr(sys, "argv", ["warm"])
    monkeypatch.setattr(warm, "Server", mock.create_autospec(warm.Server))
    monkeypatch.setattr(warm, "seconds_of", lambda job, environment, server: 1.0 if server else 6.0)
    warm.main()
    assert "a warm start of a notebook that prints: 1 s (goal at most 1.5: reached); cold 6.00 s" in (
        capsys.readouterr().out
    )


def test_growth_between_too_few_records_is_no_result(capsys) -> None:
    growth.conclude_growth("--plan", {50: 0.5, 250: 0.4, 500: 0.7})
    assert capsys.readouterr().out == "--plan: 50 and 250 records are too few to tell them apart\n"


def test_a_benchmark_that_is_stopped_is_the_last_row(monkeypatch, capfd) -> None:
    monkeypatch.setattr(all_benchmarks, "PARTS", {"first": ((), ()), "second": ((), ())})
    measured = {"title": "speed", "value": "2 times", "goal": "at least 1: reached"}
    monkeypatch.setattr(all_benchmarks, "run_part", lambda name, arguments: ([measured], None))  # as after Ctrl-C
    assert all_benchmarks.main([]) == 1
    *_, row, last = capfd.readouterr().out.splitlines()
    assert row.startswith("| first | speed | 2 times | at least 1: reached | ")
    assert last.startswith("| first | stopped |")


def test_the_table_of_all_has_every_benchmark() -> None:
    scripts = {path.stem for path in Path(all_benchmarks.__file__).parent.glob("[!_]*.py") if MAIN in path.read_text()}
    assert scripts - {"gpu"} == set(all_benchmarks.PARTS)


def test_importing_them_leaves_progress_bars_to_the_processes_of_other_tests() -> None:
    assert "TQDM_DISABLE" not in os.environ


@pytest.mark.slow
def test_kept_pixels_are_timed() -> None:
    found, status = all_benchmarks.run_part("pixels", ("--images", "2", "--pairs", "1"))
    assert (len(found), status) == (2, 0)


def test_tf32_is_switched_back_even_after_an_error() -> None:
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in switches]
    with pytest.raises(ValueError), gpu_device.tf32():
        assert all(each.allow_tf32 for each in switches)
        raise ValueError
    assert [each.allow_tf32 for each in switches] == before


@pytest.mark.slow
def test_every_row_of_the_gpu_script_but_compiling_runs_on_a_cpu(monkeypatch) -> None:
    monkeypatch.setattr(gpu_device, "GROUP_SECONDS", 0)
    monkeypatch.setattr(gpu_device, "GROUPS", 1)
    monkeypatch.setattr(rows, "OVERTIME", 100)  # however busy the machine is
    narrow = replace(load_encoder_manifest("panderm_tiny"), width=24, depth=4, num_features=24)
    for module in (gpu_device, finetune, segmentation):
        monkeypatch.setattr(module, "load_encoder_manifest", lambda name: narrow)
    plan = gpu.plan
    monkeypatch.setattr(gpu, "plan", lambda device: [row for row in plan(device) if "compiled" not in row.title])
    table = gpu.measure(torch.device("cpu"), TINY, 6_000)
    assert not table.left_out and len(table.results) > 20
    wrong = {title: result for title, result in table.results if result.value in ("failed", "cut off", "out of memory")}
    assert not wrong
    assert not [title for title, result in table.results if "MISSED" in result.remark]


@pytest.mark.paper
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_row_of_the_gpu_script_runs_on_a_gpu() -> None:
    table = gpu.measure(torch.device("cuda"), replace(TINY, encoders=("panderm_base",)), 300)
    assert table.results and not [title for title, result in table.results if result.value == "failed"]
