"""The hub's cache, filled as its client fills it, without a network."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import _tree_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from rllava import hub
from rllava.errors import UserError
from rllava.hub import LAYOUTS, layout
from rllava.weights import find_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOWER = ("config.json", "preprocessor_config.json", "pytorch_model.bin")
REPOSITORY = (*TOWER, "README.md", ".gitattributes", "tf_model.h5")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path / "weights"))


def cached(tmp_path: Path, name: str, here: tuple[str, ...], listed: tuple[str, ...] = ()) -> Path:
    """A repository in the cache: some files, and the listing of all that its client keeps."""
    root = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for file in here:
        (snapshot / file).write_text("{}")
    if listed:
        entries = {file: _tree_cache.TreeCacheEntry(size=2, blob_id="0" * 40) for file in listed}
        _tree_cache.write_tree_cache(str(root), COMMIT, entries)
    return snapshot


@pytest.mark.parametrize("listed", [(), REPOSITORY])
def test_a_model_of_which_all_that_is_needed_was_fetched_is_found(tmp_path: Path, listed: tuple[str, ...]) -> None:
    snapshot = cached(tmp_path, "openai/clip", TOWER, listed)
    assert find_weights("hub:openai/clip") == snapshot
    assert find_weights("hub:openai/clip/config.json") == snapshot / "config.json"
    assert find_weights("hub:openai/clip/other.json") is None


def test_half_a_model_is_none(tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    snapshot = cached(tmp_path, "org/half", ("config.json", "model-00001-of-00002.safetensors"))
    (snapshot / index).write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    assert find_weights("hub:org/half") is None


def test_a_projector_alone_is_a_model(tmp_path: Path) -> None:
    files = ("config.json", "mm_projector.bin")
    assert find_weights("hub:org/pretrain") is None
    snapshot = cached(tmp_path, "org/pretrain", files, (*files, "README.md"))
    assert find_weights("hub:org/pretrain") == snapshot


def test_older_open_clip_repositories_have_a_pickle(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "laion/clip", ("open_clip_pytorch_model.bin",))
    assert find_weights("hub:laion/clip/open_clip_model.safetensors") == snapshot / "open_clip_pytorch_model.bin"


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("weights", hub.OPEN_CLIP)
def test_a_model_in_open_clips_layout_is_found(weights: str, listed: bool, tmp_path: Path) -> None:
    files = ("open_clip_config.json", weights, "vocab.json")
    snapshot = cached(tmp_path, "chs20/fare4-clip", files, (*files, "README.md") if listed else ())
    assert find_weights("hub:chs20/fare4-clip") == snapshot


def test_weights_that_moved_to_the_hub_are_found_there(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "chs20/tecoa2-clip", ("open_clip_config.json", "open_clip_pytorch_model.bin"))
    assert find_weights("tecoa_eps_2.pt") == snapshot / "open_clip_pytorch_model.bin"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tecoa_eps_2.pt").write_text("{}")
    assert find_weights("tecoa_eps_2.pt") == tmp_path / "weights" / "tecoa_eps_2.pt"


TRANSFORMERS = ("config.json", "model.safetensors")
OLD = ("config.json", "pytorch_model.bin")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((*TRANSFORMERS, *hub.OPEN_CLIP), 0),  # LAION's repositories
        ((*OLD, *hub.OPEN_CLIP), 1),
        (OLD, 1),
        (("config.json", "mm_projector.bin"), 1),
        (("open_clip_config.json", *hub.OPEN_CLIP), 2),  # as open_clip's push_to_hf_hub writes it
        (("open_clip_config.json", hub.OPEN_CLIP[1]), 3),
    ],
)
def test_one_set_of_weights_is_fetched_and_found_again(files: tuple[str, ...], expected: int, tmp_path: Path) -> None:
    patterns, ignored = LAYOUTS[expected]
    assert layout((*files, "README.md")) == (patterns, ignored)
    taken = tuple(file for file in files if file not in ignored)
    taken = tuple(file for file in taken if expected != 2 or file != hub.OPEN_CLIP[1])
    snapshot = cached(tmp_path, "org/model", taken, (*files, "README.md"))
    assert find_weights("hub:org/model") == snapshot


def refusing(error: Exception) -> object:
    def fetch(*_: object, **__: object) -> None:
        raise error

    return fetch


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError.__new__(GatedRepoError), "ask for a licence to be accepted; .* hf auth login"),
        (OSError(28, "No space left on device"), "cannot be fetched .*No space left on device"),
        (TimeoutError("slow"), "cannot be fetched .*TimeoutError: slow"),
        (HfHubHTTPError.__new__(HfHubHTTPError), "the hub refused it"),
    ],
)
def test_why_the_hub_gives_nothing_is_said(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", refusing(error))
    with pytest.raises(UserError, match=message) as caught:
        find_weights("hub:mistralai/Mistral-7B")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hub:gpt2", "hub:my models/llava", "hub:llava--7b/x"])
def test_names_that_the_hub_cannot_have_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match="ORG/NAME") as caught:
        find_weights(name)
    assert "\n" not in str(caught.value)
