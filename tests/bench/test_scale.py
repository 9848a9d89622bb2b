"""Claims about sweeps: the same records everywhere, nothing done twice, nothing lost to a death."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from support.sweeping import doubled, mortal, refusing, tiny_write, unspeakable

from lorewright.bench.scale import Step, record_path, run
from lorewright.errors import ConfigError, DataError, JobFailed, Locked, StorageError
from lorewright.files import LOCK_FILE


def stored(folder: Path) -> list[dict[str, Any]]:
    """Every record of a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


WRITES = [{"rank": rank, "seed": seed} for rank in (1, 2) for seed in (0, 1)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(tiny_write, WRITES, tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A real Ray cluster of this machine, for the tests that need one."""
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else a warning on machines without GPU
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env=environment,
        )
    yield
    ray.shutdown()


# --- records


def test_records_are_files_of_plain_json_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    jobs = [{"n": n} for n in (3, 1, 2)]
    result = run(doubled, jobs, tmp_path)
    assert result == [{"twice": 2 * n, "pair": [1, 2]} for n in (3, 1, 2)]
    entry = json.loads(record_path(tmp_path, doubled, {"n": 3}).read_text())
    assert (entry["task"], entry["job"], entry["record"]) == (
        "support.sweeping:doubled",
        jobs[0],
        result[0],
    )
    assert entry["run"]["seconds"] >= 0
    assert sorted(e["job"]["n"] for e in stored(tmp_path)) == [1, 2, 3]
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize("on", ["here", "local:2"])
def test_an_interrupted_sweep_goes_on_and_does_nothing_twice(tmp_path: Path, on: str) -> None:
    jobs = [{"n": n, "marks": str(tmp_path)} for n in range(4)]
    steps: list[Step] = []

    def interrupt(step: Step) -> None:
        if step.n_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(doubled, jobs, tmp_path / "records", on=on, progress=interrupt)
    assert len(stored(tmp_path / "records")) == 2
    run(doubled, [*jobs, jobs[0]], tmp_path / "records", progress=steps.append)
    assert steps[0] == Step(2, 4, 2)
    assert steps[-1] == Step(4, 4, 2)
    done = [(tmp_path / str(n)).read_text() for n in range(4)]
    # A job in the hands of a worker when the sweep was interrupted has no record and is done again.
    assert all(marks == "." for marks in done) if on == "here" else max(map(len, done)) <= 2


def test_equal_jobs_are_done_once(tmp_path: Path) -> None:
    job = {"n": 1, "marks": str(tmp_path)}
    assert run(doubled, [job, job], tmp_path / "records") == 2 * [{"twice": 2, "pair": [1, 2]}]
    assert (tmp_path / "1").read_text() == "."


def test_records_of_another_task_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    run(doubled, [{"n": 1}], tmp_path)
    path = record_path(tmp_path, doubled, {"n": 1})
    path.write_text(path.read_text().replace("doubled", "halved"))
    with pytest.raises(DataError, match="is no record of support\\.sweeping:doubled"):
        run(doubled, [{"n": 1}], tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="delete it"):
        run(doubled, [{"n": 1}], tmp_path)


def test_two_sweeps_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / LOCK_FILE), pytest.raises(Locked, match="sweeping into"):
        run(doubled, [{"n": 1}], tmp_path)


def test_a_file_is_no_folder_of_records(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="could not be written"):
        run(doubled, [{"n": 1}], tmp_path / "file")


# --- failures


@pytest.mark.parametrize("on", ["here", "local:2"])
def test_a_task_that_raises_is_named_and_the_others_are_kept(tmp_path: Path, on: str) -> None:
    jobs = [{"n": n} for n in range(5)]
    with pytest.raises(JobFailed, match=r"2 of 5 .*\{'n': [13]\}: ValueError: [13] is odd"):
        run(refusing, jobs, tmp_path, on=on)
    assert sorted(entry["job"]["n"] for entry in stored(tmp_path)) == [0, 2, 4]


def test_a_record_that_is_no_json_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="ValueError"):
        run(unspeakable, [{}], tmp_path)


def test_killing_a_worker_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    jobs = [{"n": n, "marks": str(tmp_path), "lives": 2 * (n == 2)} for n in range(5)]
    result = run(mortal, jobs, tmp_path / "records", on="local:2", retries=2)
    assert [record["twice"] for record in result] == [0, 2, 4, 6, 8]
    assert (tmp_path / "deaths-2").read_text() == ".."
    assert all((tmp_path / str(n)).read_text() == "." for n in range(5))


def test_a_job_that_kills_every_worker_is_given_up_and_named(tmp_path: Path) -> None:
    jobs = [{"n": n, "marks": str(tmp_path), "lives": 9 * (n == 0)} for n in range(3)]
    with pytest.raises(JobFailed, match=r"1 of 3 jobs failed.*its worker died 2 times"):
        run(mortal, jobs, tmp_path / "records", on="local:1", retries=1)
    assert len(stored(tmp_path / "records")) == 2


@pytest.mark.parametrize("on", ["", "there", "local", "local:0", "local:two", "ray:", "ray://"])
def test_unknown_places_are_refused_with_the_known_ones(tmp_path: Path, on: str) -> None:
    with pytest.raises(ConfigError, match="choose here, local:K"):
        run(doubled, [{"n": 1}], tmp_path, on=on)


def test_tasks_that_no_worker_could_import_are_refused(tmp_path: Path) -> None:
    def inner(job: dict[str, Any]) -> dict[str, Any]:
        return job

    for task in (inner, lambda job: job):
        with pytest.raises(ConfigError, match="define it in a module"):
            run(task, [{"n": 1}], tmp_path)


def test_without_ray_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install lorewright\[ray\]"):
        run(doubled, [{"n": 1}], tmp_path, on="ray")


# --- the same everywhere


@pytest.mark.slow
def test_real_writes_give_identical_records_in_local_processes(
    here: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert len({record["adapter"] for record in here}) == len(WRITES)
    assert run(tiny_write, WRITES, tmp_path, on="local:2") == here


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_real_writes_give_identical_records_on_a_ray_cluster(
    here: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert run(tiny_write, WRITES, tmp_path, on="ray") == here


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_killing_a_ray_worker_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    jobs = [{"n": n, "marks": str(tmp_path), "lives": n == 2} for n in range(5)]
    result = run(mortal, jobs, tmp_path / "records", on="ray", retries=2)
    assert [record["twice"] for record in result] == [0, 2, 4, 6, 8]
    assert (tmp_path / "deaths-2").read_text() == "."
    hopeless = {"n": 9, "marks": str(tmp_path), "lives": 9}
    with pytest.raises(JobFailed, match=r"1 of 6 jobs failed.*its worker died 2 times"):
        run(mortal, [*jobs, hopeless], tmp_path / "records", on="ray", retries=1)


@pytest.mark.slow
def test_a_local_cluster_is_started_and_ended(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code = (
        "from pathlib import Path\n"
        "import ray\n"
        "from support.sweeping import doubled\n"
        "from lorewright.bench.scale import run\n"
        f"print(run(doubled, [{{'n': 4}}], Path({str(tmp_path)!r}), on='ray')[0]['twice'])\n"
        "assert not ray.is_initialized()\n"
    )
    tests = str(Path(__file__).parents[1])
    python = [sys.executable, "-c", code]
    done = subprocess.run(
        python, cwd=tests, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["8"], done.stderr
