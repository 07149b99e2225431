"""Devices and precision: the meta device, exact float32, tensor cores."""
