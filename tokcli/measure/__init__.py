"""Measurements and previews that training and evaluation share."""
