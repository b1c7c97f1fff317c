"""The files for ``ray up``: what Ray, EC2 and bash would refuse is found without an account or a network."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from icre.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
AWS = ROOT / "ray_cluster.yaml"
FILES = {"aws": AWS, "gcp": ROOT / "cluster/ray_up/gcp.yaml", "local": ROOT / "cluster/ray_up/on_premise.yaml"}
FROM_HOME = {"~/.ray/auth_token", "~/.icre/storage.env"}
"""Secrets, copied from the home of whoever starts the cluster."""
COMMANDS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@pytest.fixture(params=FILES)
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def given(provider: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(FILES[provider].read_text())
    return content


@pytest.fixture
def config(given: dict[str, Any]) -> dict[str, Any]:
    """As Ray sees it: with its defaults filled in."""
    prepared: dict[str, Any] = prepare_config(given)
    return prepared


def commands(config: dict[str, Any]) -> list[str]:
    return [command for key in COMMANDS for command in config[key]]


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(config)


def test_the_ray_that_accepts_it_is_the_one_that_nodes_install(config: dict[str, Any]) -> None:
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text().splitlines()
    installs = [command for command in commands(config) if "pip install" in command]
    assert installs
    assert all(" -c ~/icre/constraints.txt " in command for command in installs)


@pytest.mark.parametrize("provider", ["aws"], indirect=True)
def test_ec2_knows_every_setting_of_a_node(config: dict[str, Any]) -> None:
    service = botocore.session.Session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    for name, node_type in config["available_node_types"].items():
        problems = ParamValidator().validate(node_type["node_config"] | {"MinCount": 1, "MaxCount": 1}, shape)
        assert not problems.has_errors(), f"{name}: {problems.generate_report()}"


def with_gpu(node: dict[str, Any]) -> bool:
    return bool(re.match(r"([gp]\d|a\d-)", node.get("InstanceType") or node["machineType"]))


def image_of(node: dict[str, Any]) -> str:
    return str(node.get("ImageId") or node["disks"][0]["initializeParams"]["sourceImage"])


def test_the_head_runs_no_task(provider: str, config: dict[str, Any]) -> None:
    if provider == "local":  # one kind of node for all: Ray is told where it starts
        assert {"--num-cpus=0", "--num-gpus=0"} <= set(config["head_start_ray_commands"][-1].split())
        assert "--num-cpus" not in config["worker_start_ray_commands"][-1]
        return
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0


@pytest.mark.parametrize("provider", ["aws", "gcp"], indirect=True)
def test_there_is_a_pool_with_gpus_and_one_without_and_both_can_grow_to_their_limit(config: dict[str, Any]) -> None:
    pools = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert sorted(with_gpu(kind["node_config"]) for kind in pools.values()) == [False, True]
    assert all(0 <= kind["min_workers"] < kind["max_workers"] for kind in pools.values())
    assert sum(kind["max_workers"] for kind in pools.values()) <= config["max_workers"]


@pytest.mark.parametrize("provider", ["aws", "gcp"], indirect=True)
def test_only_a_pool_with_gpus_starts_an_image_with_a_driver(config: dict[str, Any]) -> None:
    for kind in config["available_node_types"].values():
        assert ("nvidia" in image_of(kind["node_config"])) == with_gpu(kind["node_config"])


@pytest.mark.parametrize("provider", ["gcp"], indirect=True)
def test_where_ray_cannot_ask_what_a_machine_has_it_is_told(config: dict[str, Any]) -> None:
    for name, kind in config["available_node_types"].items():
        if name != config["head_node_type"]:
            assert kind["resources"]["CPU"] == int(kind["node_config"]["machineType"].rpartition("-")[2])
            assert bool(kind["resources"].get("GPU")) == with_gpu(kind["node_config"])


def test_a_head_is_never_a_machine_that_may_be_taken_away(provider: str, config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]["node_config"]
    assert "InstanceMarketOptions" not in head and "scheduling" not in head


def test_the_dashboard_and_the_job_server_are_on_loopback_and_metrics_on_a_known_port(config: dict[str, Any]) -> None:
    head, worker = (config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"]
    assert all("--metrics-export-port=8080" in command and "ulimit -n 65536" in command for command in (head, worker))


def test_keys_come_from_the_starters_home_and_others_on_the_node_cannot_read_them(config: dict[str, Any]) -> None:
    secret = FROM_HOME & set(config["file_mounts"])
    closed = next(command for command in config["setup_commands"] if command.startswith("chmod 600 "))
    assert set(closed.split()[2:]) == secret
    for path in secret - {"~/.ray/auth_token"}:
        starts = [config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
        assert all(f"set -a; . {path}; set +a" in command for command in starts)


def test_files_that_are_copied_exist_and_commands_use_no_other(config: dict[str, Any]) -> None:
    mounts = config["file_mounts"]
    for local in mounts.values():
        assert local in FROM_HOME or (ROOT / local).is_file(), local
    for command in commands(config):
        for path in re.findall(r"(?:~|\$HOME)/(icre/[\w./]+|\.ray/\w+|\.icre/[\w.]+)", command):
            assert f"~/{path}" in mounts, f"{path} in: {command}"


def test_a_node_starts_ray_from_the_environment_it_installed_and_with_the_token(config: dict[str, Any]) -> None:
    environment = next(command for command in config["setup_commands"] if ".bashrc" in command)
    assert "RAY_AUTH_MODE=token" in environment
    assert 'PATH="$HOME/venv/bin:$PATH"' in environment
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][-1]
    assert "$RAY_HEAD_IP" in config["worker_start_ray_commands"][-1]


def test_commands_are_bash(config: dict[str, Any]) -> None:
    for command in commands(config):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_a_second_run_adds_nothing_to_the_environment(given: dict[str, Any], tmp_path: Path) -> None:
    command = next(command for command in given["setup_commands"] if ".bashrc" in command)
    for _ in range(2):
        subprocess.run(["bash", "-c", command], check=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    shown = subprocess.run(
        ["bash", "-c", ". ~/.bashrc && echo $RAY_AUTH_MODE $PATH"],
        check=True,
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert shown.stdout == f"token {tmp_path}/venv/bin:/usr/bin:/bin\n"
    assert (tmp_path / ".bashrc").read_text().count("export") == 1


def test_the_jobs_of_its_header_are_ones_that_the_project_accepts(provider: str) -> None:
    header = FILES[provider].read_text().partition("\ncluster_name")[0].replace("\\\n#", "")
    lines = [line.lstrip("# ") for line in header.splitlines()]
    jobs = [shlex.split(line, comments=True) for line in lines if line.startswith(("icre submit ", "ray job submit "))]
    assert {"prepare", "train"} <= {job[2] for job in jobs}
    for job in jobs:
        entrypoint = job[job.index("--") + 1 :] if "--" in job else ["python", "-m", f"pipelines.{job[2]}", *job[3:]]
        assert entrypoint[:2] == ["python", "-m"]
        assert importlib.util.find_spec(entrypoint[2]), entrypoint[2]
        options = dict(itertools.pairwise(entrypoint))
        recipe = ROOT / options["--config"] if "--config" in options else None
        resolved = load_recipe(recipe, [argument for argument in entrypoint if "=" in argument])
        assert resolved.storage.startswith("s3://"), "nodes share no disk"
