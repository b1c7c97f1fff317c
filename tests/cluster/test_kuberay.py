"""The manifests for KubeRay: what the API server, the operator, our command line and a security review would refuse."""

from __future__ import annotations

import copy
import functools
import http.server
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import typer
import yaml
from jsonschema import Draft7Validator

from cluster.kuberay.start_job import Api, KubernetesError, copy_of, start
from icre import config
from icre.config import load_recipe
from icre.errors import UserError
from pipelines.cli import app
from pipelines.jobs import manifest
from pipelines.runtime.command import run_app

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
SCHEMAS = Path(os.environ.get("ICRE_SHARED_DATA", ROOT.parent / "shared" / "data")) / "kuberay-crds"
KUBERNETES = "1.33"
Object = dict[str, Any]

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which renders overlays, is missing"
)
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"KubeRay's schemas are not at {SCHEMAS}")


def kustomize(folder: Path) -> list[Object]:
    ran = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(ran.stdout))


@functools.cache
def rendered(name: str) -> list[Object]:
    if name == "base":
        return manifest.base_manifests(ROOT / manifest.BASE)
    return kustomize(KUBERAY / "overlays" / name)


@pytest.fixture(params=["base", *(pytest.param(name, marks=needs_kubectl) for name in ("small", "production"))])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return copy.deepcopy(rendered(request.param))


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod template, with a name that says where it is."""
    for found in objects:
        spec, name = found.get("spec", {}), f"{found['kind']} {found['metadata']['name']}"
        clusters = (
            [spec] if found["kind"] == "RayCluster" else [spec["rayClusterSpec"]] if "rayClusterSpec" in spec else []
        )
        for cluster in clusters:
            yield f"{name} head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{name} {group['groupName']}", group["template"]
        if "submitterPodTemplate" in spec:
            yield f"{name} submitter", spec["submitterPodTemplate"]
        if found["kind"] == "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for name, pod in pods(objects):
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            yield f"{name}/{container['name']}", container


# What the API server and the operator would refuse


def strict(schema: Any) -> Any:
    """Unknown fields become errors: the API server prunes them without a word."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


@functools.cache
def validator(kind: str) -> Draft7Validator:
    definition = yaml.load((SCHEMAS / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=yaml.CSafeLoader)
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"].pop("additionalProperties", None)
    return Draft7Validator(schema)


def problems(found: Object) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in validator(found["kind"]).iter_errors(found)]


@needs_schemas
def test_kuberay_knows_every_field(objects: list[Object]) -> None:
    ours = [found for found in objects if found["apiVersion"].startswith("ray.io/")]
    assert {found["kind"] for found in ours} == {"RayCluster", "RayJob"}
    for found in ours:
        assert problems(found) == [], found["metadata"]["name"]


@needs_schemas
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "autoscalerOptions", "idleTimeout"], 60),
        (["spec", "headGroupSpec", "template", "spec", "containers", 0, "limits"], {}),
        (["spec", "workerGroupSpecs", 0, "minReplicas"], "none"),
        (["spec", "authOptions", "mode"], "tokens"),
    ],
)
def test_a_wrong_field_would_be_found(path: list[Any], value: Any) -> None:
    found = copy.deepcopy(of_kind(rendered("base"), "RayCluster")[0])
    node: Any = found
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    assert problems(found)


def test_kubernetes_knows_every_field(objects: list[Object]) -> None:
    core = [found for found in objects if not found["apiVersion"].startswith(("ray.io/", "monitoring.coreos.com/"))]
    assert {"ConfigMap", "CronJob", "NetworkPolicy", "PriorityClass", "Role", "RoleBinding", "ServiceAccount"} <= {
        found["kind"] for found in core
    }
    for found in core:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    for _, template in pods(objects):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | template["metadata"]}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


@needs_kubectl
def test_without_kubectl_the_base_is_the_same() -> None:
    def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
        return {(found["kind"], found["metadata"]["name"]): found for found in objects}

    assert by_name(rendered("base")) == by_name(kustomize(KUBERAY / "base"))


