"""Detecting: torchvision's detectors as networks; `fcfd.detection` is what users import."""
