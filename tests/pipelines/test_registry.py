"""The registry and the lease, on a disk and on a real object store: append-only, one winner, intact weights."""

from __future__ import annotations

import secrets
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cluster.local.object_store import ObjectStore
from icre import config
from icre.errors import DataError, UserError, WeightsError
from icre.model.build import build_network
from icre.training import checkpoint
from icre.training.checkpoint import Progress
from pipelines import cli
from pipelines.retraining.registry import PromotionConflictError, Registry, models
from pipelines.runs import lease as lease_module
from pipelines.runs.checkpoints import CheckpointStore
from pipelines.runs.lease import LeaseLostError, hold, holder
from pipelines.runs.networks import load_network
from pipelines.runs.run import CLASSES, Run
from pipelines.storage import Storage
from pipelines.storage.log import Log
from tests.conftest import TINY

CLASS_NAMES = ["anna", "ben", "cleo"]


@pytest.fixture
def s3(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    return Storage(f"{object_store.url}/{secrets.token_hex(6)}")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(tmp_path / "store")
    s3: Storage = request.getfixturevalue("s3")
    return s3


def make_run(storage: Storage, name: str, *, seed: int = 0, whole: bool = False) -> Run:
    """A finished run of one checkpoint, as training would have left it; ``whole``: with all of its network."""
    recipe = config.parse_recipe(TINY | {"name": "tiny", "seed": seed, "storage": storage.url}, where="the tests")
    run = Run(storage / "runs" / name)
    (run.location / "config.yaml").write_text(recipe.to_yaml())
    manifest = {"created": "2026-01-01", "run": name, "data": {"hash": "0", "classes": len(CLASS_NAMES)}}
    (run.location / "manifest.json").write_json(manifest)
    (run.location / CLASSES).write_json({"classes": CLASS_NAMES, "seen": [*CLASS_NAMES, "dora"]})
    network = build_network(recipe, classes=len(CLASS_NAMES)).state_dict() if whole else {"w": torch.tensor([seed])}
    progress = Progress(step=7, best_metric=None, best_step=None)
    write_snapshot(run, checkpoint.Snapshot(network, {}, progress, len(CLASS_NAMES)))
    run.write_status("finished")
    return run


def write_snapshot(run: Run, snapshot: checkpoint.Snapshot) -> None:
    name = f"step-{snapshot.progress.step:08d}"
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint.write_checkpoint(Path(scratch), snapshot)
        for file in (checkpoint.NETWORK, checkpoint.OPTIMIZER, checkpoint.META):
            (run.location / "checkpoints" / name / file).upload(Path(scratch) / file)
    for pointer in ("last", "best"):
        run.checkpoints.point(pointer, name)


# The log


def test_a_log_is_a_compare_and_swap(place: Storage) -> None:
    log = Log(place / "log")
    assert (log.newest(), log.numbers()) == (0, [])
    assert log.append({"a": 1}, after=0) and not log.append({"a": 2}, after=0)
    assert log.append({"a": 3}, after=1)
    (place / "log/notes.txt").write_text("not an entry")
    assert log.numbers() == [1, 2]
    assert [log.read(number)["a"] for number in log.numbers()] == [1, 3]


# Promotions


def test_a_promoted_checkpoint_outlives_its_run(place: Storage) -> None:
    registry = Registry(place, "tiny")
    run = make_run(place, "first", whole=True)
    entry = registry.promote(run, "best", after=0, by="a test", decision={"rules": []})
    assert registry.champion() == entry and models(place) == ["tiny"]
    expected = load_network(run.location.url, "best")[0].state_dict()
    run.location.delete()
    registry.verify(entry)
    copy = registry.weights(entry)
    found, described = load_network(copy.location.url, "best")
    assert described["sha256"] == entry.sha256 and described["step"] == 7
    assert all(torch.equal(expected[name], value) for name, value in found.state_dict().items())
    assert (copy.location / CLASSES).read_json()["seen"] == [*CLASS_NAMES, "dora"]
    assert not (copy.location / "checkpoints/step-00000007/optimizer.pt").exists()


def test_rollbacks_walk_back_through_what_served(place: Storage) -> None:
    registry = Registry(place, "tiny")
    for number, name in enumerate(["a", "b", "c"]):
        registry.promote(make_run(place, name, seed=number), "best", after=number, by="t")
    served = []
    for to in (None, None, 3, None):
        registry.rollback(to=to, by="t")
        champion = registry.champion()
        assert champion is not None
        served.append(champion.run)
    assert served == ["b", "a", "c", "b"]
    assert [entry.kind for entry in registry.entries()] == ["promote"] * 3 + ["rollback"] * 4
    assert [entry.number for entry in registry.entries()] == list(range(1, 8))
    registry.rollback(by="t")
    with pytest.raises(UserError, match="nothing before entry 1"):
        registry.rollback(by="t")
    with pytest.raises(UserError, match="what serves now"):
        registry.rollback(to=1, by="t")
    with pytest.raises(UserError, match="no entry 99"):
        registry.rollback(to=99, by="t")


def test_a_corrupted_champion_is_named_with_the_newest_intact_one_before(tmp_path: Path) -> None:
    place = Storage(tmp_path)
    registry = Registry(place, "tiny")
    entries = [registry.promote(make_run(place, f"r{n}", seed=n), "best", after=n, by="t") for n in range(3)]
    for entry in entries[1:]:
        path = registry.weights(entry).location / "checkpoints" / entry.checkpoint / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="corrupted") as caught:
        registry.verify(entries[2])
    assert "rollback tiny --to 1" in caught.value.hint
    with pytest.raises(WeightsError, match="entry 2"):
        registry.rollback(by="t")  # from bad to bad: refused
    assert registry.newest() == 3
    back = registry.rollback(to=1, by="t")
    registry.verify(back)
    # Promoting the run again repairs its copy.
    repaired = registry.promote(Run(place / "runs/r2"), "best", after=4, by="t")
    registry.verify(repaired)


