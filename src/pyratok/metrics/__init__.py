"""Numbers that judge a result: tensors in, tensors or floats out."""

from pyratok.metrics.reconstruction import psnr, psnr_per_frame, ssim, ssim_per_frame

__all__ = ["psnr", "psnr_per_frame", "ssim", "ssim_per_frame"]
