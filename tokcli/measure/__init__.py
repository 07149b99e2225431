"""Numbers and pictures that training and evaluation share."""
