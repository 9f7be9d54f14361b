"""SAEs by hub id and by name in sae-lens; huggingface_hub asks a server of this test."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save_file

from saefeat.io import UserError
from saefeat.sae import hub
from saefeat.sae import releases as registry
from saefeat.sae.store import load_sae, load_saes

COMMIT = "0123456789abcdef0123456789abcdef01234567"
D_IN, D_SAE = 640, 384


class Hub(BaseHTTPRequestHandler):
    """The part of the hub that a download needs; a repository is a folder."""

    root: Path
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(path)
        parts = path.removeprefix("api/models/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo == "owner/gated":
            return self.say(403, {"X-Error-Code": "GatedRepo"})
        if not (self.root / repo).is_dir():
            return self.say(404, {"X-Error-Code": "RepoNotFound"})
        if rest[1:2] not in ([], ["main"], ["v1"], [COMMIT]):
            return self.say(404, {"X-Error-Code": "RevisionNotFound"})
        files = [p for p in sorted((self.root / repo).rglob("*")) if p.is_file()]
        if path.startswith("api/") and rest[:1] == ["tree"]:
            return self.say(
                200,
                {},
                json.dumps(
                    [
                        {
                            "type": "file",
                            "path": p.relative_to(self.root / repo).as_posix(),
                            "size": p.stat().st_size,
                            "oid": f"{abs(hash(p)):040x}",
                        }
                        for p in files
                    ]
                ),
            )
        if path.startswith("api/"):
            return self.say(
                200,
                {},
                json.dumps(
                    {
                        "id": repo,
                        "modelId": repo,
                        "sha": COMMIT,
                        "siblings": [
                            {"rfilename": p.relative_to(self.root / repo).as_posix()} for p in files
                        ],
                    }
                ),
            )
        file = self.root / repo / "/".join(rest[2:])
        if not file.is_file():
            return self.say(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self.say(
            200, {"X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash(file)):040x}"'}, file.read_bytes()
        )

    def say(self, status, headers, body=b""):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def use(monkeypatch, endpoint, cache, offline=False):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The folder whose `owner/repo` folders are served as a hub, to a cache that is empty."""
    handler = type("Handler", (Hub,), {"root": tmp_path / "served", "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "served").mkdir()
    use(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    yield tmp_path / "served"
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """put(repo, files...): the hub is off, and what was put is in the cache."""
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)

    def put(repo):
        place = tmp_path / "cache" / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        return place / "snapshots" / COMMIT

    return put


def save_sparsify(directory, weights, seed=0):
    given = weights("W_enc", "b_enc", "W_dec", "b_dec", seed=seed)
    directory.mkdir(parents=True)
    tensors = {
        "encoder.weight": given["W_enc"].T.contiguous(),
        "encoder.bias": given["b_enc"],
        "W_dec": given["W_dec"],
        "b_dec": given["b_dec"],
    }
    save_file(tensors, directory / "sae.safetensors")
    (directory / "cfg.json").write_text(json.dumps({"d_in": D_IN, "num_latents": D_SAE, "k": 16}))
    return given


def save_sae_lens(directory, weights, **cfg):
    directory.mkdir(parents=True)
    given = weights("W_enc", "b_enc", "W_dec", "b_dec")
    save_file(given, directory / "sae_weights.safetensors")
    cfg = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "hook_name": "blocks.3.hook_resid_post",
        **cfg,
    }
    (directory / "cfg.json").write_text(json.dumps(cfg))
    return given


def one_sentence(told, *words):
    assert "\n" not in str(told.value) and all(word in str(told.value) for word in words), str(
        told.value
    )


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("owner/repo", ("owner/repo", None, "")),
        ("owner/repo/", ("owner/repo", None, "")),
        ("owner/repo@v1", ("owner/repo", "v1", "")),
        ("owner/re.po@v1/a/b.c", ("owner/re.po", "v1", "a/b.c")),
        ("owner/repo/sae-mlp_out@13", ("owner/repo", None, "sae-mlp_out@13")),
    ],
)
def test_a_hub_id_names_repository_revision_and_folder(source, parts):
    assert hub.parse(source) == parts


