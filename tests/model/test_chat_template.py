"""Chat templates of tokenizers: what the model reads, what carries loss, where generation stops."""

import datetime
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from rllava.errors import UserError
from rllava.model.conversation import IGNORE, IMAGE_TOKEN, TEMPLATES, Template, Tokens, pieces, stop_ids, tokenize
from rllava.model.language import TINY_LLAMA, load_language_model
from tests.model.test_llava import make, pixels
from tests.model.test_llava_golden import FOLDER

_, BASE = load_language_model(TINY_LLAMA)
CHAT = TEMPLATES.get("chat")

# Written in the manner of the models named; none is a copy.
TURNS = "{% for m in messages %}"
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + TURNS
    + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}"
    + TURNS
    + "<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    + "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}"
    + TURNS
    + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }} "
    + "{{ eos_token }}{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
TURNED = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TURNS
    + "<|turn|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|over|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|turn|>model\n{% endif %}"
)
# Thought stands before the last answer alone, and is switched off in the generation prompt.
THINKING = (
    TURNS
    + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    + "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# template: (text, special tokens, what ends an answer)
STYLES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "headers": (HEADERS, ["<|start|>", "<|stop|>", "<|eot|>"], "<|eot|>"),
    "inst": (INST, [], " </s>"),
    "turned": (TURNED, ["<|turn|>", "<|over|>"], "<|over|>"),
    "thinking": (THINKING, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
}
ROUNDS = {
    "one": [("what is it?", "a circle")],
    "three": [("what is it?", "a circle"), ("and its color?", "red."), ("sure?", "Yes, quite sure.")],
    "empty answers": [("what is it?", ""), ("sure?", "")],
    "not ASCII": [("Qu'est-ce que c'est ?", "Ça, c’est un élève – à côté."), ("这是什么？", "🦙🏽")],
    "lines and blanks": [("a\n\nb  c", "1. x\n2. y\n\n\tz"), ("3?", "12  34")],
    "numbers": [("how many?", "12")],
    "assistant in the text": [("say assistant", "assistant\n<|user|> [INST] x [/INST]")],
}


def tokenizer_of(template: str | None, special: list[str], base: Any = BASE, **tokens: str | None) -> Any:
    backend = Tokenizer.from_str(base.backend_tokenizer.to_str())
    known = {"bos_token": "<s>", "eos_token": "</s>", **tokens}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path="made", **known)
    if special:
        made.add_tokens([transformers.AddedToken(token, special=True, normalized=False) for token in special])
    made.chat_template = template
    return made


def styled(style: str) -> Any:
    template, special, _ = STYLES[style]
    return tokenizer_of(template, special)


def messages(rounds: list[tuple[str, str]]) -> list[dict[str, str]]:
    said = [pair for turn in rounds for pair in zip(("user", "assistant"), turn, strict=True)]
    return [{"role": role, "content": text} for role, text in said]


def labelled(tokenizer: Any, sample: Tokens) -> str:
    assert all(label in (IGNORE, token) for token, label in zip(sample.ids, sample.labels, strict=True))
    return str(tokenizer.decode([label for label in sample.labels if label != IGNORE]))


@pytest.mark.parametrize("rounds", ROUNDS.values(), ids=ROUNDS)
@pytest.mark.parametrize("style", STYLES)
def test_ids_are_those_of_the_template_and_loss_is_on_answers_and_their_ends_alone(
    style: str, rounds: list[tuple[str, str]]
) -> None:
    tokenizer = styled(style)
    sample = tokenize(tokenizer, pieces(CHAT, rounds))
    expected = tokenizer.apply_chat_template(messages(rounds), enable_thinking=False, return_dict=False)
    assert list(sample.ids) == expected
    blank = " " if style == "inst" else ""  # it stands after the generation prompt, so the model writes it
    assert labelled(tokenizer, sample) == "".join(f"{blank}{answer}{STYLES[style][2]}" for _, answer in rounds)


@pytest.mark.parametrize("rounds", ROUNDS.values(), ids=ROUNDS)
@pytest.mark.parametrize("style", STYLES)
def test_generation_begins_where_the_loss_begins(style: str, rounds: list[tuple[str, str]]) -> None:
    tokenizer = styled(style)
    *before, (question, answer) = rounds
    prompt = tokenize(tokenizer, pieces(CHAT, [*before, (question, None)]))
    whole = tokenize(tokenizer, pieces(CHAT, [*before, (question, answer)]))
    length = len(prompt.ids)
    assert whole.ids[:length] == prompt.ids
    assert whole.labels[:length] == prompt.labels
    assert whole.labels[length] == whole.ids[length]


