"""The list of attack checks: when each is raised, what it says about a number, and what to do.

After AutoAttack's flags (``flags_doc.md`` of fra31/auto-attack), the indicators of attack failure (Pintor et al. 2022)
and the advice of Carlini et al. 2019. :mod:`rllava.attacks.checks` carries them out; the report quotes them. This
module needs no GPU stack. ``docs/attack-checks.md`` holds the same texts; a test compares them.
"""

from dataclasses import dataclass

ZERO_GRADIENT_LIMIT = 0.05
"""As in the report: more exactly zero gradient entries than this, over a sample's steps, are suspect."""

LAST_RISE_LIMIT = 0.05
"""More of a sample's total rise than this in the last tenth of its steps means that it was not done (Pintor: 0.05)."""

SMALL_STEP = 1 / 16
"""A step of at most this times epsilon should raise a smooth loss, or lower it by next to nothing."""

SMALL_STEPS_LEAST = 5
"""With fewer small steps than this, a sample's oscillation says nothing."""

FALLS_LIMIT = 0.25
"""More of the small steps than this must have lowered the loss; near a maximum, sound attacks do that as well."""

FALLS_DEPTH_LIMIT = 0.02
"""What the falls take per small step, over the total rise. Measured: below 0.01 in nine of ten samples on the shipped
encoders up to 32/255; on a classifier behind random noise or shifts, 0.04 to 0.2 in the median at 8/255."""

PROBE = 1.0
"""Longest L-inf step along the gradient that it has to predict, in 1/255, but at most a quarter of epsilon (L2: just
that)."""

PREDICTION_LEAST = 0.25
"""Least share of the predicted change that must be seen. Along a line on which the loss rises and is convex or concave,
as the cross-entropy of nearly linear logits is, a central difference sees at least 0.5 of it, whatever the step."""

WEAKER_LIMIT = 0.05
"""Share of the smaller attack's rise by which the larger one may stay behind: both end in local maxima."""

LOOKS = 4
"""Forward passes on the same pixels, clean and attacked each: a model that tosses one coin escapes once in 64 times."""


@dataclass(frozen=True)
class Check:
    """What a check is; :func:`check_attack` and :func:`compare_results` carry it out.

    Attributes:
        means: what it says about the number.
        limit: raised when more than this share of the samples looked at meet the condition; 0 means any sample.
    """

    name: str
    raised_when: str
    means: str
    remedy: str
    limit: float = 0.0


CHECKS = (
    Check(
        "zero_gradient",
        f"More than {ZERO_GRADIENT_LIMIT:.0%} of the gradient's entries, over all steps, were exactly zero.",
        "The attack was blind to those pixels. Rounded inputs, a tower under no_grad, a saturated softmax and half "
        "precision all do this.",
        "Replace the step that has no gradient by a differentiable one in the backward pass (BPDA), attack in float32, "
        "or attack a margin of the logits; add a black-box attack. A crop that never sees some pixels is harmless.",
    ),
    Check(
        "non_finite",
        "The loss or its gradient was NaN or infinite at some step.",
        "The attack of this sample broke off; its score is no evidence.",
        "Find the first operation that overflows, attack in float32, and evaluate the sample again.",
    ),
    Check(
        "no_descent",
        "The best loss of the attack is that of its start.",
        "The attack found no direction at all.",
        "Look at the other findings first. Start at a random point, or at the best image of another attack. If the "
        "attack started at the best image of an earlier round, that one may simply have been at a maximum.",
    ),
    Check(
        "non_monotone",
        f"In the second half of the attack, more than {FALLS_LIMIT:.0%} of the steps of at most a sixteenth of epsilon "
        f"lowered the loss, by more than {FALLS_DEPTH_LIMIT:.0%} of its total rise per small step.",
        "The gradient does not tell where the loss rises, even nearby: the loss is random or jagged.",
        "Average the gradient over several forward passes (EOT) or over points nearby; use a smooth stand-in.",
        limit=0.1,
    ),
    Check(
        "still_rising",
        f"More than {LAST_RISE_LIMIT:.0%} of the total rise of the loss came in the last tenth of the steps.",
        "The attack was stopped before it was done; the true worst case is worse.",
        "Take more steps until the loss stays flat at the end.",
        limit=0.1,
    ),
    Check(
        "stochastic",
        f"{LOOKS} forward passes on the same pixels, clean or attacked, gave different losses.",
        "The model draws random numbers. One gradient is a guess, and the best loss may be a lucky draw.",
        "Switch dropout off (eval mode). If the randomness is the defence, attack its average (EOT) and score it over "
        "several draws.",
    ),
    Check(
        "noise_wins",
        "The best of some random corners of the budget has a higher loss than the attack reached.",
        "The gradient leads to worse places than chance: it is masked, or the attack is wrong.",
        "Look at the other findings first. Check the sign of the loss and the step size; add a black-box attack.",
    ),
    Check(
        "black_box_wins",
        "An attack that never saw this model's gradient reached a higher loss within the budget.",
        "The model hides its gradient; the gradient attack overstates its robustness.",
        "Report the worst case over both. Give the black-box attack more queries, or start from its image; build an "
        "attack for this defence.",
    ),
    Check(
        "larger_budget_weaker",
        f"With a larger epsilon, the attack's loss is lower by more than {WEAKER_LIMIT:.0%} of the smaller one's rise.",
        "The larger budget holds every image of the smaller one, so the attack missed what it had found before.",
        "Start the larger budget at the smaller one's best images; take more steps or restarts.",
        limit=0.1,
    ),
    Check(
        "more_steps_weaker",
        f"With more steps, the attack's loss is lower by more than {WEAKER_LIMIT:.0%} of the smaller one's rise.",
        "Where the attack ends is a matter of luck: the loss is jagged or random.",
        "Use restarts and keep the worst case; look for stochastic and non_monotone.",
        limit=0.1,
    ),
    Check(
        "clean_mismatch",
        "The clean images have another loss than was given for them, or an attack with epsilon 0 changed the image or "
        "its loss.",
        "Attack and clean evaluation do not see the same function: another preprocessing, precision or text.",
        "Compare their inputs. Until they agree, clean and robust scores must not be compared.",
    ),
    Check(
        "gradient_does_not_predict",
        f"A step of {PROBE:g}/255 (at most a quarter of epsilon; L2: just that) along the clean gradient, and one of a "
        f"quarter of it, both changed the loss by less than {PREDICTION_LEAST:g} of what the gradient predicts.",
        "The gradient describes the loss only in a tiny neighbourhood, or is not its gradient: it is masked, shattered "
        "or replaced.",
        "Look for layers with their own backward pass and for jagged ones. Replace them by smooth stand-ins, or use "
        "black-box and transfer attacks.",
        limit=0.1,
    ),
)
"""All checks, in the order in which they are reported."""