@pytest.mark.parametrize("source", ["nothing", "", "owner/../x", "a b/c", "owner/repo@"])
def test_an_invalid_hub_id_gives_one_sentence_of_error(source):
    with pytest.raises(UserError) as told:
        hub.parse(source)
    one_sentence(told, "is not a hub id")


def test_a_run_of_the_hub_is_downloaded_with_nothing_else_and_found_again_offline(
    served, tmp_path, monkeypatch, weights
):
    for layer in (10, 2):
        save_sparsify(served / f"owner/sae-tiny/layers.{layer}.mlp", weights, seed=layer)
    (served / "owner/sae-tiny/config.json").write_text('{"model": "owner/tiny"}')
    (served / "owner/sae-tiny/optimizer.pt").write_bytes(b"large")
    online = load_saes("owner/sae-tiny@v1")
    assert [sae.id for sae in online] == ["sae-tiny-layers.2.mlp", "sae-tiny-layers.10.mlp"]
    assert [sae.site for sae in online] == ["layers.2.mlp", "layers.10.mlp"]
    assert online[0].record["source"] == f"owner/sae-tiny@{COMMIT}/layers.2.mlp"
    assert online[0].record["model"]["name"] == "owner/tiny"
    assert not list((tmp_path / "cache").rglob("optimizer.pt"))
    again = load_sae(Path(online[1].record["path"]))  # as an artefact names it
    assert again.identity["fingerprint"] == online[1].identity["fingerprint"]

    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)
    for source in ("owner/sae-tiny@v1", f"owner/sae-tiny@{COMMIT}"):
        found = load_saes(source)
        assert [sae.identity["fingerprint"] for sae in found] == [
            sae.identity["fingerprint"] for sae in online
        ]
    with pytest.raises(UserError) as told:
        load_saes("owner/other")
    one_sentence(
        told,
        "owner/other is neither a directory here nor complete in the hub's cache",
        "HF_HUB_OFFLINE",
    )


def test_a_folder_of_the_hub_is_downloaded_alone(served, tmp_path, weights):
    for layer in (1, 2):
        save_sparsify(served / f"owner/sae-tiny/layers.{layer}", weights)
    (served / "owner/sae-tiny/config.json").write_text('{"model": "owner/tiny"}')
    sae = load_sae("owner/sae-tiny/layers.2")
    assert (sae.id, sae.site, sae.record["model"]["name"]) == (
        "sae-tiny-layers.2",
        "resid_post@2",
        "owner/tiny",
    )
    assert [p.parent.name for p in (tmp_path / "cache").rglob("sae.safetensors")] == ["layers.2"]


@pytest.mark.parametrize("told_by", ["the hub's library", "us"])
def test_a_repository_that_is_in_the_cache_in_part_is_refused_offline(
    served, tmp_path, monkeypatch, weights, told_by
):
    for layer in (1, 2, 6):
        save_sparsify(served / f"owner/sae-tiny/layers.{layer}", weights)
    load_sae("owner/sae-tiny/layers.2")
    if told_by == "us":  # not every version of the library remembers what there is
        shutil.rmtree(tmp_path / "cache/models--owner--sae-tiny/trees", ignore_errors=True)
        shutil.move(tmp_path / "cache", tmp_path / "moved")  # nor in its memory
    words = {
        "us": [
            "2 of the 3 SAEs of owner/sae-tiny, the first being layers.1, are not in the hub's "
            "cache"
        ]
    }
    alone = {
        "us": [
            "owner/sae-tiny/layers.6 is not in the hub's cache, and the hub cannot be reached; go "
            "online"
        ]
    }
    cache = tmp_path / ("moved" if told_by == "us" else "cache")
    use(monkeypatch, "http://127.0.0.1:9", cache, offline=True)
    assert load_sae("owner/sae-tiny/layers.2").id == "sae-tiny-layers.2"
    with pytest.raises(UserError) as told:
        load_saes("owner/sae-tiny")
    one_sentence(
        told, "in the hub's cache", "go online, without HF_HUB_OFFLINE", *words.get(told_by, [])
    )
    with pytest.raises(UserError) as told:
        load_saes("owner/sae-tiny/layers.6")
    one_sentence(
        told, "in the hub's cache", "go online, without HF_HUB_OFFLINE", *alone.get(told_by, [])
    )
    with pytest.raises(UserError) as told:
        load_saes("owner/sae-tiny/layers.7")
    one_sentence(told, "owner/sae-tiny has no SAE in the folder layers.7")


