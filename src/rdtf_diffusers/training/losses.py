"""The masked noise-prediction loss: padding frames do not count, visible condition frames do.

Source: RDTF (arXiv 2503.17735), section on the dual mask.
"""

import torch


def dual_mask_loss(
    prediction: torch.Tensor, target: torch.Tensor, frame_mask: torch.Tensor, reduction: str = "all"
) -> torch.Tensor:
    """Mean squared error over the real frames of a batch of clips, in float32.

    RDTF (arXiv 2503.17735), section on the dual mask.

    Args:
        prediction: (B, C, F, H, W) output of the network.
        target: (B, C, F, H, W) what it should have been (noise, or velocity).
        frame_mask: (B, F) bool, the frames that are real; at least one in the batch.
        reduction: "all" divides by all elements, padding included, so that a clip with N real frames weighs N/F (the
            paper's form); "valid" divides by the unmasked elements, so that short clips weigh no less per frame.

    Returns:
        Scalar float32.

    Raises:
        ValueError: `reduction` is neither "all" nor "valid".
    """
    padding = ~frame_mask[:, None, :, None, None]  # (B, 1, F, 1, 1)
    squared_error = (prediction.float() - target.float()).masked_fill(padding, 0.0).square()
    if reduction == "all":
        return squared_error.mean()
    if reduction == "valid":
        return squared_error.sum() / (~padding).expand_as(squared_error).sum()
    raise ValueError(f'`reduction` must be "all" or "valid", got {reduction!r}')
