"""A step of TRL's own trainer with a suite as its rewards, on a random captioner of the drawn world."""

import io
import math

from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

from capreward import Coverage, LengthMask, Precision, RewardSuite, shapes
from capreward.adapters.trl import grpo_kwargs, reward_funcs

judge = shapes.ShapesJudge()
suite = RewardSuite(
    {"precision": Precision(judge), "coverage": Coverage(judge)}, gates=[LengthMask("coverage", high=2.0)]
)
items = shapes.items(4)
rows = [
    {
        "prompt": [{"role": "user", "content": shapes.PROMPT}],
        "image": Image.open(io.BytesIO(item.image)),
        "scene": item.image,
        "captions": list(item.references),
        "units": list(item.reference_units),
        "name": item.id,
    }
    for item in items
]
columns = {"id": "name", "image": "scene", "references": "captions", "reference_units": "units"}
model, processor = shapes.captioner()
for exact in (False, True):
    trainer = GRPOTrainer(
        model,
        reward_funcs(suite, columns=columns, exact=exact),
        GRPOConfig(
            "trained",
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **grpo_kwargs(suite, exact=exact),
        ),
        Dataset.from_list(rows),
        processing_class=processor,
    )
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])