@pytest.mark.parametrize("style", STYLES)
def test_the_image_stands_in_the_users_turn_and_nothing_else_changes(style: str) -> None:
    tokenizer = styled(style)
    sample = tokenize(tokenizer, pieces(CHAT, [("what is it?\n<image>", "a circle"), ("sure?", "yes")]))
    assert sample.ids.count(IMAGE_TOKEN) == 1
    place = sample.ids.index(IMAGE_TOKEN)
    assert sample.labels[place] == IGNORE
    text = tokenizer.decode(sample.ids[:place]) + "<image>" + tokenizer.decode(sample.ids[place + 1 :])
    told = messages([("<image>\nwhat is it?", "a circle"), ("sure?", "yes")])
    assert text == tokenizer.apply_chat_template(told, tokenize=False, enable_thinking=False)
    end = STYLES[style][2]
    assert labelled(tokenizer, sample).replace(" ", "") == f"acircle{end}yes{end}".replace(" ", "")


def test_a_tokenizer_that_puts_blanks_before_words_is_masked_alike() -> None:
    base = transformers.AutoTokenizer.from_pretrained(FOLDER / "tokenizer", legacy=False)
    for template, special, end in STYLES.values():
        tokenizer = tokenizer_of(template, special, base)
        for rounds in ROUNDS.values():
            sample = tokenize(tokenizer, pieces(CHAT, rounds))
            told = tokenizer.apply_chat_template(messages(rounds), enable_thinking=False, return_dict=False)
            assert list(sample.ids) == told
            expected = "".join(answer + end for _, answer in rounds).replace(" ", "")
            assert labelled(tokenizer, sample).replace(" ", "") == expected


def test_the_system_text_of_the_template_is_kept_and_ours_takes_its_place() -> None:
    tokenizer = styled("chatml")
    assert "helpful assistant" in tokenizer.decode(tokenize(tokenizer, pieces(CHAT, ROUNDS["one"])).ids)
    ours = tokenize(tokenizer, pieces(Template("x", system="Be brief.", style="chat"), ROUNDS["one"]))
    text = tokenizer.decode(ours.ids)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in text
    assert "helpful assistant" not in text
    assert labelled(tokenizer, ours) == "a circle<|im_end|>"


def test_an_end_token_that_swallows_the_line_break_after_it_is_labelled() -> None:
    tokenizer = tokenizer_of(CHATML, ["<|im_start|>"])
    tokenizer.add_tokens([transformers.AddedToken("<|im_end|>", special=True, normalized=False, rstrip=True)])
    assert labelled(tokenizer, tokenize(tokenizer, pieces(CHAT, ROUNDS["one"]))) == "a circle<|im_end|>"


def test_a_template_that_writes_the_date_writes_the_same_one_every_day() -> None:
    tokenizer = tokenizer_of("{{ strftime_now('%d %b %Y') }}\n" + CHATML, ["<|im_start|>", "<|im_end|>"])
    text = tokenizer.decode(tokenize(tokenizer, pieces(CHAT, ROUNDS["one"])).ids)
    assert text.startswith("26 Jul 2024\n")
    assert str(datetime.date.today().year) not in text.replace("2024", "")


@pytest.mark.parametrize("style", STYLES)
def test_answers_stop_at_the_token_that_carries_the_loss_of_their_end(style: str) -> None:
    tokenizer = styled(style)
    end = tokenizer.convert_tokens_to_ids(STYLES[style][2].strip())
    labels = [label for label in tokenize(tokenizer, pieces(CHAT, ROUNDS["one"])).labels if label != IGNORE]
    assert stop_ids(tokenizer, CHAT) == tuple(dict.fromkeys((end, tokenizer.eos_token_id)))
    assert labels[-1] == end


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_llama_2"])
def test_other_styles_stop_at_the_tokenizers_end_token(name: str) -> None:
    sample = tokenize(BASE, pieces(TEMPLATES.get(name), ROUNDS["three"]))
    assert stop_ids(BASE, TEMPLATES.get(name)) == (BASE.eos_token_id,)
    assert sample.labels[-1] == BASE.eos_token_id


