"""The networks."""

from .unet_discrete_frame import UNetDiscreteFrameModel


__all__ = ["UNetDiscreteFrameModel"]
