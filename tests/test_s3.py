"""S3 that is out of order, S3 of others than Amazon, keys that may do little, and names with brackets."""

import contextlib
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.fs
import pytest
from botocore.exceptions import ClientError

from analysis.loading import load_sweep
from rllava.encoders import encoder_spec
from rllava.errors import UserError
from rllava.filesystem import copy_folder, open_filesystem, remove_folder
from rllava.model.assemble import build_connector, load_llava, save_stage
from rllava.recipes import PRESETS
from rllava.s3 import S3, explain
from rllava.store import Store
from rllava.weights import pin_weights
from tests.fixtures.ray_cluster import free_port
from tests.fixtures.s3_proxy import Answer, Request, run_s3_proxy
from tests.fixtures.s3_proxy import Store as Proxy
from tests.fixtures.s3_server import BUCKET, S3Server
from tests.test_store import Spec

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Other AWS variables, for clients made within."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        S3.clear_instance_cache()  # a client reads the variables when it is made
        try:
            yield
        finally:
            S3.clear_instance_cache()


@contextlib.contextmanager
def store_that(
    answers: Callable[[Request], Answer], server: S3Server, drop: frozenset[str] = frozenset()
) -> Iterator[Proxy]:
    with run_s3_proxy(server.endpoint, answers, drop) as proxy, environment(AWS_ENDPOINT_URL=proxy.endpoint):
        yield proxy


def refusal(url: str) -> str:
    with pytest.raises(UserError) as caught:
        Store(url).prepare()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What S3 answers


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "NoSuchBucket", "there is no such bucket; create it first"),
        (403, "InvalidAccessKeyId", "the access key is unknown there; check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "the secret key does not belong to the access key"),
        (400, "ExpiredToken", "the credentials have expired"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
        (400, "AuthorizationHeaderMalformed", "in another region than AWS_REGION says"),
        (403, "AccessDenied", "the key may not do ListObjectsV2 there; it needs s3:ListBucket for the prefix"),
        (503, "SlowDown", "the store asks to slow down"),
        (400, "Peculiar", r"the store refused ListObjectsV2 with Peculiar (says the store)"),
    ],
)
def test_what_a_store_refuses_is_said(status: int, code: str, says: str, s3_storage: str, s3_server: S3Server) -> None:
    with store_that(lambda _: (status, code), s3_server):
        message = refusal(f"{s3_storage}/refused")
    assert message.startswith(f"storage {s3_storage}/refused cannot be written: ")
    assert says in message


def test_a_dead_endpoint_is_named_in_seconds(s3_storage: str) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with environment(AWS_ENDPOINT_URL=dead):
        assert f"no S3 answers at AWS_ENDPOINT_URL {dead}" in refusal(f"{s3_storage}/x")
        with pytest.raises(UserError, match=r"cannot be listed: no S3 answers"):
            load_sweep(f"{s3_storage}/x", "encoder_ablation")


