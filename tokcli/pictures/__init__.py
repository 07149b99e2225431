"""Pictures: contact sheets, patches that share a code, plots, pages; pure drawing, from tensors to PNG, CSV and HTML."""

from tokcli.pictures.canvas import save_png, to_uint8, upscale
from tokcli.pictures.codebook import Codebook, see, write_pictures
from tokcli.pictures.codes import code_sheet, ranking_sheet, write_code_sheets
from tokcli.pictures.embedding import Embedding, Panel, draw_embeddings, embed, embedding_numbers
from tokcli.pictures.page import write_page
from tokcli.pictures.patches import choose_patches, crop_patches
from tokcli.pictures.plots import draw_usage, usage_numbers, write_csv
from tokcli.pictures.report import Picture, write_report
from tokcli.pictures.sheets import class_sheet, comparison_sheet, contact_sheet

__all__ = [
    "Codebook",
    "Embedding",
    "Panel",
    "Picture",
    "choose_patches",
    "class_sheet",
    "code_sheet",
    "comparison_sheet",
    "contact_sheet",
    "crop_patches",
    "draw_embeddings",
    "draw_usage",
    "embed",
    "embedding_numbers",
    "ranking_sheet",
    "save_png",
    "see",
    "to_uint8",
    "upscale",
    "usage_numbers",
    "write_code_sheets",
    "write_csv",
    "write_page",
    "write_pictures",
    "write_report",
]
