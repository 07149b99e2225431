"""Where networks get their weights from, and what happens where there are none or the wrong ones."""

import hashlib
import io
import os
import subprocess
import sys

import pytest
import timm
import torch

from tokcli.artifact.weights import save_tensors
from tokcli.errors import TokError
from tokcli.files import sha256
from tokcli.pretrained import NETWORKS, build_network, published_weights
from tokcli.pretrained.published_weights import find_weights


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_a_file_is_loaded_and_its_hash_kept(tmp_path):
    state = {k: t + 1 for k, t in build_network("timm:test_vit", "random").body.state_dict().items()}
    save_tensors(tmp_path / "w.safetensors", state)
    network = build_network("timm:test_vit", tmp_path / "w.safetensors")
    assert all(torch.equal(t, state[k]) for k, t in network.body.state_dict().items())
    assert network.sha256 == sha256(tmp_path / "w.safetensors")


def test_the_cache_comes_before_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    save_tensors(tmp_path / "efflite0.safetensors", timm.create_model("tf_efficientnet_lite0").state_dict())
    network = build_network("efflite0")
    assert not (network.sha256 or "").startswith("57934424")


def broken_state(kind: str) -> dict[str, torch.Tensor]:
    state = dict(build_network("timm:test_vit", "random").body.state_dict())
    if kind == "shape":
        state["norm.weight"] = torch.zeros(3)
    elif kind == "missing":
        del state["norm.weight"]
    elif kind == "unexpected":
        state["surplus"] = torch.zeros(1)
    else:
        state["norm.weight"][0] = float("nan")
    return state


@pytest.mark.parametrize("kind", ["shape", "missing", "unexpected", "finite"])
def test_weights_that_do_not_fit_are_one_line(kind, tmp_path):
    save_tensors(tmp_path / "w.safetensors", broken_state(kind))
    with pytest.raises(TokError, match=kind) as caught:
        build_network("timm:test_vit", tmp_path / "w.safetensors", role="teacher")
    line = str(caught.value)
    assert line.startswith("teacher timm:test_vit") and "w.safetensors" in line and "\n" not in line


def test_a_damaged_package_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"other")
    monkeypatch.setattr(published_weights, "package_folder", lambda name: tmp_path)
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    with pytest.raises(TokError, match="is damaged"):
        build_network("efflite0")


@pytest.mark.parametrize(
    ("name", "fetch"),
    [
        ("clip", "hf download timm/vit_base_patch16_clip_224.openai open_clip_model.safetensors"),
        ("dino", "hf download timm/vit_base_patch16_224.dino model.safetensors"),
        ("mae", "hf download timm/vit_base_patch16_224.mae model.safetensors"),
        ("vits14", "python scripts/fetch_embedded.py vits14"),
        ("timm:test_vit", "hf download timm/test_vit.r160_in1k model.safetensors"),
    ],
)
def test_weights_found_nowhere_are_one_line_that_says_what_to_fetch(name, fetch, tmp_path, monkeypatch):
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    with pytest.raises(TokError) as caught:
        build_network(name, role="teacher")
    line = str(caught.value)
    assert line.startswith(f"teacher {name}: weights not found")
    assert "Give --teacher-weights PATH" in line and line.endswith(f"there is a network: {fetch}.")


def test_an_unreachable_hub_fails_within_seconds_and_without_noise(tmp_path):
    # a closed port refuses at once; the hub's client alone would retry for half a minute, asleep in between, and log each time
    code = (
        "import time; time.sleep = lambda seconds: print('asleep', seconds)\n"
        "from tokcli.pretrained import build_network; build_network('timm:test_vit', role='teacher')"
    )
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "TOK_CACHE": str(tmp_path), "HF_HOME": str(tmp_path)}
    env.pop("HF_HUB_OFFLINE")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert sum(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("asleep")) < 5
    lines = done.stderr.strip().splitlines()
    assert "weights not found (hub unreachable). Give --teacher-weights" in lines[-1]
    assert not any("WARNING" in line or "Retry" in line for line in lines)


def test_a_download_is_kept_and_a_damaged_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    good = f"https://example.org/w-{hashlib.sha256(b'abc').hexdigest()[:8]}.pth"
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: io.BytesIO(b"abc"))
    assert published_weights.download(good).read_bytes() == b"abc"
    with pytest.raises(published_weights.Unreachable, match="damaged"):
        published_weights.download("https://example.org/w-00000000.pth")
    assert [p.name for p in (tmp_path / "hub").iterdir()] == [good.rsplit("/", 1)[1]]


def test_find_weights_without_a_flag_does_not_name_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    source = NETWORKS["squeezenet"].source("squeezenet")
    with pytest.raises(TokError, match=r"not found. Fetch them where there is a network: python scripts/fetch"):
        find_weights("squeezenet", source, where="perceptual loss squeezenet", flag=None)
