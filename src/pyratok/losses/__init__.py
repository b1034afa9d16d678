"""Training losses: tensors in, one scalar with a gradient out."""

from pyratok.losses.perceptual import PerceptualLoss
from pyratok.losses.reconstruction import charbonnier_loss, l1_loss, log_mse_loss, ssim_loss

__all__ = ["PerceptualLoss", "charbonnier_loss", "l1_loss", "log_mse_loss", "ssim_loss"]
