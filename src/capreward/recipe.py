"""From the settings of a run to its trainer: policy, reward and items. The name "shapes" stands for those of the drawn world."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capreward.data import read_items
from capreward.errors import InputError, missing_extra
from capreward.hub import find_dataset
from capreward.presets import PRESETS
from capreward.records import Item
from capreward.suite import RewardSuite

if TYPE_CHECKING:
    from capreward.train.config import TrainConfig
    from capreward.train.loop import Trainer
    from capreward.train.policy import Policy

SHAPES = "shapes"
SCENES = 1_000
"""Items of the drawn world."""
WARM_UP = 640
"""Steps of supervised training before the drawn world's captioner is rewarded: enough to see with, on a bad style."""


def find(recipe: str | Path) -> Path:
    """The file, or, where there is none, the one of that name that comes with the package.

    Raises:
        InputError: neither.
    """
    recipe = Path(recipe)
    package = Path(__file__).parent
    name = f"{recipe.name.removesuffix('.yaml')}.yaml"
    shipped = [package / "recipes" / name, package.parents[1] / "recipes" / name]  # installed; in a checkout
    meant = shipped if str(recipe.parent) in (".", "recipes") else []  # a mistyped folder must not start another run
    found = next((path for path in (recipe, *meant) if path.is_file()), None)
    if found is None:
        names = sorted({path.stem for folder in shipped for path in folder.parent.glob("*.yaml")})
        raise InputError(f"{recipe}: no such file; expected one, or a recipe of the package: {', '.join(names)}")
    return found


def make_trainer(config: TrainConfig) -> Trainer:
    """The trainer of a run, with its policy loaded.

    Raises:
        InputError: a model, data or a judge that cannot be used, weights of unknown components, fewer items than are held out.
        MissingExtraError: what the run needs is not installed.
    """
    try:
        from capreward.train.loop import Trainer
    except ImportError as error:
        raise missing_extra("Training", "train", error) from error
    items = make_items(config)
    suite = make_suite(config)
    trained = items[: len(items) - config.held_out]
    return Trainer(config, make_policy(config), suite, trained, held_out=items[len(trained) :])


def make_items(config: TrainConfig) -> list[Item]:
    """The items of `config.data`."""
    if config.data == SHAPES:
        from capreward import shapes

        items = shapes.items(SCENES, seed=config.seed)
    else:
        items = read_items(_hub_dataset(config.data) if config.data.startswith("hf:") else config.data)
    if len(items) <= config.held_out:
        raise InputError(
            f"data: {config.data} holds {len(items)} items, expected more than the {config.held_out} held out"
        )
    return items


def make_suite(config: TrainConfig) -> RewardSuite:
    """The suite of `config.suite`, with its judge, weights and limit."""
    options = dict(config.judge)
    name = options.pop("name")
    judge: Any
    if name == SHAPES:
        from capreward import shapes

        if options:
            raise InputError(f"judge {name!r}: got {' and '.join(options)}, which this kind of judge does not have")
        judge = shapes.ShapesJudge()
    else:
        from capreward.judges.named import make_judge

        known = list(inspect.signature(make_judge).parameters)
        if unknown := sorted(options.keys() - known):
            raise InputError(f"judge: got {', '.join(unknown)}, expected some of {', '.join(known)}")
        judge = make_judge(name, **options)
    return PRESETS[config.suite](judge, weights=config.weights, max_missing=config.max_missing)


def make_policy(config: TrainConfig) -> Policy:
    """The policy of `config.model`; that of the drawn world is warmed up first and kept, and has a prompt of its own."""
    import torch

    from capreward.train.policy import Policy

    source, instruction = config.model, config.prompt
    if source == SHAPES:
        from capreward.shapes.model import PROMPT

        instruction, source = PROMPT, str(warmed_up(config))
    torch.manual_seed(config.seed)  # of the adapters' first weights
    return Policy.load(source, instruction=instruction, lora_rank=config.lora_rank, reference=config.kl > 0)


def warmed_up(config: TrainConfig) -> Path:
    """The folder of the drawn world's captioner, trained on imperfect captions: made once, however often a run is resumed.

    The first process of a machine makes it while the others wait. From here on torch uses one thread.
    """
    import torch
    from accelerate import PartialState

    from capreward.shapes.model import captioner, warm_up

    torch.set_num_threads(1)  # fastest for a model this small, and the same bits however many cores there are
    folder = config.out / f"start-{config.seed}"
    with PartialState(cpu=not torch.cuda.is_available()).local_main_process_first():
        if not folder.is_dir():
            model, processor = captioner(seed=config.seed)
            warm_up(model, processor, steps=WARM_UP, seed=config.seed)
            partial = folder.with_name(f".{folder.name}")
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
            partial.rename(folder)
    return folder


def _hub_dataset(source: str) -> Any:
    """The dataset of ``hf:NAME`` or ``hf:NAME:SPLIT``, its images left encoded."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("A dataset of the hub", "data", error) from error
    _, name, *split = source.split(":", 2)
    find_dataset("train", name)
    try:
        loaded = datasets.load_dataset(name, split=split[0] if split else "train")
    except (OSError, ValueError) as error:  # no such dataset, no network, no such split
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"data: {source} cannot be loaded: {reason}") from error
    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(column, datasets.Image(decode=False))
    return loaded