def test_rules_of_the_operator_that_its_schema_does_not_hold(objects: list[Object]) -> None:
    for job in of_kind(objects, "RayJob"):
        spec = job["spec"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
        assert spec["shutdownAfterJobFinishes"] or not (spec["suspend"] or spec["ttlSecondsAfterFinished"])
        assert "deletionStrategy" not in spec, "needs a feature gate"
    for spec in clusters(objects):
        assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
        assert {pod["spec"]["restartPolicy"] for pod in cluster_pods(spec)} == {"Never"}, "autoscaler v2 wants it"
        for pod in cluster_pods(spec):
            assert pod["spec"]["containers"][0]["name"].startswith("ray-"), "Ray's container is the first"


def clusters(objects: list[Object]) -> list[Object]:
    return [found["spec"] for found in of_kind(objects, "RayCluster")] + [
        found["spec"]["rayClusterSpec"] for found in of_kind(objects, "RayJob")
    ]


def cluster_pods(spec: Object) -> list[Object]:
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


# Whether it does what it says


def test_jobs_run_on_the_pods_that_the_cluster_describes(objects: list[Object]) -> None:
    first, *others = clusters(objects)
    assert len(others) == 4 and all(spec == first for spec in others)


def test_the_ray_of_the_pods_is_the_pinned_one(objects: list[Object]) -> None:
    assert f"ray=={ray.__version__}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert {spec["rayVersion"] for spec in clusters(objects)} == {ray.__version__}


def test_the_head_runs_no_task_and_the_pools_grow_from_nothing(objects: list[Object]) -> None:
    for spec in clusters(objects):
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in spec["workerGroupSpecs"])
        assert all("num-cpus" not in group["rayStartParams"] for group in spec["workerGroupSpecs"])


def parsed(entrypoint: list[str]) -> dict[str, Any]:
    """The command line of a pod, by the verb's own options."""
    assert entrypoint[:2] == ["python", "-m"], entrypoint
    module = importlib.import_module(entrypoint[2])
    one = typer.Typer()
    one.command()(module.command)
    command: Any = typer.main.get_command(one)
    params: dict[str, Any] = command.make_context(entrypoint[2], entrypoint[3:]).params
    return params


def test_every_job_is_a_command_line_of_ours_with_a_recipe_that_is_there(objects: list[Object]) -> None:
    recipes = of_kind(objects, "ConfigMap")[0]["data"]
    jobs = {job["metadata"]["labels"]["icre/verb"]: job["spec"] for job in of_kind(objects, "RayJob")}
    assert set(jobs) == {"prepare", "train", "tune", "retrain"}
    for verb, spec in jobs.items():
        entrypoint = shlex.split(spec["entrypoint"])
        assert entrypoint[2] == f"pipelines.{verb}"
        path = Path(parsed(entrypoint)["config_file"])
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        mount = next(
            mount for mount in head["containers"][0]["volumeMounts"] if Path(mount["mountPath"]) == path.parent
        )
        volume = next(volume for volume in head["volumes"] if volume["name"] == mount["name"])
        assert volume["configMap"]["name"] == "icre-recipe"
        assert path.name in recipes
    assert parsed(shlex.split(jobs["train"]["entrypoint"]))["resume"] == "auto", "backoffLimit starts it again"


