"""The margin above which a model's decisions are nearly always right; an artifact's `Comparison.margin` (docs/design/agreement.md).

By the same margin, `agreement.unsure: Skip` leaves out items on which the original is unsure.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fettle.api.vocabulary import AgreementMode
from fettle.optimizer.measure.agreement import OutputProfile
from fettle.runtimes.base import Array
from fettle.store.comparison import Comparison, decisions, is_float, margins

WRONG_SHARE = 0.005  # of the decisions taken by the margin or a larger one; a model is sure where it is wrong as rarely
MOST_UNSURE = 0.5  # of all decisions: a model that is often wrong is still compared on the surer half of its decisions
LARGEST = 1e30  # a margin that a manifest can hold
PER_ITEM = 1000  # decisions kept of an item: a segmented image has a million


class Sureness:
    """The margins of one model's decisions, and whether each was right, for each output that is compared by TopOne."""

    def __init__(self, rules: Mapping[str, Comparison], profiles: Mapping[str, OutputProfile] | None = None) -> None:
        self._profiles = profiles or {}
        self._rules = {name: rule for name, rule in rules.items() if rule.mode == AgreementMode.TOP_ONE}
        self._margins: dict[str, list[Array]] = {name: [] for name in self._rules}
        self._right: dict[str, list[Array]] = {name: [] for name in self._rules}

    def add(self, answer: Mapping[str, Array], truth: Mapping[str, Array]) -> None:
        """Take the answer to one item into account; `truth` holds for each output the right decisions, flat.

        Decisions in an output without a truth are as often right as the model's own probabilities say. Scores that are no probabilities say
        nothing: then the surer half counts.
        """
        for name, rule in self._rules.items():
            if not is_float(answer[name]) or not answer[name].size:
                continue
            decided = decisions(answer[name], rule.axis, rule.threshold)
            if name not in truth:
                right = own_chances(answer[name], rule, self._profiles[name])
            elif decided.shape == truth[name].shape:
                right = decided == truth[name]
            else:
                continue  # an answer of another size has no decisions to pair
            some = slice(None, None, max(1, decided.size // PER_ITEM))
            decided_margins = margins(answer[name], rule.axis, rule.threshold)[some]
            # No margin where a score is NaN; beside a score that is masked, minus infinity, any other wins by more than enough.
            self._margins[name].append(np.nan_to_num(decided_margins, nan=0.0, posinf=LARGEST, neginf=0.0))
            self._right[name].append(right[some])

    def margins(self) -> dict[str, float]:
        """By output, the smallest margin from which on at most `WRONG_SHARE` of the decisions are wrong; 0 if all decisions may count."""
        return {
            name: sure_margin(np.concatenate(collected), np.concatenate(self._right[name]))
            for name, collected in self._margins.items()
            if collected
        }


def own_chances(answer: Array, rule: Comparison, profile: OutputProfile) -> Array:
    """How probable the model itself calls each of its decisions, flat; 0 where its scores are no probabilities."""
    scores = answer.astype(np.float64)
    if profile.softmax:
        chances = np.max(scores, axis=rule.axis)
    elif profile.classes == 1 and rule.threshold > 0:
        chances = np.maximum(scores, 1 - scores)
    else:
        chances = np.zeros(margins(answer, rule.axis, rule.threshold).shape)
    return np.asarray(np.clip(np.nan_to_num(np.asarray(chances).reshape(-1)), 0.0, 1.0))


def least_margin(tolerance: tuple[float, float], scale: float) -> float:
    """The margin of a tie that arithmetic decides: each of two scores may move by the tolerance (rtol and atol)."""
    rtol, atol = tolerance
    return 2 * (atol + rtol * scale)


def sure_margin(observed: Array, right: Array) -> float:
    """The smallest of the margins `observed` from which on at most `WRONG_SHARE` of the decisions are wrong.

    `right`: whether each decision is right, or with which probability.
    At most the margin that excludes `MOST_UNSURE` of them; 0 if at most `WRONG_SHARE` of all decisions are wrong.
    """
    order = np.argsort(-observed, kind="stable")
    counted = np.arange(1, len(observed) + 1)
    allowed = np.nonzero(np.cumsum(1 - right[order]) <= WRONG_SHARE * counted)[0]
    count = int(allowed[-1]) + 1 if len(allowed) else 0
    if count == len(observed):
        return 0.0
    return float(observed[order[max(count, int(len(observed) * (1 - MOST_UNSURE)), 1) - 1]])
