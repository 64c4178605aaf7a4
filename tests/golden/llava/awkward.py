"""Conversations in which tokens, seams or masks can go wrong. Imported by both sides, so it needs nothing."""

Rounds = list[tuple[str, str]]

LONG = " ".join(f"Sentence number {number} speaks about a blue rectangle." for number in range(12))

CONVERSATIONS: dict[str, Rounds] = {
    "one round": [("<image>\nwhat color is the shape?", "red")],
    "three rounds": [("<image>\nwhat is it?", "a circle"), ("and its color?", "red."), ("sure?", "Yes, quite sure.")],
    "six rounds": [("<image>\nGo on.", "1"), *[(f"And {n}?", f"It is {n * n}.") for n in range(2, 7)]],
    "image after the question": [("what color is the shape?\n<image>", "red")],
    "image within the question": [("what is <image> this?", "a circle")],
    "image in the second round": [("hello", "Hello! How can I help?"), ("<image>\nwhat is it?", "a circle")],
    "no image": [("what?", "no image here")],
    "no image, three rounds": [("one?", "1"), ("two?", "2"), ("three?", "3.")],
    "two images in one turn": [("<image>\nis <image> the same?", "no")],
    "an image in each round": [("<image>\nwhat is it?", "a circle"), ("<image> and this?", "a square")],
    "the image alone": [("<image>", "A red circle.")],
    "numbers": [("<image>\nhow many?", "12"), ("12 or 1234?", "7 8")],
    "accents and dashes": [("<image>\nQu'est-ce que c'est ?", "Ça, c’est un élève – à côté."), ("¿Qué?", "ñandú")],
    "other scripts": [("<image>\n这是什么？", "红色的圆。"), ("Что это?", "красный круг"), ("ما هذا؟", "دائرة")],
    "emoji": [("<image>\nwhat is 🦙?", "🦙🏽 is a llama 👩‍👩‍👧"), ("🙂", "🙂")],
    "several lines": [
        ("<image>\nList them.", "1. a circle\n2. a square\n\n\tand\r\nmore"),
        ("and?\n\nso?", "that's it"),
    ],
    "double blanks": [("<image>\nso  many   blanks", "a  b    c"), ("a  b", "c  d")],
    "punctuation first": [("<image>\n...?", "...and so on"), (".", "!")],
    "a word that goes on across the seam": [("<image>\nwhat", "ever"), ("USER", "ASSISTANT"), ("</", "s>")],
    "code": [("<image>\nif (a < b) { return [INST]; }", "<p>\n  x = {'a': [1, 2]}\n</p>"), ("<s", "<unk")],
    "long": [("<image>\nTell me more.", LONG), ("Go on.", LONG)],
    "long, no image": [("Tell me more.", LONG), ("Go on.", LONG)],
    "empty answer": [("<image>\nwhat is it?", "")],
    "empty answer in the middle": [("<image>\nwhat is it?", "a circle"), ("sure?", ""), ("really?", "yes")],
    "empty question": [("", "a circle")],
    "blanks around an answer": [("<image>\nwhat is it?", " a circle\n"), ("sure?", "  yes ")],
    "blanks around a question": [(" what is it? ", "a circle")],
    "an answer that quotes the roles": [("<image>\nhow is it written?", "USER: so ASSISTANT: so [/INST] so")],
    "an answer with the end token": [("<image>\nhow does it end?", "With </s> it ends."), ("sure?", "yes")],
    "a question with the unknown token": [("<image>\nwhat is <unk>?", "a token"), ("sure?", "yes")],
    "image in an answer": [("<image>\nshow it", "here: <image> it is")],
}

TEXTS = ["", "<image>", "a <image> b", "<image><image>\nsame?", " <image> ", "x\n<image>\n y <image>", "ab  <image>  c"]
"""Raw text with image markers anywhere."""
