"""``ray_cluster.yaml``: what Ray, EC2 and bash would refuse is found without an account or a network."""

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
FILE = ROOT / "ray_cluster.yaml"
COMMANDS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@pytest.fixture
def given() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(FILE.read_text())
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


def test_ec2_knows_every_setting_of_a_node(config: dict[str, Any]) -> None:
    service = botocore.session.Session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    for name, node_type in config["available_node_types"].items():
        problems = ParamValidator().validate(node_type["node_config"] | {"MinCount": 1, "MaxCount": 1}, shape)
        assert not problems.has_errors(), f"{name}: {problems.generate_report()}"


def test_the_head_runs_no_task(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0


def test_there_is_a_pool_with_gpus_and_one_without_and_both_can_grow_to_their_limit(config: dict[str, Any]) -> None:
    pools = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    with_gpu = {name: bool(re.match(r"[gp]\d", kind["node_config"]["InstanceType"])) for name, kind in pools.items()}
    assert sorted(with_gpu.values()) == [False, True]
    assert all(0 <= kind["min_workers"] < kind["max_workers"] for kind in pools.values())
    assert sum(kind["max_workers"] for kind in pools.values()) <= config["max_workers"]


def test_only_a_pool_with_gpus_starts_an_image_with_a_driver(config: dict[str, Any]) -> None:
    for kind in config["available_node_types"].values():
        node = kind["node_config"]
        assert ("nvidia" in node["ImageId"]) == bool(re.match(r"[gp]\d", node["InstanceType"]))


def test_files_that_are_copied_exist_and_commands_use_no_other(config: dict[str, Any]) -> None:
    mounts = config["file_mounts"]
    for local in mounts.values():
        assert local == "~/.ray/auth_token" or (ROOT / local).is_file(), local
    for command in commands(config):
        for path in re.findall(r"(?:~|\$HOME)/(icre/[\w./]+|\.ray/\w+)", command):
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


def test_the_jobs_of_its_header_are_ones_that_the_project_accepts() -> None:
    header = FILE.read_text().partition("\ncluster_name")[0].replace("\\\n#", "")
    jobs = [shlex.split(line.lstrip("# ")) for line in header.splitlines() if "ray job submit" in line]
    entrypoints = [job[job.index("--") + 1 :] for job in jobs]
    assert "pipelines.train" in [entrypoint[2] for entrypoint in entrypoints]
    for entrypoint in entrypoints:
        assert entrypoint[:2] == ["python", "-m"]
        assert importlib.util.find_spec(entrypoint[2]), entrypoint[2]
        options = dict(itertools.pairwise(entrypoint))
        recipe = ROOT / options["--config"] if "--config" in options else None
        resolved = load_recipe(recipe, [argument for argument in entrypoint if "=" in argument])
        assert resolved.storage.startswith("s3://"), "nodes share no disk"