def test_what_a_cache_of_another_tool_lacks_is_told_by_the_run(offline, weights):
    snapshot = offline("owner/sae-tiny")
    save_sparsify(snapshot / "layers.2.mlp", weights)
    assert len(load_saes("owner/sae-tiny")) == 1
    (snapshot / "config.json").write_text(
        json.dumps({"model": "m", "hookpoints": ["layers.2.mlp", "layers.6.mlp"]})
    )
    assert load_sae("owner/sae-tiny/layers.2.mlp").site == "layers.2.mlp"
    with pytest.raises(UserError) as told:
        load_saes("owner/sae-tiny")
    one_sentence(
        told,
        "1 of the 2 SAEs of owner/sae-tiny, the first being layers.6.mlp, are not in the hub's "
        "cache",
    )
    for folder in ("layers.6.mlp", "layers.7.mlp"):
        with pytest.raises(UserError) as told:
            load_saes(f"owner/sae-tiny/{folder}")
        one_sentence(told, f"owner/sae-tiny/{folder} is not in the hub's cache")


def test_a_repository_that_is_one_sae_has_its_name(served, weights):
    save_sae_lens(served / "owner/my.sae", weights)
    assert load_sae("owner/my.sae").id == "sae-my.sae"


def test_a_repository_of_very_many_saes_is_not_downloaded_whole(served, tmp_path):
    for layer in range(70):
        folder = served / f"owner/scope/layer_{layer}/width_16k/average_l0_7"
        folder.mkdir(parents=True)
        (folder / "params.npz").write_bytes(b"")
    with pytest.raises(UserError) as told:
        load_saes("owner/scope")
    one_sentence(
        told,
        "owner/scope holds 70 SAEs; name a folder in it, such as owner/scope/layer_0/width_16k",
    )
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("owner/none", ["owner/none is neither a directory here nor a repository of the hub"]),
        ("owner/gated", ["owner/gated is gated; accept its terms", "HF_TOKEN"]),
        ("owner/repo@v9", ["owner/repo has no revision v9"]),
        ("owner/repo/layers.9", ["owner/repo has no SAE in the folder layers.9; see"]),
        ("owner/empty", ["owner/empty holds no SAE"]),
    ],
)
def test_a_file_that_the_hub_refuses_gives_one_sentence_of_error(served, weights, source, words):
    save_sparsify(served / "owner/repo/layers.2", weights)
    (served / "owner/empty").mkdir()
    (served / "owner/empty/README.md").write_text("nothing")
    (served / "owner/empty/config.json").write_text("{}")
    with pytest.raises(UserError) as told:
        load_saes(source)
    one_sentence(told, *words)


@pytest.mark.parametrize(
    "error", [OSError("the disk is odd"), OSError(28, "No space left on device")]
)
def test_a_full_disk_is_no_bad_input_but_other_failures_give_one_sentence_of_error(error):
    with pytest.raises(Exception) as told, hub.hub_errors("owner/repo"):
        raise error
    if error.errno == 28:
        assert told.value is error
    else:
        one_sentence(told, "cannot download owner/repo from the hub (the disk is odd)")
        assert isinstance(told.value, UserError)


def test_a_hub_that_cannot_be_reached_gives_one_sentence_of_error(tmp_path, monkeypatch):
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    with pytest.raises(UserError) as told:
        load_saes("owner/repo")
    one_sentence(told, "the hub cannot be reached")