def test_the_recipe_is_valid_and_fits_the_pods(objects: list[Object], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(of_kind(objects, "ConfigMap")[0]["data"]["recipe.yaml"])
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.storage.startswith("s3://") and str(recipe.data.root).startswith("s3://")
    groups = of_kind(objects, "RayCluster")[0]["spec"]["workerGroupSpecs"]
    limits = [
        (group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"]) for group in groups
    ]
    gpus = sum(count * int(limit.get("nvidia.com/gpu", 0)) for count, limit in limits)
    cpus = sum(count * int(limit["cpu"]) for count, limit in limits)
    assert recipe.train.worker_range[1] * recipe.train.gpus_per_worker <= gpus
    assert recipe.train.worker_range[1] * _cpus_of_a_worker(recipe.train) <= cpus


def _cpus_of_a_worker(train: config.Train) -> float:
    return float(train.cpus_per_worker + train.loaders * train.loader_cpus)


def test_jobs_end_and_are_repeated_and_wait_to_be_started(objects: list[Object]) -> None:
    for job in of_kind(objects, "RayJob"):
        spec = job["spec"]
        assert spec["suspend"] is True, "applying the manifests starts nothing"
        assert 1 <= spec["backoffLimit"] <= 5
        assert 3600 <= spec["activeDeadlineSeconds"] <= 7 * 86400
        assert 0 < spec["ttlSecondsAfterFinished"] <= 86400


SPOT = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}


def test_drivers_are_never_on_spot_nodes_and_workers_may_be(objects: list[Object]) -> None:
    for name, pod in pods(objects):
        tolerated = {toleration.get("key") for toleration in pod["spec"].get("tolerations", [])}
        worker = re.search(r" (data|gpu)$", name)
        assert (tolerated & SPOT == SPOT) if worker else not tolerated, name
        assert pod["spec"]["priorityClassName"] == ("icre-worker" if worker else "icre-driver")
        if name.endswith(" head"):
            wanted = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            avoided = {rule["key"]: rule["operator"] for rule in wanted["nodeSelectorTerms"][0]["matchExpressions"]}
            assert set(avoided.values()) == {"NotIn", "DoesNotExist"}
            assert {*SPOT, "eks.amazonaws.com/capacityType", "karpenter.sh/capacity-type"} <= set(avoided)
    values = {found["metadata"]["name"]: found["value"] for found in of_kind(objects, "PriorityClass")}
    assert values["icre-driver"] > values["icre-worker"]


def quantity(text: str) -> float:
    match = re.fullmatch(r"(\d+)(m|Mi|Gi)?", text)
    assert match, text
    return int(match[1]) * {"m": 1e-3, "Mi": 2**20, "Gi": 2**30, None: 1}[match[2]]


def test_every_container_has_requests_and_limits(objects: list[Object]) -> None:
    for name, container in containers(objects):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(requests) == set(limits), name
        assert requests["memory"] == limits["memory"], f"{name}: a pod above its request is evicted first"
        assert all(quantity(requests[key]) <= quantity(limits[key]) for key in limits)
    for spec in clusters(objects):
        assert set(spec["autoscalerOptions"]["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}


def test_shared_memory_is_enough_for_rays_object_store_and_fits_the_limits(objects: list[Object]) -> None:
    for spec in clusters(objects):
        for pod in cluster_pods(spec):
            container = pod["spec"]["containers"][0]
            limits = container["resources"]["limits"]
            mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            shm = volumes[mounted["/dev/shm"]]["emptyDir"]
            assert shm["medium"] == "Memory"
            assert 0.3 * quantity(limits["memory"]) <= quantity(shm["sizeLimit"]) <= 0.5 * quantity(limits["memory"])
            disks = [v["emptyDir"] for v in volumes.values() if "emptyDir" in v and v["emptyDir"] != shm]
            assert sum(quantity(disk["sizeLimit"]) for disk in disks) <= quantity(limits["ephemeral-storage"])


# What a security review would refuse


def test_no_container_can_become_root_or_write_to_its_image(objects: list[Object]) -> None:
    everything = [(name, container["securityContext"]) for name, container in containers(objects)]
    everything += [("autoscaler", spec["autoscalerOptions"]["securityContext"]) for spec in clusters(objects)]
    for name, context in everything:
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert not context.get("privileged"), name
    for name, pod in pods(objects):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"]), name
        assert all("hostPath" not in volume for volume in pod["spec"].get("volumes", [])), name


def test_the_image_runs_as_that_user_with_the_pinned_versions() -> None:
    lines = (KUBERAY / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    installs = [line for line in lines if line.startswith("RUN pip install")]
    assert installs and all("-c constraints.txt" in line or "--no-deps" in line for line in installs)
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)


def test_secrets_are_references_alone(objects: list[Object]) -> None:
    assert of_kind(objects, "Secret") == []
    secret = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL")
    for name, container in containers(objects):
        for variable in container.get("env", []):
            if secret.search(variable["name"]):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}, f"{name}: {variable['name']}"
    for found in of_kind(objects, "ConfigMap"):
        assert not [key for key in found["data"] if secret.search(key)]
    assert all(spec["authOptions"] == {"mode": "token"} for spec in clusters(objects))
    assert all("runtimeEnvYAML" not in job["spec"] for job in of_kind(objects, "RayJob"))


def test_only_the_schedule_may_ask_the_api_and_only_for_its_jobs(objects: list[Object]) -> None:
    accounts = {found["metadata"]["name"]: found for found in of_kind(objects, "ServiceAccount")}
    assert all(found["automountServiceAccountToken"] is False for found in accounts.values())
    for name, pod in pods(objects):
        account, mounted = pod["spec"].get("serviceAccountName"), pod["spec"].get("automountServiceAccountToken")
        if name.endswith(" head"):
            assert account is None, "the operator makes one for the autoscaler"
        else:
            assert account in accounts, name
            assert mounted is (account == "icre-schedule"), name
    [role] = of_kind(objects, "Role")
    [binding] = of_kind(objects, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == ["icre-schedule"]
    assert all(rule["resources"] == ["rayjobs"] and "*" not in rule["verbs"] for rule in role["rules"])
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get", "list", "create"}
    assert of_kind(objects, "ClusterRole") == []


def test_the_network_is_closed_but_for_what_is_named(objects: list[Object]) -> None:
    [policy] = of_kind(objects, "NetworkPolicy")
    spec = policy["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    chosen = spec["podSelector"]["matchLabels"]
    for name, pod in pods(objects):
        assert chosen.items() <= pod["metadata"]["labels"].items(), f"{name} is not covered"
    for rule in spec["ingress"]:
        assert rule["from"]
        inside = rule["from"] == [{"podSelector": {"matchLabels": chosen}}]
        assert inside or {port["port"] for port in rule["ports"]} <= {8265, 8080, 44217, 44227}
    outside = [rule for rule in spec["egress"] if any("ipBlock" in to for to in rule.get("to", []))]
    assert all("169.254.0.0/16" in to["ipBlock"]["except"] for rule in outside for to in rule["to"])


def test_prometheus_finds_the_port_that_ray_exports_on(objects: list[Object]) -> None:
    for spec in clusters(objects):
        for pod in cluster_pods(spec):
            annotations = pod["metadata"]["annotations"]
            ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
            assert annotations["prometheus.io/scrape"] == "true"
            assert int(annotations["prometheus.io/port"]) == ports["metrics"] == 8080
    for found in of_kind(objects, "PodMonitor"):
        assert [endpoint["port"] for endpoint in found["spec"]["podMetricsEndpoints"]] == ["metrics"]


@needs_kubectl
def test_an_overlay_names_the_image_and_the_namespace_everywhere() -> None:
    objects = rendered("production")
    assert {container["image"] for _, container in containers(objects)} == {"registry.example/icre:0.1.0"}
    namespaced = [found for found in objects if found["kind"] not in ("Namespace", "PriorityClass")]
    assert {found["metadata"]["namespace"] for found in namespaced} == {"icre"}
    [namespace] = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    [binding] = of_kind(objects, "RoleBinding")
    assert binding["subjects"][0]["namespace"] == "icre"


@needs_kubectl
@needs_schemas
def test_the_alpha_schedule_takes_the_place_of_the_cron_job_and_is_not_suspended(tmp_path: Path) -> None:
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    overlay = tmp_path / "kuberay" / "overlays" / "small" / "kustomization.yaml"
    content = yaml.safe_load(overlay.read_text())
    content["components"] = ["../../components/raycronjob"]
    content["patches"] = [patch for patch in content["patches"] if patch.get("target", {}).get("kind") != "CronJob"]
    overlay.write_text(yaml.safe_dump(content))
    objects = kustomize(overlay.parent)
    assert of_kind(objects, "CronJob") == []
    [cron] = of_kind(objects, "RayCronJob")
    assert problems(cron) == []
    [template] = [job for job in of_kind(objects, "RayJob") if job["metadata"]["name"] == "icre-retrain"]
    assert cron["spec"]["jobTemplate"] == template["spec"] | {"suspend": False}


# `icre submit --kubernetes`


def icre(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["icre", *arguments])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        run_app(app)
    return int(end.value.code or 0), *capsys.readouterr()


@needs_schemas
@pytest.mark.parametrize("verb", ["train", "evaluate", "tune"])
def test_a_verb_is_rendered_from_the_base(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [verb, "storage=s3://bucket/it's", "name=x y"]
    code, out, _ = icre(capsys, monkeypatch, "submit", "--kubernetes", "--dry-run", "--id", "mine", *arguments)
    assert code == 2  # "x y" is no name of a recipe: checked before anything is rendered
    arguments[-1] = "train.workers=2"
    code, out, _ = icre(capsys, monkeypatch, "submit", "--kubernetes", "--dry-run", "--id", "mine", *arguments)
    job = yaml.safe_load(out)
    assert code == 0 and problems(job) == []
    assert shlex.split(job["spec"]["entrypoint"]) == ["python", "-m", f"pipelines.{verb}", *arguments[1:]]
    assert job["metadata"]["name"] == job["spec"]["jobId"] == "mine"
    assert job["spec"]["suspend"] is False
    assert job["spec"]["rayClusterSpec"] == of_kind(rendered("base"), "RayCluster")[0]["spec"]


def test_a_name_that_kubernetes_would_refuse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Upper", "under_score", "x" * 48, "9-digits-first"):
        code, out, _ = icre(capsys, monkeypatch, "submit", "--kubernetes", "--dry-run", "--id", name, "train",
                            "storage=s3://bucket/x")  # fmt: skip
        assert (code, out) == (2, "")


def test_creating_goes_through_kubectl_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "kubectl"
    fake.write_text(
        '#!/bin/sh\nif [ -e "$0.given" ]; then echo "Error from server (AlreadyExists): x" >&2; exit 1; fi\n'
        'echo "$@" > "$0.arguments"; cat > "$0.given"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    job = manifest.ray_job(rendered("base"), verb="train", entrypoint="python -m pipelines.train", name="a")
    assert manifest.create(job) is True
    assert yaml.safe_load((tmp_path / "kubectl.given").read_text()) == job
    assert (tmp_path / "kubectl.arguments").read_text() == "create -f -\n"
    assert manifest.create(job) is False
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError) as caught:
        manifest.create(job)
    assert "kubectl" in caught.value.message


# The schedule


def test_the_schedule_starts_a_template_that_exists_one_at_a_time(objects: list[Object]) -> None:
    [cron] = of_kind(objects, "CronJob")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert cron["spec"]["timeZone"] and cron["spec"]["startingDeadlineSeconds"] >= 10
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "cluster.kuberay.start_job"]
    asked = dict(zip(command[3::2], command[4::2], strict=True))
    assert asked["--template"] in {job["metadata"]["name"] for job in of_kind(objects, "RayJob")}
    [role] = of_kind(objects, "Role")
    assert role["rules"][0]["resourceNames"] == [asked["--template"]]
    [variable] = [variable for variable in pod["containers"][0]["env"] if f"$({variable['name']})" == asked["--name"]]
    assert "job-name" in variable["valueFrom"]["fieldRef"]["fieldPath"]


class FakeKubernetes(http.server.BaseHTTPRequestHandler):
    """As much of the API as the step may use: get, list by label, create once a name."""

    jobs: dict[str, Object]
    token = "right"

    def do_GET(self) -> None:
        self._answer(self._found())

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        self._answer((409, {}) if name in self.jobs else (201, self.jobs.setdefault(name, job)))

    def _found(self) -> tuple[int, Object]:
        path, _, query = self.path.partition("?")
        if not path.startswith("/apis/ray.io/v1/namespaces/ns/rayjobs"):
            return 404, {}
        if name := path.removeprefix("/apis/ray.io/v1/namespaces/ns/rayjobs").strip("/"):
            return (200, self.jobs[name]) if name in self.jobs else (404, {})
        key, _, value = query.removeprefix("labelSelector=").replace("%3D", "=").replace("%2F", "/").partition("=")
        return 200, {"items": [job for job in self.jobs.values() if job["metadata"]["labels"].get(key) == value]}

    def _answer(self, answer: tuple[int, Object]) -> None:
        code, body = answer if self.headers["Authorization"] == f"Bearer {self.token}" else (401, {})
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def kubernetes() -> Iterator[tuple[Api, dict[str, Object]]]:
    template = next(job for job in of_kind(rendered("base"), "RayJob") if job["metadata"]["name"] == "icre-retrain")
    jobs = {"icre-retrain": copy.deepcopy(template)}
    handler = type("Handler", (FakeKubernetes,), {"jobs": jobs})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Api(f"http://127.0.0.1:{server.server_address[1]}", "ns", "right"), jobs
        server.shutdown()


def test_a_schedule_starts_one_copy_and_waits_for_its_end(kubernetes: tuple[Api, dict[str, Object]]) -> None:
    api, jobs = kubernetes
    start(api, template="icre-retrain", name="icre-retrain-1")
    start(api, template="icre-retrain", name="icre-retrain-1")
    assert list(jobs) == ["icre-retrain", "icre-retrain-1"]
    assert jobs["icre-retrain-1"]["spec"] == jobs["icre-retrain"]["spec"] | {
        "suspend": False,
        "jobId": "icre-retrain-1",
    }
    jobs["icre-retrain-1"]["status"] = {"jobDeploymentStatus": "Running"}
    start(api, template="icre-retrain", name="icre-retrain-2")
    assert "icre-retrain-2" not in jobs
    jobs["icre-retrain-1"]["status"] = {"jobDeploymentStatus": "Failed"}
    start(api, template="icre-retrain", name="icre-retrain-1")
    start(api, template="icre-retrain", name="icre-retrain-2")
    assert list(jobs) == ["icre-retrain", "icre-retrain-1", "icre-retrain-2"]


def test_a_refusal_of_the_api_is_an_error(kubernetes: tuple[Api, dict[str, Object]]) -> None:
    api, _ = kubernetes
    for wrong in (Api(api.url, "ns", "wrong"), Api("http://127.0.0.1:9", "ns", "right")):
        with pytest.raises(KubernetesError):
            start(wrong, template="icre-retrain", name="a")
    with pytest.raises(KubernetesError):
        start(api, template="nothing", name="a")


@needs_schemas
def test_what_the_schedule_creates_is_valid() -> None:
    template = next(job for job in of_kind(rendered("base"), "RayJob") if job["metadata"]["name"] == "icre-retrain")
    made = copy_of(template, name="icre-retrain-29387654")
    assert problems(made) == []
    assert made["spec"]["suspend"] is False
