"""Pictures: sheets, plots and the theme they share; pure drawing, from tensors to PNG and CSV."""

from tokcli.pictures.canvas import class_sheet, comparison_sheet, contact_sheet, save_png, to_uint8, upscale
from tokcli.pictures.plots import draw_usage, usage_numbers, write_csv

__all__ = [
    "class_sheet",
    "comparison_sheet",
    "contact_sheet",
    "draw_usage",
    "save_png",
    "to_uint8",
    "upscale",
    "usage_numbers",
    "write_csv",
]