def test_an_interrupted_copy_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Storage(tmp_path)
    registry, run = Registry(place, "tiny"), make_run(Storage(tmp_path), "r")
    monkeypatch.setattr(CheckpointStore, "point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        registry.promote(run, "best", after=0, by="t")
    monkeypatch.undo()
    assert registry.newest() == 0
    registry.verify(registry.promote(run, "best", after=0, by="t"))


def test_missing_checkpoints_and_damaged_ones_leave_the_registry_as_it_was(tmp_path: Path) -> None:
    place = Storage(tmp_path)
    registry, run = Registry(place, "tiny"), make_run(Storage(tmp_path), "r")
    with pytest.raises(DataError, match="step-00000009"):
        registry.promote(run, "step-00000009", after=0, by="t")
    (run.location / "checkpoints/step-00000007/model.safetensors").write_bytes(b"cut off")
    with pytest.raises(WeightsError):
        registry.promote(run, "best", after=0, by="t")
    assert registry.newest() == 0


def test_of_several_that_promote_at_once_one_wins_each_time(place: Storage) -> None:
    rounds, names = 5, ["a", "b", "c"]
    for name in names:
        make_run(place, name)
    together = threading.Barrier(len(names))

    def promote_all(name: str) -> list[bool]:
        registry, run = Registry(place, "tiny"), Run(place / "runs" / name)
        results = []
        for after in range(rounds):
            together.wait(60)
            try:
                registry.promote(run, "best", after=after, by=name)
                results.append(True)
            except PromotionConflictError as error:
                assert "came first" in error.message
                results.append(False)
        return results

    with ThreadPoolExecutor(len(names)) as pool:
        won = list(pool.map(promote_all, names))
    winners = [[name for name, results in zip(names, won, strict=True) if results[n]] for n in range(rounds)]
    assert [[entry.run] for entry in Registry(place, "tiny").entries()] == winners


# The lease


def test_one_holder_at_a_time(place: Storage) -> None:
    log = Log(place / "lease")
    with hold(log, term_s=60) as mine:
        assert mine is not None and holder(log) is not None
        mine.check()
        with hold(log, term_s=60) as other:
            assert other is None
    assert holder(log) is None
    with hold(log, term_s=60) as next_one:
        assert next_one is not None


def test_of_many_that_find_it_expired_one_takes_over_and_the_old_holder_learns_of_it(
    place: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(place / "lease")
    assert log.append({"owner": "one that was killed", "expires": time.time() - 1}, after=0)
    dead = lease_module.Lease(log, 1, 60)
    dead.check()
    takers, over = 4, threading.Event()
    together, decided = threading.Barrier(takers), threading.Barrier(takers + 1)

    def take(_: int) -> bool:
        together.wait(30)
        with hold(log, term_s=60) as mine:
            decided.wait(60)
            over.wait(60)
            return mine is not None

    with ThreadPoolExecutor(takers) as pool:
        results = [pool.submit(take, number) for number in range(takers)]
        decided.wait(60)
        with pytest.raises(LeaseLostError):
            dead.check()
        over.set()
        assert sorted(result.result() for result in results) == [False] * (takers - 1) + [True]


def test_a_holder_renews_until_it_lets_go(tmp_path: Path) -> None:
    log = Log(Storage(tmp_path))
    with hold(log, term_s=0.4):
        first = log.read(1)["expires"]
        deadline = time.monotonic() + 20
        while log.read(1)["expires"] < first + 0.4 and time.monotonic() < deadline:
            pass
        assert log.read(1)["expires"] >= first + 0.4
        assert holder(log) is not None
    assert log.read(1)["expires"] == 0.0


def test_entries_of_former_holders_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "KEPT", 3)
    log = Log(Storage(tmp_path))
    for _ in range(8):
        with hold(log, term_s=60) as mine:
            assert mine is not None
    assert log.newest() == 8 and len(log.numbers()) == 4


# The command line


def icre(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["icre", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place, where = Storage(tmp_path), f"storage={tmp_path}"
    assert icre(monkeypatch, "registry", "show", "tiny", where) == 2
    told = capsys.readouterr().err
    assert "error:" in told and "hint:" in told
    make_run(place, "first")
    assert icre(monkeypatch, "registry", "promote", "tiny", "--run", "first", where) == 0
    assert icre(monkeypatch, "registry", "promote", "tiny", "--run", "nothing", where) == 2
    assert "'nothing'" in capsys.readouterr().err
    for verb in (["list"], ["show", "tiny"]):
        assert icre(monkeypatch, "registry", *verb, where) == 0
        assert "| first |" in capsys.readouterr().out
    assert icre(monkeypatch, "registry", "rollback", "tiny", where) == 2
    (network,) = (tmp_path / "registry/tiny/models").glob("*/checkpoints/*/model.safetensors")
    network.write_bytes(b"")
    assert icre(monkeypatch, "registry", "show", "tiny", where) == 2
    assert "corrupted" in capsys.readouterr().err
