"""Small models of transformers with random weights, as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from fettle.store.arrays import Array

ITEMS, WORDS = 24, 12
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {**SIZES, "vocab_size": 200, "max_position_embeddings": 40}


@dataclass(frozen=True)
class Example:
    """A class of models, its configuration, and items for it."""

    model: type[Any]
    config: Callable[[], Any]
    items: Callable[[np.random.Generator], Mapping[str, Array]]

    def saved(self, folder: Path, **options: Any) -> Any:
        """The model, written to `folder`."""
        torch.manual_seed(0)
        model = self.model(self.config()).eval()
        model.save_pretrained(folder, **options)
        return model


def text(random: np.random.Generator) -> Mapping[str, Array]:
    """Sequences, some of them padded."""
    lengths = random.integers(3, WORDS + 1, (ITEMS, 1))
    mask = (np.arange(WORDS) < lengths).astype(np.int64)
    return {"input_ids": random.integers(5, 200, (ITEMS, WORDS)) * mask, "attention_mask": mask}


def pictures(random: np.random.Generator) -> Mapping[str, Array]:
    return {"pixel_values": random.normal(size=(ITEMS, 3, 32, 32)).astype(np.float32)}


def sound(random: np.random.Generator) -> Mapping[str, Array]:
    return {"input_values": random.normal(size=(ITEMS, 4000)).astype(np.float32)}


EXAMPLES = {
    "BertForSequenceClassification": Example(
        hf.BertForSequenceClassification, lambda: hf.BertConfig(**TEXT, num_labels=3), text
    ),
    "RobertaForTokenClassification": Example(
        hf.RobertaForTokenClassification, lambda: hf.RobertaConfig(**TEXT, num_labels=5), text
    ),
    "DistilBertModel": Example(
        hf.DistilBertModel,
        lambda: hf.DistilBertConfig(
            vocab_size=200, max_position_embeddings=40, dim=32, n_layers=2, n_heads=2, hidden_dim=48
        ),
        text,
    ),
    "ViTForImageClassification": Example(
        hf.ViTForImageClassification, lambda: hf.ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=4), pictures
    ),
    "ResNetForImageClassification": Example(
        hf.ResNetForImageClassification,
        lambda: hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
        ),
        pictures,
    ),
    "Wav2Vec2ForSequenceClassification": Example(
        hf.Wav2Vec2ForSequenceClassification,
        lambda: hf.Wav2Vec2Config(
            **SIZES,
            conv_dim=(16, 16),
            conv_kernel=(10, 8),
            conv_stride=(5, 4),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            classifier_proj_size=8,
            num_labels=3,
        ),
        sound,
    ),
}


WORDS_KNOWN = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "film",
    "was",
    "good",
    "bad",
    "long",
    "and",
    "not",
    "at",
    "all",
    ".",
)


def tokenizer(folder: Path) -> Any:
    """A tokenizer of a few words, written to `folder` beside the model."""
    made = hf.BertTokenizerFast(vocab={word: place for place, word in enumerate(WORDS_KNOWN)}, model_max_length=40)
    made.save_pretrained(folder)
    return made


def reviews(random: np.random.Generator) -> Array:
    """Texts of different lengths."""
    words = WORDS_KNOWN[5:]
    return np.array([" ".join(random.choice(words, random.integers(2, 12))) for _ in range(ITEMS)])


def answer(model: Any, items: Mapping[str, Array]) -> dict[str, Array]:
    """What the model answers to all items at once."""
    with torch.inference_mode():
        told = model(**{name: torch.from_numpy(array) for name, array in items.items()})
    return {name: value.numpy() for name, value in told.items()}