# --------------------------------------------------------------------------- by their names in
# sae-lens


@pytest.fixture
def releases(monkeypatch):
    """add(release, ...): rows of the registry, in place of sae-lens's own."""
    from sae_lens.loading import pretrained_saes_directory as theirs

    rows = {}
    monkeypatch.setattr(registry, "_releases", lambda: rows)

    def add(release, repo, name, path, form=None, overrides=None, **row):
        about = {
            "repo_id": repo,
            "model": "gpt2-small",
            "saes": [{"id": name, "path": path, **row}],
        }
        rows[release] = {**about, "conversion_func": form, "config_overrides": overrides}
        lookup = theirs.PretrainedSAELookup(
            release,
            repo,
            "gpt2-small",
            form,
            {name: path},
            {},
            {},
            {},
            {name: row.get("norm_scaling_factor")},
            overrides,
        )
        for place in (
            "saes.sae",
            "loading.pretrained_sae_loaders",
            "loading.pretrained_saes_directory",
        ):
            monkeypatch.setattr(
                f"sae_lens.{place}.get_pretrained_saes_directory", lambda: {release: lookup}
            )

    return add


def test_a_release_of_sae_lens_is_read_with_what_only_the_registry_knows(
    offline, releases, weights, same, x
):
    from sae_lens import SAE

    path = "group_gpt2_blocks.3:v1"
    centring = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    releases(
        "gpt2-tm",
        "owner/gpt2",
        "blocks.3.hook_resid_post",
        path,
        overrides=centring,
        norm_scaling_factor=0.4,
    )
    save_sae_lens(
        offline("owner/gpt2") / path, weights, normalize_activations=True, model_name="gpt2-small"
    )
    ours = load_saes("gpt2-tm/blocks.3.hook_resid_post")[0]
    theirs = SAE.from_pretrained("gpt2-tm", "blocks.3.hook_resid_post")
    with torch.no_grad():
        acts = theirs.encode(x - x.mean(1, keepdim=True))
        same(ours, x, acts, theirs.decode(acts))
    assert (ours.id, ours.site) == ("gpt2-tm-blocks.3.hook_resid_post", "resid_post@3")
    again = load_sae(Path(str(ours.record["path"])))  # as an artefact names it
    assert again.identity == ours.identity


@pytest.mark.parametrize(
    ("overrides", "row", "cfg"),
    [
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, {}, {}),
        ({"normalize_activations": "constant_norm_rescale"}, {}, {}),
        (None, {"norm_scaling_factor": 0.4}, {"normalize_activations": "expected_average_only_in"}),
    ],
)
def test_a_hub_id_gives_what_its_name_in_sae_lens_gives(
    served, releases, weights, overrides, row, cfg
):
    place = "some/blocks.3.hook_resid_pre"
    releases(
        "corrected",
        "owner/gpt2",
        "blocks.3.hook_resid_pre",
        place,
        overrides=overrides,
        l0=12,
        **row,
    )
    releases("other", "owner/other", "blocks.3.hook_resid_pre", place, overrides={"d_in": 1})
    save_sae_lens(served / "owner/gpt2" / place, weights, model_name=None, **cfg)
    by_name = load_sae("corrected/blocks.3.hook_resid_pre")
    by_hub, whole = load_sae(f"owner/gpt2@v1/{place}"), load_sae("owner/gpt2")
    again = load_sae(Path(str(by_hub.record["path"])))  # as an artefact names it
    marks = {sae.identity["fingerprint"] for sae in (by_name, by_hub, whole, again)}
    assert len(marks) == 1
    assert {(sae.record["model"]["name"], sae.record["l0"]) for sae in (by_hub, whole, again)} == {
        ("gpt2-small", 12.0)
    }
    if not cfg:  # without the registry it would be another
        copy = shutil.copytree(by_hub.record["path"], served / "copy")
        assert load_sae(copy).identity["fingerprint"] not in marks


