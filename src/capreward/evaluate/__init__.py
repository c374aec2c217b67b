"""Evaluating captioners afterwards: any captions, ours or not. docs/evaluation.md says what each metric is."""

from capreward.evaluate.arena import Battle, Outcome, Strengths, auto_scores, bradley_terry, fight
from capreward.evaluate.bcapscore import b_capscore, b_capscore_of_set
from capreward.evaluate.dcscore import Counts, dc_score, dc_score_of_set
from capreward.evaluate.evaluation import METRICS, Evaluation, evaluate_captions
from capreward.evaluate.metrics import metric_script
from capreward.evaluate.qa import WithinBudget, caption_qa, cut, prism
from capreward.evaluate.statistics import distinct, has_meta_commentary, length, meta_commentary, repetition

__all__ = [
    "METRICS",
    "Battle",
    "Counts",
    "Evaluation",
    "Outcome",
    "Strengths",
    "WithinBudget",
    "auto_scores",
    "b_capscore",
    "b_capscore_of_set",
    "bradley_terry",
    "caption_qa",
    "cut",
    "dc_score",
    "dc_score_of_set",
    "distinct",
    "evaluate_captions",
    "fight",
    "has_meta_commentary",
    "length",
    "meta_commentary",
    "metric_script",
    "prism",
    "repetition",
]
