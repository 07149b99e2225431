"""Tokenizers that learn to reconstruct: a teacher's features, pixels, or both, through the same codes; and what decoders minimise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from tokcli import build
from tokcli.data.batches import Batch
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import Transform, filled
from tokcli.errors import TokError
from tokcli.losses import ALIGNMENTS, cosine
from tokcli.losses.features import Alignment
from tokcli.measure.decoding import Judges, measure_decoder
from tokcli.measure.previews import decoder_preview, tokenizer_preview
from tokcli.measure.tokenizing import measure_tokenizer
from tokcli.methods.method import Method, TeacherFeatures, TokenizerRecipe, teacher_facts
from tokcli.models import ConvDecoder, MaskGITDecoder, Tokenizer, ViTDecoder
from tokcli.models.encoders import PretrainedEncoder
from tokcli.pretrained.teacher import build_teacher, teacher_weights
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import Component, Perturb
from tokcli.training.adversary import Adversary
from tokcli.training.parallel import built_on


class ReconstructingRecipe(TokenizerRecipe):
    """What recipes share whose decoders are trained with the tokenizer.

    Args:
        perturb: see `perturb`; null: tokens stay as they are.
    """

    perturb: Perturb | None = None
    reconstructed: ClassVar[Any] = (1.0, 0.0)  # weights of a teacher's features and of pixels; 0: none of them


class PixelLoss:
    """Terms between decoded and real images; no module, so that frozen networks are no part of the trained state.

    Args:
        losses: (name, weight, frozen module) of each reconstruction term.
        adversary: the discriminator's side; None: without a GAN.
    """

    def __init__(self, losses: list[tuple[str, float, nn.Module]], adversary: Adversary | None) -> None:
        self.losses, self.adversary = tuple(losses), adversary

    def __call__(
        self, decoded: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"], last_layer: Tensor
    ) -> dict[str, Tensor]:
        """Terms by name, each with its weight applied; "decoded" are the images, for the discriminator.

        Args:
            decoded: in about [0, 1], with a gradient.
            images: in [0, 1].
            last_layer: the weight of the decoder's last layer.
        """
        terms = {name: weight * loss(decoded, images) for name, weight, loss in self.losses}
        total = torch.stack(list(terms.values())).sum()
        if self.adversary is not None:
            told = self.adversary.term(decoded, total, last_layer)
            terms |= told
            total = total + told["gan"] if told else total
        return {"loss": total, **terms, "decoded": decoded.detach()}


class Reconstruction(nn.Module):
    """What `tok train-decoder` minimises: a decoder of frozen codes under a `PixelLoss`."""

    decoder: ConvDecoder | MaskGITDecoder | ViTDecoder

    def __init__(self, decoder: ConvDecoder | MaskGITDecoder | ViTDecoder, loss: PixelLoss) -> None:
        super().__init__()
        self.decoder, self.loss = decoder, loss

    def forward(self, codes: Float[Tensor, "b n d"], images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """Terms of a batch; images in [0, 1]."""
        return self.loss(self.decoder(codes), images, self.decoder.last_layer)


class TokenizerLoss(nn.Module):
    """What the methods minimise whose decoders are trained with the tokenizer: its reconstructions, and the quantizer's own terms.

    Args:
        tokenizer: with a feature decoder, a pixel decoder, or both.
        pixels: distance of images; needed where there is a pixel decoder.
        alignment: distance of features.
        feature_weight, pixel_weight: of the two distances.
        shared: the teacher is the tokenizer's frozen encoder, and is run once for both; may be changed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pixels: PixelLoss | None = None,
        alignment: Alignment = cosine,
        *,
        feature_weight: float = 1.0,
        pixel_weight: float = 1.0,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer, self.pixels, self.alignment, self.shared = tokenizer, pixels, alignment, shared
        self.feature_weight, self.pixel_weight = feature_weight, pixel_weight

    def forward(
        self,
        images: Float[Tensor, "b 3 s s"],
        targets: Float[Tensor, "b n d"] | None = None,
        counted: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Tensor]:
        """Terms of a batch: images in [0, 1], the teacher's features, the patches that the codebook learns from."""
        quantized = self.tokenizer(images, counted, targets if self.shared else None)
        terms: dict[str, Tensor] = {}
        total: list[Tensor] = []
        if self.tokenizer.feature_decoder is not None:
            assert targets is not None
            predicted = self.tokenizer.feature_decoder(quantized.z_q)
            terms["feature_loss"] = self.alignment(predicted.float(), targets)
            total.append(self.feature_weight * terms["feature_loss"])
        if (decoder := self.tokenizer.pixel_decoder) is not None:
            assert self.pixels is not None
            found = self.pixels(decoder(quantized.z_q), images, decoder.last_layer)
            total.append(self.pixel_weight * found.pop("loss"))
            terms |= found
        return {"loss": torch.stack([*total, *quantized.losses.values()]).sum(), **terms, **quantized.losses}


