"""How a process finds the others of its job, and the errors if it cannot."""

import pytest

from imagen_booth.distributed import processes
from imagen_booth.errors import InputError

# What srun sets for a task of a step with two of them, and what the shell of
# ``salloc -n2`` has: the size of the allocation, and a step of one task.
SLURM_TASK = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
SLURM_SHELL = SLURM_TASK | {"SLURM_STEP_NUM_TASKS": "1"}


def without(environ, name):
    return {key: value for key, value in environ.items() if key != name}


@pytest.mark.parametrize(
    ("environ", "chips", "kind"),
    [
        ({}, False, None),
        ({}, True, "gcetpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, True, None),
        ({"TPU_WORKER_HOSTNAMES": ""}, True, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": ""}, True, None),
        ({"TPU_PROCESS_ADDRESSES": "local"}, True, None),  # a hosted notebook
        (SLURM_TASK, False, "slurm"),
        (SLURM_SHELL, False, None),
        (SLURM_TASK | {"SLURM_NTASKS": "1"}, False, None),
        *((without(SLURM_TASK, name), False, None) for name in SLURM_TASK),
        ({"SLURM_NTASKS": "2"}, False, None),  # a batch script before its srun
    ],
)
def test_cluster_of_a_process(environ, chips, kind):
    assert processes.cluster(environ, chips) == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.2:8476", 0, -1), "go together"),
        (("", 2, 0), "go together"),
        (("10.0.0.2:8476", 2, -1), "go together"),
        (("10.0.0.2", 2, 0), r"--coordinator=10.0.0.2 should be HOST:PORT"),
        ((":8476", 2, 0), "should be HOST:PORT"),
        (("10.0.0.2:8476", 2, 2), "--process_id=2 of --processes=2 .* from 0 to 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        processes.start(*arguments)


@pytest.mark.parametrize("kind", ["slurm", "gketpu", "gcetpu"])
def test_cluster_is_started_by_its_name_in_jax(kind, monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "cluster", lambda environ, chips: kind)
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda **given: calls.append(given)
    )
    processes.start()
    assert [given["cluster_detection_method"] for given in calls] == [kind]
    assert "coordinator_address" not in calls[0]


def test_one_process_alone_looks_for_no_cluster(monkeypatch):
    monkeypatch.setattr(processes, "cluster", lambda environ, chips: "slurm")
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **_: 1 / 0)
    processes.start(processes=1)
    assert not processes.may_be_several("", 1, -1)


def test_cluster_that_does_not_answer_is_one_sentence(monkeypatch):
    def fail(**_):
        raise RuntimeError("Failed to recognize coordinator address a\nmore")

    monkeypatch.setattr(processes, "cluster", lambda environ, chips: "gketpu")
    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=r"gketpu.*recognize.*address a\. Start"):
        processes.start()


def test_one_process_checks_nothing(tmp_path):
    processes.check_shared("--workdir", tmp_path / "nowhere")
    processes.check_same_files("config.subject.photos", tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())