def test_a_release_in_the_format_of_sparsify_is_read_as_sparsify_reads_it(
    offline, releases, weights, same, x
):
    releases("sparse", "owner/sparse", "layers.3.mlp", "layers.3.mlp", form="sparsify")
    given = save_sparsify(offline("owner/sparse") / "layers.3.mlp", weights)
    ours = load_sae("sparse/layers.3.mlp")
    acts = torch.relu((x - given["b_dec"]) @ given["W_enc"] + given["b_enc"])
    same(ours, x, acts * (acts >= acts.topk(16).values[:, -1:]))
    assert (ours.site, ours.record["model"]["name"]) == ("layers.3.mlp", "gpt2-small")


@pytest.mark.parametrize(
    ("row", "stated"),
    [
        ({"l0": 12, "variance_explained": 0.75}, {"l0": 12.0, "fvu": 0.25}),
        ({"expected_l0": 7.5}, {"l0": 7.5}),
        ({}, {}),
    ],
)
def test_a_release_says_how_good_its_saes_are(offline, releases, weights, row, stated):
    releases("stating", "owner/stating", "a", "a", **row)
    save_sae_lens(offline("owner/stating") / "a", weights)
    record = load_sae("stating/a").record
    assert {name: record[name] for name in ("fvu", "l0", "dead") if name in record} == stated


def test_qwen_scope_is_read_by_its_name_in_sae_lens_and_by_its_file(
    offline, releases, monkeypatch, weights, same, x
):
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    repo = "Qwen/SAE-Res-Qwen3-1.7B-Base-W1K-L0_50"
    monkeypatch.setitem(
        loaders.QWEN_SCOPE_MODEL_INFO, "Qwen3-1.7B-Base", ("Qwen/Qwen3-1.7B-Base", D_IN)
    )
    releases("qwen", repo, "layer3", "layer3.sae.pt", form="qwen_scope", l0=50)
    snapshot = offline(repo)
    snapshot.mkdir(parents=True)
    parts = [weights("W_enc", "b_enc", "W_dec", seed=seed) for seed in range(3)]
    kept = {
        "W_enc": torch.cat([p["W_enc"] for p in parts], 1)[:, :1024].T,
        "b_dec": weights("b_dec")["b_dec"],
        "W_dec": torch.cat([p["W_dec"] for p in parts])[:1024].T,
        "b_enc": torch.cat([p["b_enc"] for p in parts])[:1024],
    }
    torch.save(
        {name: tensor.contiguous() for name, tensor in kept.items()}, snapshot / "layer3.sae.pt"
    )
    ours, theirs = load_sae("qwen/layer3"), SAE.from_pretrained("qwen", "layer3")
    with torch.no_grad():
        acts = theirs.encode(x)
        same(ours, x, acts, theirs.decode(acts))
    assert (ours.id, ours.site, ours.k, ours.record["l0"]) == (
        "qwen-layer3",
        "resid_post@3",
        50,
        50.0,
    )
    assert ours.record["module"] == theirs.cfg.metadata.hf_hook_name == "model.layers.3"
    assert ours.record["model"]["name"] == theirs.cfg.metadata.model_name
    torch.save({}, snapshot / "layer10.sae.pt")
    with pytest.raises(UserError, match=r"layer10\.sae\.pt: W_enc is missing"):
        load_saes(str(snapshot))
    torch.save(
        {name: tensor.contiguous() for name, tensor in kept.items()}, snapshot / "layer10.sae.pt"
    )
    (three, ten), alone = load_saes(str(snapshot)), load_sae(snapshot / "layer3.sae.pt")
    assert (three.site, ten.site) == ("resid_post@3", "resid_post@10")
    assert alone.id == three.id == "SAE-Res-Qwen3-1.7B-Base-W1K-L0_50-layer3"
    by_hub = load_sae(f"{repo}/layer3.sae.pt")
    again = load_sae(Path(str(by_hub.record["path"])))  # as an artefact names it
    assert (
        again.identity["fingerprint"]
        == by_hub.identity["fingerprint"]
        == ours.identity["fingerprint"]
    )
    assert len(load_saes(repo)) == 2
    (snapshot / "layer3.sae.pt").rename(snapshot.parents[2] / "layer3.sae.pt")
    with pytest.raises(
        UserError, match=r"does not say what it is: keep the config\.json beside it, or the name"
    ):
        load_sae(snapshot.parents[2] / "layer3.sae.pt")


