"""How processes find out that they are several, and what they say if they cannot."""

import pytest

from imagen_booth.distributed import processes
from imagen_booth.errors import InputError

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]"}


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
        (SLURM | {"SLURM_NTASKS": "2"}, False, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, False, None),
        (SLURM, False, None),
        ({"SLURM_NTASKS": "2"}, False, None),  # a batch script before its srun
    ],
)
def test_where_a_process_runs(environ, chips, kind):
    assert processes.cluster(environ, chips) == kind


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("10.0.0.2:8476", 0, -1), "go together"),
        (("", 2, 0), "go together"),
        (("10.0.0.2:8476", 2, -1), "go together"),
        (("10.0.0.2", 2, 0), r"--coordinator=10.0.0.2 should be HOST:PORT"),
        ((":8476", 2, 0), "should be HOST:PORT"),
        (("10.0.0.2:8476", 2, 2), "--process_id=2 of --processes=2 .* from 0 to 1"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, said):
    with pytest.raises(InputError, match=said):
        processes.start(*arguments)


@pytest.mark.parametrize("kind", ["slurm", "gketpu", "gcetpu"])
def test_a_cluster_is_started_by_the_name_jax_has_for_it(kind, monkeypatch):
    asked = []
    monkeypatch.setattr(processes, "cluster", lambda environ, chips: kind)
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda **given: asked.append(given)
    )
    processes.start()
    assert [given["cluster_detection_method"] for given in asked] == [kind]
    assert "coordinator_address" not in asked[0]


def test_a_cluster_that_does_not_answer_is_one_sentence(monkeypatch):
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