class Reconstructing(Method):
    """Encoder, codebook and decoders, trained together; a subclass says by which recipe. See `Method`."""

    recipe: Any
    objective: TokenizerLoss

    def __init__(self, recipe: Any, weights: Mapping[str, Path] | None, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        features, pixels = recipe.reconstructed
        self.teacher = None
        if features:
            file = teacher_weights(weights, recipe.teacher.name)
            self.teacher = build_teacher(recipe.teacher.name, recipe.teacher.keys, file).to(device)
        width = self.teacher.feature_dim if self.teacher else None
        self.tokenizer = build.build_tokenizer(resolved(recipe), width, weights)
        self.tokenizer.to(built_on(recipe.train, device))
        if not self._learns_from_blank and getattr(self.tokenizer.quantizer, "learning", "") == "gradient":
            raise TokError(
                "learn_from_blank",
                "false needs a codebook of running means",
                got="quantizer.learning: gradient",
                next="Set learn_from_blank to true, or quantizer.learning to ema",
            )
        if self.teacher:
            grid = self.tokenizer.grid(recipe.data.size)
            self.targets = TeacherFeatures(self.teacher, grid, recipe.train.precision, device)
        self.losses: list[tuple[str, float, nn.Module]] = []
        if pixels:
            self.losses = build.build_losses(recipe.loss, weights, device)
            self.judges = Judges.of(recipe.train.eval_extractors, weights, device)
            if recipe.gan:
                self.adversary = Adversary(recipe.gan, recipe.train, device, recipe.seed, weights)
        alignment, encoder = getattr(recipe, "alignment", Component(name="cosine")), self.tokenizer.encoder
        self.objective = TokenizerLoss(
            self.tokenizer,
            PixelLoss(self.losses, self.adversary),
            build.component("alignment", ALIGNMENTS, alignment.model_dump()),
            feature_weight=features,
            pixel_weight=pixels,
            shared=self.teacher is not None
            and isinstance(encoder, PretrainedEncoder)
            and encoder.is_frozen_copy_of(self.teacher),
        )

    @property
    def _learns_from_blank(self) -> bool:
        return getattr(self.recipe, "learn_from_blank", True)

    def begin(self, source: ImageSource, transform: Transform) -> None:
        """See `Method`. An encoder that has got other weights than the teacher's, from `--init`, is run by itself."""
        super().begin(source, transform)
        if self.objective.shared:
            encoder = self.tokenizer.encoder
            assert isinstance(encoder, PretrainedEncoder) and self.teacher is not None
            self.objective.shared = encoder.has_weights_of(self.teacher)

    def inputs(self, batch: Batch, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """Images, the teacher's features of them where they are learned, and the patches that the codebook learns from."""
        counted = self.counted(batch.images)
        targets = self.targets(batch, images) if self.targets else images.new_empty(len(images), 0, 0)
        return [images, targets, *([] if counted is None else [counted])]

    def counted(self, images: UInt8[Tensor, "b 3 s s"]) -> Bool[Tensor, "b n"] | None:
        """The patches of more than one colour, where the recipe leaves out the others."""
        if self._learns_from_blank:
            return None
        return filled(images, self.tokenizer.grid(images.shape[-1])).to(self.device)

    def trial(self, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """The same for images of no data set."""
        return [images, *([self.targets.trial(images, self.recipe.data.cache_features)] if self.targets else [])]

    def measure(self, source: ImageSource, size: int) -> dict[str, float]:
        """Codebook use, feature loss, and how close reconstructions are."""
        found = measure_tokenizer(self.tokenizer, source, self.device, size=size, teacher=self.teacher)
        if (decoder := self.tokenizer.pixel_decoder) is not None:
            found |= measure_decoder(self.tokenizer, decoder, source, self.device, size=size, judges=self.judges)
        return found

    def preview(self, source: ImageSource, size: int, path: Path) -> None:
        """Images and their reconstructions; without a pixel decoder, the teacher's features and what the codes keep of them."""
        if (decoder := self.tokenizer.pixel_decoder) is not None:
            decoder_preview(self.tokenizer, decoder, source, self.device, size, path)
        else:
            assert self.teacher is not None
            tokenizer_preview(self.tokenizer, source, self.device, size, self.teacher, path)

    def facts(self) -> dict[str, Any]:
        """The teacher and the losses; whether the artifact holds a pixel decoder."""
        found: dict[str, Any] = {"has_decoder": self.tokenizer.pixel_decoder is not None}
        found["teacher"] = teacher_facts(self.teacher) if self.teacher else None
        if found["has_decoder"]:
            recipe = resolved(self.recipe)
            found |= {"losses": recipe["loss"], "gan": recipe["gan"]}
        return found

    def modules(self) -> dict[str, nn.Module | None]:
        """The tokenizer's parts, the discriminator, the teacher and the losses' networks."""
        teacher = {"teacher": self.teacher} if self.teacher else {}
        return super().modules() | teacher | {name: loss for name, _, loss in self.losses}
