"""The hub, as a small one on loopback: list, pick a step, fetch, push; and when it is not there."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch

import landform as lf
from landform.cli.app import run
from landform.errors import CheckpointError, ConfigError, HubError
from landform.exchange.hub import fetch_files, hub_models, push
from landform.store.study import open_store, publish
from landform.weights.checkpoint import load_model, resolve, select
from small_hub import small_hub

TOKEN = "hf_" + "secretsecret" * 3


def use(monkeypatch, url: str, cache: Path) -> None:
    """Send huggingface_hub to `url`: it reads its environment only once, when imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with small_hub() as server:
        use(monkeypatch, server.url, tmp_path / "cache")
        server.token = TOKEN
        yield server


# --- models and steps ----------------------------------------------------------------------------


def test_models_of_a_prefix_in_the_order_of_their_numbers(hub):
    for name in ("bert_ft-2", "bert_ft-10", "bert_ft-0", "bert_ft-x", "bert_ft-10b", "other-1"):
        hub.repo(f"org/{name}").commit("add", {"config.json": b"{}"})
    found = hub_models("org/bert_ft-")
    assert list(found.table["name"]) == ["org/bert_ft-0", "org/bert_ft-2", "org/bert_ft-10"]
    assert found.reading == "3 models org/bert_ft-<number>, 0 to 10"
    assert list(found.table["modified"]) == ["2023-05-01"] * 3
    with pytest.raises(HubError, match="no model org/nothing-<number>"):
        hub_models("org/nothing-")
    with pytest.raises(ConfigError, match="not the beginning of a hub name"):
        hub_models("bert_ft-")


def test_steps_of_a_model_are_listed_and_found_exactly(hub, tmp_path, save_checkpoint):
    for i, step in enumerate((5000, 15000, 25000)):
        folder = save_checkpoint(tmp_path / f"s{step}", seed=i)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.repo("org/m-0").commit(f"Saving weights and logs of step {step}", files)
    table = hub_models("org/m-", steps=True).table
    assert table["steps"].tolist() == ["5000 15000 25000"]
    found = resolve("org/m-0@5000")
    expected = load_model(tmp_path / "s5000")
    assert torch.equal(load_model(found).classifier.weight, expected.classifier.weight)
    with pytest.raises(CheckpointError, match="says step 500"):
        resolve("org/m-0@500")
    assert [c.spec for c in select("org/m-*@15000")] == ["org/m-0@15000"]


