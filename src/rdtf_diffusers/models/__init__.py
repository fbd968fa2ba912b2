"""The networks."""

from .known_frame_refiner import KnownFrameRefiner
from .unet_discrete_frame import UNetDiscreteFrameModel


__all__ = ["KnownFrameRefiner", "UNetDiscreteFrameModel"]
