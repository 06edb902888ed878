"""The files of docs/launching: the script by running it with stand-ins, manifests by schema."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from diptych.cli.flags import parse
from diptych.cli.pretrain import PretrainFlags, pretrain
from diptych.runtime.launcher import split_arguments

FILES = Path(__file__).parents[2] / "docs" / "launching"
KUBERNETES = "1.31"

# Stand-ins for SLURM's commands and for diptych; each writes down how it was called.
SRUN = """\
#!/usr/bin/env bash
echo "srun $1 $SRUN_CPUS_PER_TASK cores" >> "$CALLS"
[ "$1" = --kill-on-bad-exit=0 ] || exit 99
shift
for node in 0 1; do SLURM_NODEID=$node "$@" & nodes="${nodes:-} $!"; done
echo "$nodes" > "$CALLS.nodes"
code=0
for node in $nodes; do wait "$node" || code=$?; done
exit "$code"
"""
SCANCEL = """\
#!/usr/bin/env bash
echo "scancel $*" >> "$CALLS"
kill -TERM $(cat "$CALLS.nodes")
"""
SCONTROL = """\
#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*" >> "$CALLS"; fi
"""
DIPTYCH = """\
#!/usr/bin/env bash
echo "diptych $*" >> "$CALLS"
trap 'sleep 0.2; exit 143' TERM
if [ "$BEHAVIOUR" != train ]; then exit "$BEHAVIOUR"; fi
while :; do sleep 0.05; done
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script, with stand-ins first on PATH."""
    for name, text in {
        "srun": SRUN,
        "scancel": SCANCEL,
        "scontrol": SCONTROL,
        "diptych": DIPTYCH,
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "16",
    }


def batch(slurm: dict[str, str], behaviour: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", FILES / "slurm.sh", "my photos/", "--out", "/shared/run"],
        env={**slurm, "BEHAVIOUR": behaviour},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def calls(slurm: dict[str, str], verb: str) -> list[str]:
    lines = Path(slurm["CALLS"]).read_text().splitlines()
    return [line for line in lines if line.startswith(verb)]


def wait_until_training(slurm: dict[str, str]) -> None:
    while not Path(slurm["CALLS"]).exists() or len(calls(slurm, "diptych")) < 2:
        time.sleep(0.02)
    time.sleep(0.2)  # the stand-ins set their traps


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", FILES / "slurm.sh"], check=True)


def test_time_runs_out_and_the_job_is_saved_and_queued_again(slurm: dict[str, str]) -> None:
    process = batch(slurm, "train")
    wait_until_training(slurm)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert said == "The time is up and the run is saved: queued again.\n"
    assert calls(slurm, "scancel") == ["scancel --signal=TERM 12345"]
    assert calls(slurm, "scontrol") == ["scontrol requeue 12345"]
    assert calls(slurm, "srun") == ["srun --kill-on-bad-exit=0 16 cores"]
    begun = sorted(calls(slurm, "diptych"))
    for line, is_host in zip(begun, ("false", "true"), strict=True):
        assert line == (
            "diptych launch --nnodes 2 --nproc-per-node 4 --rdzv-endpoint node7:22345 "
            f"--rdzv-id 12345 --rdzv-conf is_host={is_host} "
            "-- pretrain my photos/ --out /shared/run"
        )


@pytest.mark.parametrize("code", [0, 1, 137])
def test_a_job_that_ended_by_itself_is_not_queued_again(slurm: dict[str, str], code: int) -> None:
    process = batch(slurm, str(code))
    process.communicate(timeout=30)
    assert process.returncode == code
    assert not calls(slurm, "scontrol")


def test_a_job_that_was_cancelled_is_not_queued_again(slurm: dict[str, str]) -> None:
    process = batch(slurm, "train")
    wait_until_training(slurm)
    for node in Path(slurm["CALLS"] + ".nodes").read_text().split():
        os.kill(int(node), signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert not calls(slurm, "scontrol")


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FILES / name).read_text()))


def launched(shell: str) -> list[str]:
    """The arguments of `diptych launch` in a shell script."""
    return shlex.split(shell.partition("exec diptych launch")[2].replace("\\\n", " "))


def test_the_job_is_valid_and_its_parts_name_each_other() -> None:
    service, job = manifests("kubernetes-job.yaml")
    for manifest in (service, job):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == job["spec"]["template"]["metadata"]["labels"]
    assert spec["completions"] == spec["parallelism"]
    assert spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["containerName"] == container["name"]
    options, (verb, *given) = split_arguments(launched(container["args"][0]))
    named = dict(zip(options[::2], options[1::2], strict=True))
    assert named["--nnodes"] == str(spec["completions"])
    host, port = named["--rdzv-endpoint"].split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert verb == "pretrain"
    assert_out_is_on_a_volume(pod, given)


def test_a_mistake_in_a_manifest_is_found() -> None:
    _, job = manifests("kubernetes-job.yaml")
    job["spec"]["completion"] = job["spec"].pop("completions")
    with pytest.raises(kubernetes_validate.ValidationError, match="completion"):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)
    (training,) = manifests("pytorchjob.yaml")
    training["spec"]["elasticPolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(training, PYTORCHJOB)


def assert_out_is_on_a_volume(pod: dict[str, Any], given: list[str]) -> None:
    flags = parse(PretrainFlags, pretrain, given)
    (mounted,) = pod["containers"][0]["volumeMounts"]
    assert str(flags.out).startswith(mounted["mountPath"])
    assert mounted["name"] == pod["volumes"][0]["name"]
    assert pod["terminationGracePeriodSeconds"] > 120  # what the launcher may take


def _table(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


# No package ships the schema of a PyTorchJob (kubeflow.org/v1). These are the fields of its custom
# resource that may be used here; the template of a pod is checked by Kubernetes' own schema.
NUMBER, TEXT = {"type": "integer", "minimum": 0}, {"type": "string"}
PYTORCHJOB = _table(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "kubeflow.org/v1"},
    kind={"const": "PyTorchJob"},
    metadata=_table(["name"], name=TEXT, namespace=TEXT, labels={"type": "object"}),
    spec=_table(
        ["pytorchReplicaSpecs"],
        nprocPerNode=TEXT,
        elasticPolicy=_table(
            [],
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            maxRestarts=NUMBER,
            rdzvBackend=TEXT,
            rdzvHost=TEXT,
            rdzvPort=NUMBER,
            rdzvId=TEXT,
            rdzvConf={"type": "array", "items": _table(["key", "value"], key=TEXT, value=TEXT)},
        ),
        runPolicy=_table(
            [],
            activeDeadlineSeconds=NUMBER,
            backoffLimit=NUMBER,
            cleanPodPolicy={"enum": ["None", "Running", "All"]},
            ttlSecondsAfterFinished=NUMBER,
            suspend={"type": "boolean"},
        ),
        pytorchReplicaSpecs={
            "type": "object",
            "propertyNames": {"enum": ["Master", "Worker"]},
            "additionalProperties": _table(
                ["replicas", "template"],
                replicas=NUMBER,
                restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
                template={"type": "object"},
            ),
        },
    ),
)


def test_the_pytorchjob_is_valid() -> None:
    (job,) = manifests("pytorchjob.yaml")
    jsonschema.validate(job, PYTORCHJOB)
    spec, worker = job["spec"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    template = {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": "worker"},
        "template": worker["template"],
    }
    kubernetes_validate.validate(template, KUBERNETES, strict=True)
    policy = spec["elasticPolicy"]
    assert policy["minReplicas"] <= worker["replicas"] <= policy["maxReplicas"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(spec["nprocPerNode"])
    program, verb, *arguments = container["command"]
    assert [program, verb] == ["diptych", "launch"]
    options, (launched_verb, *given) = split_arguments(arguments)
    assert not options
    assert launched_verb == "pretrain"
    assert_out_is_on_a_volume(worker["template"]["spec"], given)