def test_the_command_lists_them(hub, capsys):
    hub.repo("org/m-3").commit("step 7", {"config.json": b"{}"})
    assert run(["models", "org/m-", "--steps", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["name"] == "org/m-3" and row["steps"] == "7"
    assert run(["models", "org/m-", "--steps"]) == 0
    assert "org/m-3" in capsys.readouterr().out


# --- fetching ------------------------------------------------------------------------------------


def test_evaluations_of_all_models_are_fetched(hub, tmp_path):
    for i in (1, 12):
        files = {"hans_eval_bert.json": b"{}", "eval_results.json": b"{}", "model.bin": b"x"}
        hub.repo(f"org/feather_{i}").commit("add", files)
        files = {f"cola_ft-{i}.json": b"[]", "config.json": b"{}"}
        hub.repo(f"org/cola_ft-{i}").commit("add", files)
    found = fetch_files("org/feather_", tmp_path / "hans")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "hans/feather_1/hans_eval_bert.json",
        "hans/feather_12/hans_eval_bert.json",
    ]
    cola = fetch_files("org/cola_ft-", tmp_path / "cola")
    assert [path.name for path in cola] == ["cola_ft-1.json", "cola_ft-12.json"]
    with pytest.raises(HubError, match=r"org/feather_1 has no file qqp\*") as caught:
        fetch_files("org/feather_", tmp_path / "qqp", match=["qqp*"])
    assert "hans_eval_bert.json" in str(caught.value)


def test_logs_of_a_repository_are_fetched(hub, tmp_path, capsys):
    files = {"mnli@5steps/1.out": b"a", "qqp@5steps/2.out": b"b", "mnli@5steps/x.pkl": b"c"}
    hub.repo("org/interpolation_logs").commit("add", files)
    out = tmp_path / "logs"
    words = ["import", "hub", "org/interpolation_logs", "--download", "logs", "--out", str(out)]
    assert run([*words, "--match", "mnli*/*.out"]) == 0
    assert "downloaded 1 files" in capsys.readouterr().out
    assert (out / "mnli@5steps" / "1.out").read_bytes() == b"a"
    found = fetch_files("org/interpolation_logs", out, kind="logs")
    assert [path.name for path in found] == ["1.out", "2.out"]
    assert run(words[:3]) == 1
    assert "--out FOLDER" in capsys.readouterr().err


# --- pushing -------------------------------------------------------------------------------------


def test_a_pushed_step_is_found_again(hub, tmp_path, save_checkpoint):
    run_folder = tmp_path / "runs" / "seed0"
    save_checkpoint(run_folder, seed=0)
    save_checkpoint(run_folder / "checkpoint-300", seed=1)
    (run_folder / "checkpoint-300" / "optimizer.pt").write_bytes(b"x")
    (run_folder / "checkpoint-300" / ".hidden").write_bytes(b"x")
    done = push(f"{run_folder}@300", "org/new-0", private=True)
    assert done.message == "Weights of step 300" and done.kind == "checkpoint"
    repo = hub.repos["org/new-0"]
    assert repo.private
    assert set(repo.branches["main"]) == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    push(str(run_folder), "org/new-0", message="Weights of step 1300")
    found = load_model("org/new-0@300")
    expected = load_model(run_folder / "checkpoint-300")
    assert torch.equal(found.classifier.weight, expected.classifier.weight)


def test_the_card_says_what_made_the_checkpoint(hub, tmp_path, write_rows, save_checkpoint):
    base = save_checkpoint(tmp_path / "base")
    task = lf.load_task({"train": write_rows(tmp_path / "t.tsv", 8),
                         "validation": write_rows(tmp_path / "v.tsv", 8)},
                        text="sentence", label="label", name="toy")  # fmt: skip
    lf.train(base, task, out=tmp_path / "runs", seeds=[3], max_steps=2)
    push(tmp_path / "runs" / "seed3", "org/toy-3")
    card = hub.repos["org/toy-3"].branches["main"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: ")
    for said in ("fine-tuned by landform", "`toy`", "`base`", "| validation/accuracy | ",
                 "| seed | 3 |", "| steps | 2 |", "| batch_size | "):  # fmt: skip
        assert said in card
    assert str(tmp_path) not in card, "no path of this machine"


def test_a_card_of_ones_own_stays(hub, tmp_path, save_checkpoint):
    folder = save_checkpoint(tmp_path / "m")
    (folder / "README.md").write_text("mine")
    push(folder, "org/mine")
    assert hub.repos["org/mine"].branches["main"]["README.md"] == b"mine"


def test_a_study_is_pushed_with_its_atlas_and_a_card(hub, tmp_path, capsys, connection):
    study = tmp_path / "study"
    store = open_store(study)
    publish(store, "connect", connection)
    (study / "artifacts" / "mix").mkdir(parents=True)
    (study / "artifacts" / "mix" / "big").write_text("x")
    words = ["push", str(study), "org/study", "--repo-type", "dataset", "--path-in-repo", "first"]
    assert run([*words, "--revision", "draft"]) == 0
    files = hub.repos["org/study"].branches["draft"]
    assert {"first/README.md", "first/atlas.html", "first/study.json"} <= set(files)
    assert "first/results/connect/pairs.parquet" in files
    assert not any("artifacts" in name for name in files)
    assert connection.reading in files["first/README.md"].decode()
    assert hub.repos["org/study"].branches["main"] == {}
    said = capsys.readouterr().out
    assert "pushed study" in said and f"wrote {study / 'atlas.html'}" in said


def test_logs_and_single_files(hub, tmp_path):
    logs = tmp_path / "logs"
    (logs / "a").mkdir(parents=True)
    (logs / "a" / "1.out").write_text("x")
    push(logs, "org/logs", path_in_repo="mnli@5steps")
    push(logs / "a" / "1.out", "org/logs")
    push(logs / "a" / "1.out", "org/logs", path_in_repo="b/2.out")
    repo = hub.repos["org/logs"]
    assert set(repo.branches["main"]) == {"mnli@5steps/a/1.out", "1.out", "b/2.out"}
    assert len(repo.commits) == 3


# --- bad input -----------------------------------------------------------------------------------


def test_no_token_is_ever_said(hub, tmp_path, capsys):
    hub.token = "another"
    (tmp_path / "x.txt").write_text("x")
    assert run(["push", str(tmp_path / "x.txt"), "org/logs"]) == 1
    said = capsys.readouterr()
    assert "log in first (hf auth login)" in said.err
    assert TOKEN not in said.err + said.out and "secret" not in said.err + said.out
    assert "org/logs" not in hub.repos or not hub.repos["org/logs"].commits


def test_no_network(monkeypatch, tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    use(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "cache")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's retries
    (tmp_path / "x.txt").write_text("x")
    for words in (
        ["models", "org/m-"],
        ["push", str(tmp_path / "x.txt"), "org/m"],
        ["import", "hub", "org/m-", "--out", str(tmp_path / "out")],
    ):
        assert run(words) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: cannot ") and "check the network" in said
    assert not (tmp_path / "out").exists()


def test_offline_mode_is_said(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is enabled"):
        hub_models("org/m-")


def test_what_cannot_be_pushed(hub, tmp_path, save_checkpoint):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        push(tmp_path / "nothing", "org/m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no files"):
        push(tmp_path / "empty", "org/m")
    open_store(tmp_path / "study")
    with pytest.raises(ConfigError, match="has no results yet"):
        push(tmp_path / "study", "org/m")
    folder = save_checkpoint(tmp_path / "m")
    with pytest.raises(ConfigError, match="'m' is not a hub name"):
        push(folder, "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        push(folder, "org/m")
    with pytest.raises(CheckpointError, match="no step 7"):
        push(f"{folder}@7", "org/m")
    assert hub.repos == {}, "nothing was made"


def test_the_folder_is_not_changed_by_pushing(hub, tmp_path, save_checkpoint):
    folder = save_checkpoint(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    copy = shutil.copytree(folder, tmp_path / "copy")
    push(copy, "org/m")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