def save_qwen_scope(folder, **changes):
    """Files of Qwen-Scope with the configuration that its repositories have."""
    folder.mkdir(parents=True)
    made = {
        "W_enc": torch.eye(6)[:, :4],
        "W_dec": torch.eye(6)[:4],
        "b_enc": torch.zeros(6),
        "b_dec": torch.zeros(4),
    }
    torch.save({name: tensor.clone() for name, tensor in made.items()}, folder / "layer3.sae.pt")
    cfg = {
        "model_type": "topk_sae",
        "base_model": "Qwen/Qwen3-1.7B-Base",
        "d_model": 4,
        "d_sae": 6,
        "k": 2,
        "num_layers": 28,
        "hook_point": "resid_post",
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(cfg | changes))


def test_qwen_scope_in_a_folder_of_another_name_is_read_by_its_configuration(tmp_path):
    save_qwen_scope(tmp_path / "my-saes")
    for source in ("my-saes", "my-saes/layer3.sae.pt"):
        sae = load_sae(tmp_path / source)
        assert (sae.id, sae.site, sae.k) == ("my-saes-layer3", "resid_post@3", 2)
        assert sae.record["model"]["name"] == "Qwen/Qwen3-1.7B-Base"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 7}, "k 7 is greater than d_sae 6"),
        ({"k": "2"}, "k is missing or not a positive number"),
        ({"hook_point": "mlp_out"}, "the hook_point mlp_out cannot be read"),
        ({"model_type": "qwen3"}, "does not say what it is: keep the config.json beside it"),
        ({"base_model": ["a"]}, None),
    ],
)
def test_another_configuration_beside_files_of_qwen_scope(tmp_path, changes, message):
    save_qwen_scope(tmp_path / "my-saes", **changes)
    if message is None:
        assert load_sae(tmp_path / "my-saes").record["model"]["name"] is None
    else:
        with pytest.raises(UserError, match=message):
            load_sae(tmp_path / "my-saes")


def test_qwen_scope_in_a_repository_of_another_name_is_downloaded_with_its_configuration(served):
    save_qwen_scope(served / "owner/mirror")
    for source in ("owner/mirror", "owner/mirror/layer3.sae.pt"):
        sae = load_sae(source)
        assert (sae.site, sae.k, sae.record["model"]["name"]) == (
            "resid_post@3",
            2,
            "Qwen/Qwen3-1.7B-Base",
        )


def test_a_file_of_qwen_scope_is_downloaded_alone(served, tmp_path):
    folder = served / "owner/SAE-Res-Tiny-W1K-L0_2"
    folder.mkdir(parents=True)
    made = {
        "W_enc": torch.ones(6, 4),
        "W_dec": torch.ones(4, 6),
        "b_enc": torch.ones(6),
        "b_dec": torch.ones(4),
    }
    for layer in (3, 10):
        torch.save(made, folder / f"layer{layer}.sae.pt")
    sae = load_sae("owner/SAE-Res-Tiny-W1K-L0_2/layer10.sae.pt")
    assert (sae.site, sae.id) == ("resid_post@10", "SAE-Res-Tiny-W1K-L0_2-layer10.sae.pt")
    assert [p.name for p in (tmp_path / "cache").rglob("layer*.sae.pt")] == ["layer10.sae.pt"]
    assert (
        load_sae(Path(str(sae.record["path"]))).identity["fingerprint"]
        == sae.identity["fingerprint"]
    )


