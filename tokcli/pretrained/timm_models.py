"""Networks of the library timm by name, and three with names of their own: `vits14`, `dino`, `mae`."""

import difflib
import sys
from typing import Any

from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.pretrained.network import Network, library
from tokcli.pretrained.published_weights import Source

FD_DINOV2 = 224  # pixels, where timm's own size is 518: what FD-DINOv2 is published at (Stein et al. 2023, arXiv 2306.04675, dgm-eval)


class Timm(Network):
    """`timm:NAME`: layers are "blocks.N" of a plain vision transformer, or "stages.N" of any other network.

    Plain vision transformers take any image size that their patch divides (positions are interpolated) and
    have a final norm; class and register tokens are dropped. Others give what timm calls their intermediates,
    unnormalised. `pooled` is what the classifier would see.

    Raises:
        TokError: timm has no such model, or it gives no feature maps.
    """

    model = ""  # timm's name of it, where ours is another
    body: Any

    def __init__(self, name: str) -> None:
        model = self.timm_name(name)
        body: Any
        try:  # transformers with absolute positions take any size only if told so; others know no such option
            body = library("timm").create_model(model, num_classes=0, dynamic_img_size=True)
        except TypeError:
            body = library("timm").create_model(model, num_classes=0)
        if not hasattr(body, "forward_intermediates"):
            raise TokError(name, "gives no feature maps", next="Choose a model that has forward_intermediates")
        super().__init__(name, body, mean=body.pretrained_cfg["mean"], std=body.pretrained_cfg["std"])
        if not self.model:
            self.image_size = self.extractor_size = body.pretrained_cfg["input_size"][-1]
        if not self.model and "_dinov2" in model:
            self.extractor_size = FD_DINOV2
        count = len(body.feature_info)
        plain = hasattr(body, "patch_embed") and len(getattr(body, "blocks", ())) == count
        if plain:
            # models that normalise after pooling leave an Identity here
            self.has_final_norm = not isinstance(getattr(body, "norm", nn.Identity()), nn.Identity)
            self.multiple = int(body.patch_embed.patch_size[0])
        self.block_name = "blocks.{}" if plain else "stages.{}"
        self.layer_names = tuple(self.block_name.format(i) for i in range(count))
        self.default_layers = self.default_layers or self.layer_names[-1:]
        self.perceptual_layers = self.layer_names[1::2] if plain else self.layer_names

    @classmethod
    def timm_name(cls, name: str) -> str:
        """Timm's name of the model, checked."""
        timm = library("timm")
        model = cls.model or name.removeprefix("timm:")
        if not timm.is_model(model):
            close = difflib.get_close_matches(model, timm.list_models(), n=1)
            advice = f"Did you mean 'timm:{close[0]}'?" if close else "Call timm.list_models() to list them"
            raise TokError(name, "timm has no such model", next=advice)
        return model

    @classmethod
    def source(cls, name: str) -> Source:
        """The hub repository that timm names."""
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(cls.timm_name(name))
        if config is not None and config.hf_hub_id:
            return Source(hub=(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
        if config is not None and config.url:
            return Source(url=str(config.url))
        return Source(command="timm publishes none for this model")

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Original releases to timm's layout by its own filter; no classifiers, no pretraining heads."""
        own = self.body.state_dict()
        if state.keys() == own.keys():
            return state
        for prefix in ("module.", "backbone."):  # DINO's full checkpoint has both
            state = {k.removeprefix(prefix): t for k, t in state.items()}
        filtered = getattr(sys.modules[type(self.body).__module__], "checkpoint_filter_fn", None)
        state = filtered(state, self.body) if filtered else state
        classifier = self.body.pretrained_cfg.get("classifier") or "head"
        names = (classifier,) if isinstance(classifier, str) else classifier
        heads = (*(f"{n}." for n in names), "head.", "decoder_")  # the last is MAE's
        return {k: t for k, t in state.items() if k in own or not k.startswith(heads)}

    def _maps(self, x: Tensor, names: list[str], norm: bool) -> dict[str, Tensor]:
        numbers = sorted({self.layer_names.index(name) for name in names})
        try:
            maps = self.body.forward_intermediates(
                x,
                indices=numbers,
                norm=norm and self.has_final_norm,
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        except AssertionError as error:  # how timm refuses image sizes
            raise TokError(
                self.name, "cannot take these images", why=str(error), next="Choose another image_size for it"
            ) from None
        return {self.layer_names[n]: m for n, m in zip(numbers, maps, strict=True)}

    def _pooled(self, x: Tensor) -> Tensor:
        return self.body.forward_head(self.body.forward_features(x), pre_logits=True)


class DINO(Timm):
    """DINO ViT-B/16 (arXiv 2104.14294); files of timm or of the original release."""

    model = "vit_base_patch16_224.dino"


class MAE(Timm):
    """MAE ViT-B/16 (arXiv 2111.06377), encoder, no masking; files of timm or of the original release."""

    model = "vit_base_patch16_224.mae"


class ViTS14(Timm):
    """A ViT-S/14 of DINOv2's architecture, fine-tuned for saliency by its publisher: not the released DINOv2.

    Its last block serves that task (5-NN accuracy .67 after block 11, .79 after block 9), so that block 9 is
    the default, also of `pooled`, which averages its patch tokens.
    """

    model = "vit_small_patch14_dinov2"
    image_size = extractor_size = 112
    default_layers = ("blocks.9",)

    @classmethod
    def source(cls, name: str) -> Source:
        """The cache, filled by the script; never the hub, which has other weights."""
        return Source(command="python scripts/fetch_embedded.py vits14")

    def _pooled(self, x: Tensor) -> Tensor:
        return self._maps(x, ["blocks.9"], True)["blocks.9"].mean((2, 3))
