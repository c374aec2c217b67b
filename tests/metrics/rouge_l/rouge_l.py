"""ROUGE-L as a metric script of `evaluate`, for tests: works offline, and takes the best of several references."""

import datasets
import evaluate
from rouge_score import rouge_scorer


class RougeL(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="F1 of the longest common subsequence, averaged over predictions",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, use_stemmer=False):
        scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=use_stemmer)
        best = [
            scorer.score_multi(wanted, said)["rougeL"].fmeasure
            for wanted, said in zip(references, predictions, strict=True)
        ]
        return {"rougeL": sum(best) / len(best)}
