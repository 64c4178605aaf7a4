"""What is cut from generated text before it is scored.

As in RobustVLM ``open_flamingo/eval/coco_metric.py`` and ``vqa_metric.py``, which the paper uses.
"""

import re

_VQA_END = re.compile("Question|Answer|Short")


def clean_caption(generated: str) -> str:
    """Cleans a caption: it ends before "Output", and double quotes are dropped.

    Returns:
        The caption, without white space around it.
    """
    return generated.strip().split("Output", 1)[0].replace('"', "").strip()


def clean_vqa_answer(generated: str) -> str:
    """Cleans a short answer: it ends before "Question", "Answer" or "Short", and then before the first ", ".

    Returns:
        The answer, without white space around it.
    """
    answer = _VQA_END.split(generated.strip(), maxsplit=1)[0]
    return answer.split(", ", 1)[0].strip()
