"""Everything that touches a living model: where to look, how to look, what was seen."""

from .model import Edits, Model, Trace, Wants
from .pair import Frame, ModelPair
from .sites import EMBED, Site, every

__all__ = ["EMBED", "Edits", "Frame", "Model", "ModelPair", "Site", "Trace", "Wants", "every"]
