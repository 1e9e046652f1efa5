"""Measurements, and the catalogue of losses that tests, docs and measurements share."""
