"""Deployment files, checked without a cloud: cluster.yaml, deploy/ and the commands in docs/.

Ray's own schema, scheduler and reader of KubeRay's resources, Databricks' SDK and the command line of every job check them.
"""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tyro
import yaml
from databricks.sdk.service.jobs import JobSettings
from ray.autoscaler._private.aws import node_provider as aws
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.core.generated.autoscaler_pb2 import GangResourceRequest, ResourceRequest

from tests.support.processes import ROOT

pytestmark = pytest.mark.unit

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB, CLAIM = yaml.safe_load_all((ROOT / "deploy" / "rayjob.yaml").read_text())
BUNDLE = yaml.safe_load((ROOT / "deploy" / "databricks.yml").read_text())
WITH_COMMANDS = [ROOT / "cluster.yaml", *sorted((ROOT / "docs").glob("*.md"))]
MACHINES = {"m6i.2xlarge": (8, 32, 0), "m6i.8xlarge": (32, 128, 0), "g5.12xlarge": (48, 192, 4)}
TRAINING = {"CPU": 1, "GPU": 1, "training": 1}


def commands() -> list[list[str]]:
    """Returns the arguments of every `python jobs/...` in the texts, comments included, and of every spark_python_task."""
    found = []
    for file in WITH_COMMANDS:
        text = re.sub(r"\\\n[#\s]*", " ", file.read_text())
        found += re.findall(r"python (jobs/\w+\.py[^\n`]*)", text)
    found.append(RAYJOB["spec"]["entrypoint"].removeprefix("python "))
    argvs = [shlex.split(command, comments=True) for command in found]
    tasks = [task["spark_python_task"] for job in BUNDLE["resources"]["jobs"].values() for task in job["tasks"]]
    return argvs + [[task["python_file"].removeprefix("../"), *task["parameters"]] for task in tasks]


def substituted(argument: str) -> str:
    """Replaces the bundle's variables by their defaults."""
    return re.sub(r"\$\{var\.(\w+)}", lambda found: BUNDLE["variables"][found[1]]["default"], argument)


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_every_job_runs_as_a_script(job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(job), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("argv", commands(), ids=lambda argv: " ".join(argv)[:60])
def test_every_job_named_accepts_its_command_line(argv: list[str]) -> None:
    file, *arguments = [substituted(argument) for argument in argv]
    assert (ROOT / file).is_file() and not any("${" in argument for argument in arguments)
    job = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    if file == "jobs/prepare_data.py":
        assert tyro.cli(job.PrepareJob, args=arguments).parquet
    elif file == "jobs/serve.py":
        assert tyro.cli(job.ServeJob, args=arguments).retriever
    elif file == "jobs/replay.py":
        assert tyro.cli(job.Replay, args=arguments).run_dir
    elif file == "jobs/score.py":
        assert tyro.cli(job.ScoreConfig, args=arguments).rows
    elif file == "jobs/recommend.py":
        assert tyro.cli(job.RecommendConfig, args=arguments).users
    elif file == "jobs/monitor.py":
        assert tyro.cli(job.MonitorJob, args=arguments).log
    elif file == "jobs/plan.py":
        models = {name.replace("_", "-"): (name, job.planned(name)) for name in job.MODELS}
        planned = tyro.extras.overridable_config_cli(models, args=arguments)
        assert planned.schema or planned.data.path
    elif hasattr(job, "CONFIG"):
        assert tyro.cli(type(job.CONFIG), args=arguments, default=job.CONFIG).run_dir
    else:
        assert tyro.cli(get_type_hints(job.main)["job"], args=arguments)


def test_the_commands_are_found() -> None:
    """Without any command the test above would pass."""
    files = [argv[0] for argv in commands()]
    assert files.count("jobs/train_dlrm.py") >= 4 and files.count("jobs/prepare_data.py") >= 3


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Returns cluster.yaml as `ray up` completes it, with AWS's list of machine types replaced, and a user who has a token."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    monkeypatch.setenv("HOME", str(tmp_path))
    listed = [
        {
            "InstanceType": name,
            "VCpuInfo": {"DefaultVCpus": cpus},
            "MemoryInfo": {"SizeInMiB": memory * 1024},
            **({"GpuInfo": {"Gpus": [{"Name": "A10G", "Manufacturer": "NVIDIA", "Count": gpus}]}} if gpus else {}),
        }
        for name, (cpus, memory, gpus) in MACHINES.items()
    ]
    monkeypatch.setattr(aws, "list_ec2_instances", lambda *_: listed)
    return aws.AWSNodeProvider.fillout_available_node_types_resources(prepare_config(CLUSTER))


def test_cluster_is_valid_by_ray_and_starts_without_workers(filled: dict[str, Any]) -> None:
    validate_config(filled)
    types = filled["available_node_types"]
    assert types.pop("head")["resources"] == {"CPU": 0}
    assert types and all(node_type["min_workers"] == 0 < node_type["max_workers"] for node_type in types.values())
    spot, on_demand = (dict(types[name]["resources"]) for name in ("gpu_spot", "gpu_on_demand"))
    assert spot.pop("spot") == on_demand.pop("on_demand") and spot == on_demand
    assert spot["training"] == spot["GPU"] == 4


def test_cluster_mounts_and_installs_what_the_repository_has() -> None:
    mounts = {remote: local for remote, local in CLUSTER["file_mounts"].items() if not local.startswith("~")}
    assert mounts and all((ROOT / local).exists() for local in mounts.values())
    assert CLUSTER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    text = "\n".join(CLUSTER["setup_commands"])
    locks = re.findall(r"\w+\.lock", text)
    assert sorted(locks) == ["cpu.lock", "gpu.lock"] and all((ROOT / "requirements" / lock).exists() for lock in locks)
    uv = re.findall(r"uv==[\d.]+", text)
    assert uv and uv == re.findall(r"uv==[\d.]+", (ROOT / "Makefile").read_text())
    assert "RAY_AUTH_MODE=token" in text


def launched(
    cluster: dict[str, Any], workers: list[dict[str, float]], tasks: int = 0, failed: dict[str, float] | None = None
) -> dict[str, int]:
    """Returns the nodes that Ray's autoscaler starts in a cluster with only a head, for a group of workers and for CPU tasks."""
    config = AutoscalingConfig(cluster)
    bundles = [ResourceRequest(resources_bundle=worker) for worker in workers + [{"CPU": 1}] * tasks]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        gang_resource_requests=[GangResourceRequest(requests=bundles)],
        recoverable_resource_availabilities=failed or {},
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_gang_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "head"}