def test_generation_stops_at_any_stop_token_and_nowhere_else() -> None:
    llava = make("tiny-clip", dtype=torch.float32)
    llava.tokenizer = styled("chatml")
    llava.conversation = "chat"
    language_model: Any = llava.connector.language_model
    language_model.resize_token_embeddings(len(llava.tokenizer), mean_resizing=False)
    prompt = llava.tokens("<image>\nwhat is it?")
    word = llava.tokenizer(" red").input_ids[0]
    for said, steps in [*((stop, 3) for stop in llava.stop_ids), (word, 6)]:
        seen: list[int] = []

        def answer(module: Any, inputs: Any, logits_BTV: Any, said: int = said, seen: list[int] = seen) -> Any:
            seen.append(0)
            return torch.zeros_like(logits_BTV).index_fill(-1, torch.tensor(said if len(seen) == 3 else word), 1.0)

        handle = language_model.lm_head.register_forward_hook(answer)
        (text,) = llava.generate(pixels(1, torch.float32), [prompt], 6)
        handle.remove()
        assert (len(seen), text) == (steps, " ".join(["red"] * (2 if steps == 3 else 6)))
    assert len(llava.stop_ids) == 2


BROKEN = {
    "no chat template": (None, "has no chat template; set chat_template"),
    "a system text refused": (TURNED, r"refuses a conversation of system, user.*System role not supported"),
    "a system text left out": (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}<|over|>{% endfor %}",
        "does not write the system's text",
    ),
    "an answer left out": (
        TURNS + "{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}<|over|>{% endfor %}",
        "does not write the assistant's text",
    ),
    "no end of the turn": (
        TURNS + "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        "puts no special token after an answer",
    ),
    "no generation prompt": (
        TURNS + "<|turn|>{{ m.role }}\n{{ m.content }}<|over|>\n{% endfor %}",
        "its generation prompt is not what stands before an answer",
    ),
    "a mistake in it": ("{% for m in messages %}", "refuses a conversation of"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_templates_that_cannot_be_used_are_one_clear_error(broken: tuple[str | None, str]) -> None:
    template, message = broken
    tokenizer = tokenizer_of(template, ["<|turn|>", "<|over|>"])
    with pytest.raises(UserError, match=message) as caught:
        tokenize(tokenizer, pieces(Template("x", system="Be brief.", style="chat"), ROUNDS["three"]))
    assert "\n" not in str(caught.value)
    assert "tokenizer made" in str(caught.value)


def test_missing_tokens_are_one_clear_error_each() -> None:
    no_end = tokenizer_of(None, [], eos_token=None)
    with pytest.raises(UserError, match="tokenizer made has no end token; set eos_token"):
        tokenize(no_end, pieces(TEMPLATES.get("vicuna_v1"), ROUNDS["one"]))
    with pytest.raises(UserError, match="tokenizer made has no end token; set eos_token"):
        stop_ids(no_end, TEMPLATES.get("vicuna_v1"))
    no_begin = tokenizer_of(None, [], bos_token=None)
    assert tokenize(no_begin, pieces(TEMPLATES.get("llava_llama_2"), ROUNDS["one"])).ids[0] != BASE.bos_token_id
    with pytest.raises(UserError, match="tokenizer made has no begin token; set bos_token"):
        tokenize(no_begin, pieces(TEMPLATES.get("llava_llama_2"), ROUNDS["three"]))


def test_a_chat_model_without_end_token_stops_at_the_end_of_the_turn() -> None:
    tokenizer = tokenizer_of(CHATML, ["<|im_start|>", "<|im_end|>"], eos_token=None)
    assert stop_ids(tokenizer, CHAT) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_no_padding_token_is_needed() -> None:
    llava = make("tiny-clip", dtype=torch.float32)
    prompts = [llava.tokens(question) for question in ("<image>\nwhat is it?", "<image>\nwhat color is the shape?")]
    expected = llava.generate(pixels(2, torch.float32), prompts, 8)
    llava.tokenizer = tokenizer_of(None, [])
    assert llava.tokenizer.pad_token_id is None
    assert llava.generate(pixels(2, torch.float32), prompts, 8) == expected


def test_an_end_token_that_the_text_hides_is_one_clear_error() -> None:
    backend = Tokenizer.from_str(BASE.backend_tokenizer.to_str().replace('"</s>"', '"<end>"'))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, name_or_path="made", bos_token="<s>", eos_token="</s>", split_special_tokens=True
    )
    with pytest.raises(UserError, match="does not see '</s>' within a text as the token it is"):
        tokenize(tokenizer, pieces(TEMPLATES.get("vicuna_v1"), ROUNDS["one"]))
