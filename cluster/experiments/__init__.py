"""Experiments in virtual time: LPUs beside GPUs."""
