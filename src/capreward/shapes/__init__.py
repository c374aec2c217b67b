"""A small drawn world with exact ground truth: scenes, their English, a judge that knows them, and a tiny captioner."""

from capreward.shapes.judge import ShapesJudge
from capreward.shapes.language import Claim, Kind, caption, claims, item, items
from capreward.shapes.world import Scene, Thing, draw, scene, scene_of

__all__ = [
    "Claim",
    "Kind",
    "Scene",
    "ShapesJudge",
    "Thing",
    "caption",
    "claims",
    "draw",
    "item",
    "items",
    "scene",
    "scene_of",
]