def test_a_release_in_a_format_of_its_own_is_converted_by_sae_lens(
    offline, releases, weights, same, x
):
    from sae_lens import SAE

    name = "Llama3_1-8B-Base-L3R-8x"
    releases("llama", "fnlp/tiny", "l3r", name, form="llama_scope", norm_scaling_factor=0.5)
    root = offline("fnlp/tiny") / name
    (root / "checkpoints").mkdir(parents=True)
    told = {
        "d_model": D_IN,
        "d_sae": D_SAE,
        "jump_relu_threshold": 3.0,
        "hook_point_in": "blocks.3.hook_resid_post",
        "dataset_average_activation_norm": {"in": 20.0},
    }
    (root / "hyperparams.json").write_text(json.dumps(told))
    given = weights("W_enc", "b_enc", "W_dec", "b_dec")
    linear = {
        "encoder.weight": given["W_enc"].T,
        "encoder.bias": given["b_enc"],
        "decoder.weight": given["W_dec"].T,
        "decoder.bias": given["b_dec"],
    }
    save_file(
        {key: value.contiguous() for key, value in linear.items()},
        root / "checkpoints" / "final.safetensors",
    )
    ours, theirs = load_sae("llama/l3r"), SAE.from_pretrained("llama", "l3r")
    with torch.no_grad():
        acts = theirs.encode(x)
        same(ours, x, acts, theirs.decode(acts))
    assert (ours.id, ours.site, ours.activation, ours.centred) == (
        "llama-l3r",
        "resid_post@3",
        "jumprelu",
        False,
    )
    assert ours.record["model"]["name"] == "meta-llama/Llama-3.1-8B"
    assert (
        load_sae(Path(str(ours.record["path"]))).identity["fingerprint"]
        == ours.identity["fingerprint"]
    )


@pytest.mark.parametrize("form", ["mwhanna_transcoder", "temporal", "connor_rob_hook_z"])
def test_a_release_of_an_unsupported_form_gives_one_sentence_of_error(releases, form):
    releases("odd", "owner/odd", "layer_0", "layer_0", form=form)
    with pytest.raises(UserError) as told:
        load_sae("odd/layer_0")
    one_sentence(told, "odd/layer_0 is", "cannot be read; choose")


@pytest.mark.parametrize(
    "source", ["gemma-scope-2b-pt-res-canonical", "gemma-scope-2b-pt-res-canonical/layer_99"]
)
def test_a_release_alone_lists_how_to_name_an_sae(source):
    with pytest.raises(UserError) as told:
        load_saes(source)
    one_sentence(
        told,
        "names no SAE of the release",
        "such as gemma-scope-2b-pt-res-canonical/layer_0/width_16k",
    )


def test_damaged_files_of_a_release_that_sae_lens_converts_give_one_sentence_of_error(
    offline, releases
):
    releases("llama", "fnlp/tiny", "l3r", "L3R", form="llama_scope")
    root = offline("fnlp/tiny") / "L3R"
    root.mkdir(parents=True)
    (root / "hyperparams.json").write_text("{}")
    with pytest.raises(UserError) as told:
        load_sae("llama/l3r")
    one_sentence(told, "sae-lens cannot read llama/l3r (KeyError", "clear it")


@pytest.mark.parametrize("form", ["llama_scope", None])
def test_a_release_that_cannot_be_downloaded_gives_one_sentence_of_error(offline, releases, form):
    releases("gone", "owner/gone", "a", "a", form=form)
    with pytest.raises(UserError) as told:
        load_sae("gone/a")
    one_sentence(told, "the hub cannot be reached")


def test_every_release_of_the_registry_lies_where_sae_lens_finds_it():
    from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name

    assert len(registry._releases()) > 100
    for release, about in registry._releases().items():
        for row in (about["saes"][0], about["saes"][-1]):
            entry = registry._find_entry(f"{release}/{row['id']}")
            assert (entry["repo_id"], str(entry["path"])) == tuple(
                get_repo_id_and_folder_name(release, row["id"])
            )
