"""Models: timm backbones, denoising U-Nets, and files of weights."""
