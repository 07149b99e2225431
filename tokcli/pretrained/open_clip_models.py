"""Image towers of CLIP models by open_clip name, `clip` is OpenAI's ViT-B/16 (arXiv 2103.00020)."""

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from tokcli.errors import TokError
from tokcli.pretrained.network import Network, library, resampled
from tokcli.pretrained.published_weights import Source
from tokcli.registry import nearest

BATCH_FIRST = "open_clip_torch>=2.31"  # what setup.cfg asks for; transformers do since 2.26.1


class OpenCLIP(Network):
    """`open_clip:NAME/PRETRAINED`: the image tower, with the activation, mean and std that PRETRAINED was
    trained with.

    Layers are "blocks.N". With `norm`, patch tokens pass through the final norm and the projection that CLIP
    applies to its class token, unless `projects` is off. Towers that are timm models (SigLIP) have a norm and no such
    projection, and take one image size. `pooled` is the image embedding, not normalised.

    Raises:
        TokError: open_clip has no such model or pretraining, the tower is no transformer, or open_clip is too old.
    """

    model = ""  # NAME/PRETRAINED, where ours is another
    block_name = "blocks.{}"
    body: Any

    def __init__(self, name: str) -> None:
        # not create_model: it would build the text tower too, half as large again
        config, pretrained = self.configs(name)
        vision = dict(config["vision_cfg"], timm_model_pretrained=False)
        # OpenAI's weights want QuickGELU; the plain NAME would build GELU, and not even warn
        quick_gelu = bool(config.get("quick_gelu") or pretrained.get("quick_gelu"))
        body = library("open_clip.model")._build_vision_tower(config["embed_dim"], vision, quick_gelu=quick_gelu)
        super().__init__(name, body, mean=pretrained["mean"], std=pretrained["std"])
        self.own = isinstance(
            body, library("open_clip.transformer").VisionTransformer
        )  # open_clip's class, not one of timm's
        if self.own:
            _check_layout(name, body)
            count, self.multiple = len(body.transformer.resblocks), int(body.patch_size[0])
            self.has_final_norm = body.attn_pool is None  # attention pooling comes before the norm
            self.has_projection = self.has_final_norm and body.proj is not None
        elif hasattr(body, "trunk") and hasattr(body.trunk, "blocks") and hasattr(body.trunk, "patch_embed"):
            count, self.has_final_norm = len(body.trunk.blocks), True
        else:
            raise TokError(name, "this image tower has no patch tokens", next="Choose a ViT")
        size = body.image_size
        self.image_size = self.extractor_size = int(size if isinstance(size, int) else size[0])
        self.layer_names = tuple(f"blocks.{i}" for i in range(count))
        self.default_layers, self.perceptual_layers = self.layer_names[-1:], self.layer_names[1::2]

    @classmethod
    def configs(cls, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Open_clip's descriptions of the model and of its weights."""
        open_clip = library("open_clip")
        model, slash, tag = (cls.model or name.removeprefix("open_clip:")).rpartition("/")
        if not slash:
            raise TokError(
                name, "names no weights", next="Write open_clip:NAME/PRETRAINED, as in ViT-B-16/laion2b_s34b_b88k"
            )
        config = open_clip.get_model_config(model)
        if config is None:
            raise TokError(name, f"open_clip has no model '{model}'", next=nearest(model, open_clip.list_models()))
        pretrained = open_clip.get_pretrained_cfg(model, tag)
        if not pretrained:
            known = open_clip.list_pretrained_tags_by_model(model)
            raise TokError(name, f"open_clip has no weights '{tag}' of {model}", next=nearest(tag, known))
        return config, pretrained

    @classmethod
    def source(cls, name: str) -> Source:
        """The hub repository that open_clip names."""
        _, pretrained = cls.configs(name)
        repository, _, file = str(pretrained.get("hf_hub") or "").rpartition("/")
        if repository:
            return Source(hub=(repository, file or "open_clip_model.safetensors"))
        return Source(url=pretrained["url"])

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The image tower's part of a whole model's weights."""
        state = {k.removeprefix("module."): t for k, t in state.items()}
        tower = {k.removeprefix("visual."): t for k, t in state.items() if k.startswith("visual.")}
        return tower or state

    def _embedded(self, x: Tensor) -> Tensor:
        """What enters open_clip's transformer: class token and patches with positions, normalised."""
        visual, patches = self.body, self.body.conv1(x)
        positions = resampled(visual.positional_embedding[None], visual.grid_size, tuple(patches.shape[2:]))
        first = visual.class_embedding.expand(len(x), 1, -1)
        return visual.ln_pre(torch.cat([first, patches.flatten(2).transpose(1, 2)], 1) + positions)

    def _maps(self, x: Tensor, names: list[str], norm: bool) -> dict[str, Tensor]:
        numbers = sorted({self.layer_names.index(name) for name in names})
        norm = norm and self.has_final_norm
        if not self.own:
            return dict(zip((self.layer_names[n] for n in numbers), self._trunk(x, numbers, norm), strict=True))
        grid = (x.shape[2] // self.multiple, x.shape[3] // self.multiple)
        tokens, found = self._embedded(x), {}
        for n, block in enumerate(self.body.transformer.resblocks[: numbers[-1] + 1]):
            tokens = block(tokens)
            if n in numbers:
                patches = tokens[:, 1:]  # the class token is the first one
                if norm:
                    patches = self.body.ln_post(patches)
                    patches = patches @ self.body.proj if self.has_projection and self.projects else patches
                found[self.layer_names[n]] = patches.transpose(1, 2).unflatten(2, grid)
        return found

    def _trunk(self, x: Tensor, numbers: list[int], norm: bool) -> list[Tensor]:
        try:
            return self.body.trunk.forward_intermediates(
                x, indices=numbers, norm=norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
            )
        except AssertionError as error:  # how timm refuses image sizes
            raise TokError(
                self.name, "cannot take these images", why=str(error), next="Choose another image_size for it"
            ) from None

    def _pooled(self, x: Tensor) -> Tensor:
        embedding = self.body(x)
        return embedding[0] if isinstance(embedding, tuple) else embedding


def _check_layout(name: str, body: Any) -> None:
    """Refuse transformers whose blocks take (n, b, d): given (b, n, d), as `_maps` does, they attend across the batch."""
    if not getattr(body.transformer, "batch_first", False):
        got = f"open_clip_torch {version('open_clip_torch')}"
        raise TokError(
            name, "this open_clip mixes the images of a batch", got=got, next=f"Run pip install '{BATCH_FIRST}'"
        )


class CLIP(OpenCLIP):
    """OpenAI's CLIP ViT-B/16: QuickGELU, OpenAI's mean and std, 512-wide projected patch tokens."""

    model = "ViT-B-16-quickgelu/openai"