def test_autoscaler_takes_spot_then_on_demand_and_gpus_for_training_only(filled: dict[str, Any]) -> None:
    assert launched(filled, [TRAINING] * 8) == {"gpu_spot": 2}
    assert launched(filled, [TRAINING] * 40) == {"gpu_spot": 8, "gpu_on_demand": 2}
    assert launched(filled, [TRAINING] * 8, failed={"gpu_spot": 0.5}) == {"gpu_on_demand": 2}
    assert launched(filled, [TRAINING | {"on_demand": 0.01}] * 8) == {"gpu_on_demand": 2}
    assert launched(filled, [{"CPU": 1, "training": 1}]) == {"gpu_spot": 1}  # training on CPUs, too
    assert launched(filled, [], tasks=64) == {"preparation": 2}


def test_rayjob_scales_gpu_pods_from_zero() -> None:
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    spec = RAYJOB["spec"]["rayClusterSpec"]
    cluster = {"metadata": {"name": "train-dlrm", "namespace": "default"}, "spec": spec}
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    head, gpu = config["available_node_types"]["headgroup"], config["available_node_types"]["gpu"]
    assert head["resources"]["CPU"] == 0 and spec["enableInTreeAutoscaling"] is True
    assert gpu["min_workers"] == 0 < gpu["max_workers"] and gpu["resources"]["training"] == gpu["resources"]["GPU"] == 4
    assert spec["workerGroupSpecs"][0]["replicas"] == 0
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "requirements" / "gpu.lock").read_text()


def test_rayjob_pods_mount_what_they_declare() -> None:
    spec = RAYJOB["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert [pod["containers"][0]["name"] for pod in pods] == ["ray-head", "ray-worker"]
    for pod in pods:
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert "/shared" in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert CLAIM["kind"] == "PersistentVolumeClaim" and CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def test_image_copies_what_the_repository_has() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    allowed = [line.removeprefix("!") for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()]
    assert sources
    for source in sources:
        assert all((ROOT / source.replace("${LOCK}", lock)).exists() for lock in ("cpu", "gpu"))
        assert source.split("/")[0] in allowed


@pytest.mark.parametrize("name", BUNDLE["resources"]["jobs"])
def test_bundle_job_loses_no_key_in_databricks_own_classes(name: str) -> None:
    """The SDK drops keys that it does not know, so a misspelt one would be missing."""
    job = BUNDLE["resources"]["jobs"][name]
    assert JobSettings.from_dict(job).as_dict() == job
    (task,) = job["tasks"]
    assert task["job_cluster_key"] in [cluster["job_cluster_key"] for cluster in job["job_clusters"]]
    assert (ROOT / "deploy" / task["spark_python_task"]["python_file"]).resolve().is_file()


def test_bundle_clusters_fit_their_engines() -> None:
    clusters = {name: job["job_clusters"][0]["new_cluster"] for name, job in BUNDLE["resources"]["jobs"].items()}
    spark, on_ray = clusters["train_spark"], clusters["train_ray"]
    assert "autoscale" not in spark and spark["spark_conf"]["spark.task.resource.gpu.amount"] == "1"
    assert spark["num_workers"] * 4 >= int(BUNDLE["variables"]["workers"]["default"])  # four GPUs each
    parameters = BUNDLE["resources"]["jobs"]["train_ray"]["tasks"][0]["spark_python_task"]["parameters"]
    nodes = [int(value) for value in parameters[parameters.index("--launch.ray.spark-nodes") + 1 :][:2]]
    assert nodes == [on_ray["autoscale"]["min_workers"], on_ray["autoscale"]["max_workers"]]
    used = set(re.findall(r"\$\{var\.(\w+)}", (ROOT / "deploy" / "databricks.yml").read_text()))
    assert used == set(BUNDLE["variables"])
