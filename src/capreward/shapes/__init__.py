"""A small drawn world with exact ground truth: scenes, their English, a judge that knows them, and a tiny captioner."""

from capreward.shapes.judge import ShapesJudge
from capreward.shapes.language import Claim, Kind, caption, claims, item, items
from capreward.shapes.model import PROMPT, captioner, faultless, imperfect, warm_up
from capreward.shapes.world import Scene, Thing, draw, scene, scene_of

__all__ = [
    "PROMPT",
    "Claim",
    "Kind",
    "Scene",
    "ShapesJudge",
    "Thing",
    "caption",
    "captioner",
    "claims",
    "draw",
    "faultless",
    "imperfect",
    "item",
    "items",
    "scene",
    "scene_of",
    "warm_up",
]
