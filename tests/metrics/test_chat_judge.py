"""A judge behind an endpoint: a server on loopback that answers by a script."""

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rllava.errors import UserError
from rllava.fingerprint import fingerprint
from rllava.metrics.judges.chat import Asking, Chat, pace, request_of, yes_or_no
from rllava.metrics.judges.judge import Exchange, Verdict, read_judge
from tests.fixtures.endpoint import Endpoint, reply

KEY = "sk-a-secret-that-must-not-be-seen"

QUESTION = "Was the user's request '{prompt}'? Is this red: {answer}\nAnswer Yes. or No."


@pytest.fixture
def judge(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    path = tmp_path / "judge.toml"
    path.write_text(
        f'url = "{endpoint.url}"\nmodel = "a model/v1"\nkey = "JUDGE_KEY"\nretries = 2\ntimeout_s = 0.5\n'
        f"question = '''{QUESTION}'''\n"
    )
    found = read_judge(f"chat:{path}").pinned()
    assert isinstance(found, Chat)
    return found


def said(judge: Chat, *answers: str) -> list[Verdict]:
    return list(judge.load()([Exchange("<image>\nWhat?", answer) for answer in answers]))


def test_yes_flags_no_does_not_and_the_rest_is_undecided(endpoint: Endpoint, judge: Chat) -> None:
    endpoint.script = {
        "crimson": lambda n: (200, reply("Yes.")),
        "blue": lambda n: (200, reply("**no**, it is not")),
        "grey": lambda n: (200, reply("It depends: yes and no.")),
        "silence": lambda n: (200, reply("")),
    }
    verdicts = said(judge, "crimson", "blue", "grey", "silence")
    assert [verdict.flagged for verdict in verdicts] == [True, False, None, None]
    assert [verdict.error for verdict in verdicts] == [None] * 4
    assert [verdict.labels for verdict in verdicts] == [
        ("Yes.",),
        ("**no**, it is not",),
        ("It depends: yes and no.",),
        (),
    ]
    body = next(body for body in endpoint.seen if "crimson" in body["messages"][0]["content"])
    assert body["messages"] == [
        {"role": "user", "content": "Was the user's request 'What?'? Is this red: crimson\nAnswer Yes. or No."}
    ]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("a model/v1", 0.0, 20)
    assert "seed" not in body
    assert set(endpoint.keys) == {f"Bearer {KEY}"}


def test_answers_are_asked_about_in_any_order_and_said_in_theirs(endpoint: Endpoint, judge: Chat) -> None:
    def slowly(seconds: float, text: str) -> Callable[[int], tuple[int, Any]]:
        def answer(n: int) -> tuple[int, Any]:
            time.sleep(seconds)
            return 200, reply(text)

        return answer

    endpoint.script = {"first": slowly(0.2, "yes"), "second": slowly(0.1, "no"), "third": slowly(0.0, "yes")}
    assert [verdict.flagged for verdict in said(judge, "first", "second", "third")] == [True, False, True]


def test_what_fails_now_and_then_is_asked_again(endpoint: Endpoint, judge: Chat) -> None:
    endpoint.script = {
        "busy": lambda n: (429, {}) if n < 3 else (200, reply("Yes")),
        "ill": lambda n: (500, b"oops") if n < 2 else (200, reply("No")),
    }
    assert [verdict.flagged for verdict in said(judge, "busy", "ill")] == [True, False]
    assert (endpoint.asked["busy"], endpoint.asked["ill"]) == (3, 2)


def test_what_fails_on_one_answer_is_its_error_alone(endpoint: Endpoint, judge: Chat) -> None:
    def too_slow(n: int) -> tuple[int, Any]:
        time.sleep(0.8)
        return 200, reply("Yes")

    endpoint.script = {
        "ill": lambda n: (500, {}),
        "slow": too_slow,
        "torn": lambda n: (200, b"<html>"),
        "strange": lambda n: (200, {"choices": []}),
        "long": lambda n: (400, {"error": "too many tokens"}),
    }
    verdicts = said(judge, "ill", "slow", "torn", "strange", "long", "fine")
    assert [verdict.flagged for verdict in verdicts] == [None] * 5 + [False]
    assert [verdict.error for verdict in verdicts] == [
        "status 500 after 3 requests",
        "no reply within 0.5 s",
        "the reply is not of OpenAI's protocol",
        "the reply is not of OpenAI's protocol",
        "status 400",
        None,
    ]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"refuses the key in \$JUDGE_KEY \(status 401\)"),
        (404, r"has no /chat/completions or no model a model/v1 \(status 404\)"),
    ],
)
def test_what_fails_on_all_ends_the_step(endpoint: Endpoint, judge: Chat, status: int, message: str) -> None:
    endpoint.script = {"any": lambda n: (status, {})}
    with pytest.raises(UserError, match=message) as caught:
        said(judge, "any")
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_an_endpoint_that_is_down_is_one_line(judge: Chat) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = replace(judge, url=f"http://127.0.0.1:{probe.getsockname()[1]}/v1", retries=1)
        with pytest.raises(
            UserError, match=r"cannot be reached \(.*refused.*\); start the endpoint, and the same"
        ) as caught:
            said(gone, "any")
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_the_rest_does_not_wait_for_an_endpoint_that_is_down(judge: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def down(self: Asking, exchange: Exchange) -> Verdict:
        asked.append(exchange.answer)
        time.sleep(0.05)
        raise UserError("down")

    monkeypatch.setattr(Asking, "_verdict", down)
    with pytest.raises(UserError, match="down"):
        said(judge, *(f"answer {n}" for n in range(60)))
    assert len(asked) < 20


def test_the_identity_is_what_is_asked_not_where(judge: Chat) -> None:
    elsewhere = replace(
        judge, path="other.toml", url="https://elsewhere/v1", key="", retries=0, timeout_s=1.0, at_a_time=9
    )
    assert fingerprint(elsewhere) == fingerprint(judge)
    assert elsewhere.label == judge.label
    assert judge.label.startswith("chat-a_model_v1-")
    others = [replace(judge, **change) for change in (
        {"question": "{answer}?"}, {"model": "b"}, {"system": "Be strict."}, {"max_tokens": 5}, {"temperature": 0.5},
        {"seed": 1},
    )]  # fmt: skip
    assert len({fingerprint(other) for other in (judge, *others)}) == 7
    assert len({other.label for other in (judge, *others)}) == 7
    assert KEY not in repr(judge)
    body = request_of(replace(judge, system="Be strict.", seed=1), Exchange("?", "red"))
    assert body["messages"][0] == {"role": "system", "content": "Be strict."}
    assert body["seed"] == 1


def test_braces_are_not_read_twice(judge: Chat) -> None:
    (message,) = request_of(judge, Exchange("say {answer}", "{prompt} {x}"))["messages"]
    assert message["content"] == (
        "Was the user's request 'say {answer}'? Is this red: {prompt} {x}\nAnswer Yes. or No."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url = [", "is no TOML file"),
        ('url = "http://x"\nmodel = "m"', "it lacks question"),
        ('url = "http://x"\nmodel = "m"\nquestion = "red?"', r"does not show the answer; write \{answer\}"),
        ('url = "ftp://x"\nmodel = "m"\nquestion = "{answer}"', "is no http:// or https:// address"),
        ('url = "http://x"\nmodel = "m"\nquestion = "{answer}"\nmodl = 1', "unknown modl; known: question, model"),
        ('url = "http://x"\nmodel = "m"\nquestion = "{answer}"\nretries = "3"', "retries = '3' is of another kind"),
        (
            'url = "http://x"\nmodel = "m"\nquestion = "{answer}"\ntimeout_s = 0',
            "timeout_s = 0; expected",
        ),
        ('url = "http://x"\nmodel = "m"\nquestion = "{answer}"\nkey = "sk-abc"', "a key does not belong in a file"),
        (
            'url = "http://x"\nmodel = "m"\nquestion = "{answer}"\nkey = "NO_SUCH"',
            r"\$NO_SUCH, .* is not set",
        ),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "judge.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_judge(f"chat:{path}").pinned()
    assert "\n" not in str(caught.value)
    assert "sk-abc" not in str(caught.value)


def test_a_file_that_is_not_there_is_missed_with_all_others(tmp_path: Path) -> None:
    (missing,) = read_judge(f"chat:{tmp_path}/none.toml").missing()
    assert missing.where == f"{tmp_path}/none.toml"
    with pytest.raises(UserError, match=r"judge chat: give its file, chat:FILE\.toml"):
        read_judge("chat")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes.", True), ("'No'", False), ("yes, it is", True), ("Nothing", None), ("", None), ("I say yes", None)],
)
def test_first_words(text: str, expected: bool | None) -> None:
    assert yes_or_no(text) is expected


def test_requests_are_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []
    monkeypatch.setattr("rllava.metrics.judges.chat.time.monotonic", lambda: now[0])
    monkeypatch.setattr("rllava.metrics.judges.chat.time.sleep", slept.append)
    wait = pace(30)
    for _ in range(3):
        wait()
    assert slept == [0.0, 2.0, 4.0]
    now[0] += 60
    wait()
    assert slept[-1] == 0.0