def test_missing_credentials_are_named(s3_storage: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none")
    with environment(
        AWS_ACCESS_KEY_ID=None,
        AWS_SECRET_ACCESS_KEY=None,
        AWS_SHARED_CREDENTIALS_FILE=nowhere,
        AWS_CONFIG_FILE=nowhere,
    ):
        assert "no credentials were found; set AWS_ACCESS_KEY_ID" in refusal(f"{s3_storage}/x")


def test_a_profile_that_is_not_there_is_named(s3_storage: str) -> None:
    with environment(AWS_PROFILE="nobody"):
        assert "(The config profile (nobody) could not be found)" in refusal(f"{s3_storage}/x")


def raised(error: Exception, meanwhile: Exception, cause: Exception | None = None) -> BaseException:
    """An error that was raised while another one was handled."""
    try:
        try:
            raise meanwhile
        except Exception:
            raise error from cause
    except Exception as found:
        return found


def test_an_object_that_is_not_there_is_no_fault_of_the_store() -> None:
    """It is how another error's story often begins, which must not be told as the store's."""
    absent, denied = (
        ClientError({"Error": {"Code": code, "Message": "said"}}, "GetObject") for code in ("NoSuchKey", "AccessDenied")
    )
    mistake = KeyError("a mistake of ours")
    assert explain(raised(mistake, absent, absent), "") is None
    assert explain(raised(mistake, denied, denied), "") is not None
    assert explain(raised(KeyError("ours"), denied), "") is None  # from None
    assert explain(raised(KeyError("ours"), denied, ValueError("something else")), "") is None
    told = raised(FileNotFoundError("x"), denied, denied)  # as a key that may do little is told that it is not there
    assert explain(told, "s3://bucket/x") is None
    assert str(explain(denied, "")).endswith("for what is below it")


# Keys that may do little


def narrow(prefix: str, existing: set[str]) -> Callable[[Request], Answer]:
    """Amazon's answers to a key that may list one prefix, and read and write below it.

    Args:
        prefix: of the keys, with the slash.
        existing: filled with the keys that were put.
    """

    def answer(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        key = path.removeprefix(f"/{BUCKET}").removeprefix("/")
        if not key:
            asked = re.search(r"[?&]?prefix=([^&]*)", query)
            may = request.method == "GET" and asked is not None and asked[1].replace("%2F", "/").startswith(prefix)
            return None if may else (403, "AccessDenied")
        if not key.startswith(prefix):
            return 403, "AccessDenied"
        if request.method == "PUT":
            existing.add(key)
        # Who may not list the whole bucket is not told that a key is missing.
        return (403, "AccessDenied") if request.method in ("GET", "HEAD") and key not in existing else None

    return answer


def test_a_key_for_one_prefix_is_enough(s3_storage: str, s3_server: S3Server, tmp_path: Path) -> None:
    existing: set[str] = set()
    url = f"{s3_storage}/narrow"
    with store_that(narrow("narrow/", existing), s3_server):
        store = Store(url)
        store.prepare()
        store.prepare()
        artifact = store.artifact("models", "m", Spec(1))
        assert not store.is_complete(artifact)
        with store.lease(artifact):
            arrow = store.arrow_filesystem()
            arrow.create_dir(f"{artifact.path}/run")  # as Ray does
            with arrow.open_output_stream(f"{artifact.path}/run/checkpoint") as file:
                file.write(b"state")
            store.finish(artifact, Spec(1), {"seconds": 1})
        assert store.is_complete(artifact)
        assert store.exists(artifact.path)
        remove_folder(store.filesystem, f"{artifact.path}/run")
        assert not store.exists(f"{artifact.path}/run")
        message = refusal(f"{s3_storage}/other")
    assert "the key may not do ListObjectsV2 there" in message


def test_an_object_that_may_not_be_read_is_no_missing_one(s3_storage: str, s3_server: S3Server) -> None:
    Store(f"{s3_storage}/secret").write(f"{BUCKET}/secret/file", b"x")
    with store_that(lambda r: (403, "AccessDenied") if "secret/file" in r.path else None, s3_server):
        store = Store(f"{s3_storage}/secret")
        for read in (store.exists, store.filesystem.cat_file):
            with pytest.raises(PermissionError):
                read(f"{store.root}/file")


# Stores that only speak S3's protocol


@dataclass(frozen=True)
class Manner:
    answer: Callable[[Request], Answer]
    drop: frozenset[str] = frozenset()
    conditional: bool = False


CONDITION = "if-none-match"
put: set[str] = set()


def bare_412(request: Request) -> Answer:
    """The condition is kept, but the answer does not say which one failed (MinIO, R2)."""
    again = request.method == "PUT" and CONDITION in request.headers and request.path in put
    put.update({request.path} if request.method == "PUT" else ())
    return (412, "PreconditionFailed") if again else None


MANNERS = {
    "conditions are not implemented": Manner(lambda r: (501, "NotImplemented") if CONDITION in r.headers else None),
    "conditions are ignored": Manner(lambda _: None, drop=frozenset({CONDITION})),
    "a bare 412": Manner(bare_412, conditional=True),
    "nothing peculiar": Manner(lambda _: None, conditional=True),
}


@pytest.mark.parametrize("name", MANNERS)
def test_one_of_two_gets_the_lease(name: str, s3_storage: str, s3_server: S3Server, tmp_path: Path) -> None:
    manner = MANNERS[name]
    put.clear()
    with store_that(manner.answer, s3_server, manner.drop):
        store = Store(f"{s3_storage}/{tmp_path.name}")
        store.prepare()
        artifact = store.artifact("models", "m", Spec(1))
        path = f"{store.root}/leases/{artifact.kind}-{artifact.name}-{artifact.fingerprint}.json"
        with store.lease(artifact):
            assert store.filesystem.conditional is manner.conditional
            holder = store.filesystem.cat_file(path)
            assert store._create(path, b"another's") is False
            assert store.filesystem.cat_file(path) == holder
        assert not store.exists(path)


def test_a_store_that_asks_to_slow_down_is_asked_again(s3_storage: str, s3_server: S3Server) -> None:
    def busy(request: Request) -> Answer:
        return (503, "SlowDown") if request.number in (2, 3, 5) else None

    with store_that(busy, s3_server) as proxy:
        store = Store(f"{s3_storage}/slow")
        store.prepare()
        store.finish(store.artifact("models", "m", Spec(1)), Spec(1), {})
    assert len(proxy.seen) > 6


def test_a_store_is_not_sent_checksums_it_may_not_know(s3_storage: str, s3_server: S3Server) -> None:
    with store_that(lambda _: None, s3_server) as proxy:
        Store(f"{s3_storage}/plain").prepare()
    written = [request for request in proxy.seen if request.method == "PUT"]
    assert written
    assert not [
        name for request in written for name in request.headers if "checksum" in name or name == "x-amz-trailer"
    ]


def test_folders_go_without_deleting_many_objects_at_once(s3_storage: str, s3_server: S3Server) -> None:
    with store_that(lambda r: (501, "NotImplemented") if r.method == "POST" else None, s3_server):
        store = Store(f"{s3_storage}/singly")
        for name in ("a", "b/c"):
            store.write(f"{store.root}/run/{name}", b"x")
        store.write(f"{store.root}/run2", b"y")
        store.arrow_filesystem().delete_dir(f"{store.root}/run")
        assert store.filesystem.find(store.root) == [f"{store.root}/run2"]


# Names with a meaning to patterns


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


AWKWARD = "odd [a-z] *?#%~&=,'é"


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.processes)])
def test_folders_of_awkward_names_are_copied_and_removed_exactly(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = str(tmp_path / "store") if where == "local" else f"{request.getfixturevalue('s3_storage')}/exactly"
    filesystem, root = open_filesystem(f"{base}/{AWKWARD}")
    for name in ("run/a", "run/b/c", "run[1]/d", "ran/e", "file"):
        filesystem.pipe_file(f"{root}/{name}", name.encode())
    copy_folder(filesystem, f"{root}/run", tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy")): path.read_text() for path in (tmp_path / "copy").rglob("*.*")}
    copied = {
        str(p.relative_to(tmp_path / "copy")): p.read_text() for p in (tmp_path / "copy").rglob("*") if p.is_file()
    }
    assert copied == {"a": "run/a", "b/c": "run/b/c"}
    copy_folder(filesystem, f"{root}/run[1]", tmp_path / "single")
    assert [path.name for path in (tmp_path / "single").iterdir()] == ["d"]
    remove_folder(filesystem, f"{root}/run[1]")
    assert sorted(filesystem.find(root)) == [f"{root}/{name}" for name in ("file", "ran/e", "run/a", "run/b/c")]
    store = Store(f"{base}/{AWKWARD}")
    arrow: pyarrow.fs.FileSystem = pickle.loads(pickle.dumps(store.arrow_filesystem()))
    arrow.move(f"{root}/file", f"{root}/moved")
    arrow.copy_file(f"{root}/moved", f"{root}/[c]")
    arrow.delete_file(f"{root}/moved")
    arrow.delete_dir_contents(f"{root}/run")
    assert sorted(filesystem.find(root)) == sorted([f"{root}/[c]", f"{root}/ran/e"])
    arrow.delete_dir(f"{root}/ran")
    remove_folder(filesystem, f"{root}/was never there")
    assert filesystem.find(root) == [f"{root}/[c]"]


def test_a_variant_trained_to_s3_is_read_back(s3_storage: str, tmp_path: Path) -> None:
    """Under a prefix with brackets too; the model's own folder has none."""
    encoders = (pin_weights(encoder_spec("tiny-clip[normalization=clip]")),)
    spec = replace(PRESETS.get("tiny").model, encoders=encoders)
    store = Store(f"{s3_storage}/my [results]")
    artifact = store.artifact("models", spec.name, spec)
    assert artifact.name == "tiny-clip_normalization_clip"
    connector, tokenizer = build_connector(spec)
    save_stage(spec, 2, connector, connector.state_dict(), tokenizer, tmp_path / "stage2")
    for file in files_below(tmp_path / "stage2"):
        store.write(f"{artifact.path}/stage2/{file.relative_to(tmp_path / 'stage2')}", file.read_bytes())
    llava = load_llava(spec, store.filesystem, artifact.path, encoders)
    assert llava.image_size == encoders[0].image_size


@pytest.mark.parametrize(
    "name",
    [
        "advxl-g[activation=gelu,layer=-2]@clip-l-336+fare4",
        "timm:vit_base.openai",
        "open_clip:ViT-B-16/openai",
        "a b~c#d%e&f?g*h$i'j\"k\\l;m|n<o>p(q)r{s}t!u^v`w",
        ".hidden",
        "-rf",
        "größe",
        "x" * 400,
    ],
)
def test_artifact_names_mean_nothing_to_a_shell_a_pattern_or_a_url(name: str, tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("models", name, Spec(1))
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,159}", artifact.name)
    assert f"{artifact.name}-{artifact.fingerprint}" == Path(artifact.path).name


def test_names_that_read_alike_are_told_apart(tmp_path: Path) -> None:
    names = ("tiny-clip[image_size=64]", "tiny-clip_image_size_64")
    encoders = [replace(pin_weights(encoder_spec("tiny-clip")), name=name) for name in names]
    specs = [replace(PRESETS.get("tiny").model, encoders=(encoder,)) for encoder in encoders]
    artifacts = [Store(str(tmp_path)).artifact("models", spec.name, spec) for spec in specs]
    assert artifacts[0].name == artifacts[1].name
    assert artifacts[0].path != artifacts[1].path


def test_names_of_the_recipes_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for preset in PRESETS:
        for name in (candidate.name for candidate in PRESETS.get(preset).candidates):
            before = name.replace("+", "_and_").replace("@", "_in_").replace("/", "_")
            for benchmark in (spec.name for spec in PRESETS.get(preset).benchmarks):
                readable = store.artifact("records", f"{name}-{benchmark}-eps0.5", Spec(1)).name
                assert readable == f"{before}-{benchmark}-eps0.5"


def test_nobody_hands_a_path_to_a_method_that_takes_patterns() -> None:
    calls = re.compile(r"(?:filesystem|fs)\.(?:get|put|rm|mv|copy|cp|cat|glob|expand_path)\(")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("rllava", "analysis", "cluster", "sweeps")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if calls.search(line) and "without patterns" not in line
    ]
    assert found == []
