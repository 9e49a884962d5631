"""How well a language model foretells documents that it has not seen, in units that models can be compared by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sojourn.codecs.text import TextCodec
from sojourn.data.dataset import PackedSet
from sojourn.engine import Model
from sojourn.errors import InvalidInput, Unsupported
from sojourn.measure import scores
from sojourn.measure.bench import Findings
from sojourn.schema import Event, Log, Progress, Prompt

FEW = 20
"""Documents below which a mean says little."""


def evaluate_texts(
    models: Sequence[Model], data: PackedSet, count: int = 512, seed: int = 0
) -> Iterator[Event | Findings]:
    """Perplexity of each package on `count` held-out documents, drawn by the seed, the same for all. Ends with Findings
    for each.

    Raises InvalidInput for a set without held-out texts, Unsupported for a package that writes none, before it begins.
    """
    for model in models:
        if model.family.spec.kind != "text" or "sample" not in model.family.can:
            can = ", ".join(model.card.can)
            raise Unsupported('"{name}" does not write text; it can {can}', name=model.card.name, can=can)
    rows = next((rows for split in ("test", "valid") if len(rows := data.indices(split))), None)
    if rows is None:
        raise InvalidInput('"{name}" has no held-out texts; prepare it with more documents', name=data.info.name)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    if len(rows) < FEW:
        yield Log.warn("{count} held-out texts are few: the intervals say how little is known", count=len(rows))
    texts = [data.text(int(row)) for row in rows]
    groups = [str(data.rows[row]["group"]) for row in rows.tolist()]  # near-copies of one document
    for model in models:
        found = Findings(model.card.name, model.card.identity, {"set": data.info.name, "n": len(rows)})
        nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
        for i, text in enumerate(texts):
            nats[i], tokens[i] = surprise(model, text)
            yield Progress(done=i + 1, total=len(texts), unit="texts", text=found.name)
        letters = np.array([max(len(text), 1) for text in texts], float)
        each = nats.sum() / tokens.sum()
        low, high = scores.ratio_interval(nats, tokens, groups)
        note = f"{int(tokens.sum()):,} tokens of {len(texts)} held-out texts, ends included"
        found.add("nats/token", each, (low, high), note)
        found.add("perplexity", float(np.exp(each)), (float(np.exp(low)), float(np.exp(high))), "exp of nats/token")
        span = scores.ratio_interval(nats / np.log(2), letters, groups)
        note = "of any tokenizer: comparable between models"
        found.add("bits/character", float(nats.sum() / np.log(2) / letters.sum()), span, note)
        yield found


def surprise(model: Model, text: str) -> tuple[float, int]:
    """Minus log-probability of a document in nats, and how many tokens foretell it, its end among them.

    What is longer than the model reads is read in windows that overlap by half, so that no token after the first half
    is foretold by less than half a window. Source: Press et al. 2021 (Shortformer), sec. 2, with a stride of half.
    """
    codec = model.package.codec
    assert isinstance(codec, TextCodec)
    length = model.family.spec.shape[0]
    ids = torch.from_numpy(codec.pack_many([text])[0]).long()
    with torch.no_grad():
        cond = model.package.conditioner([Prompt.plain("")])
        total, read = 0.0, 1  # the beginning is given
        while read < len(ids):
            start = max(0, read - length // 2) if read + 1 >= length else 0
            window = ids[start : start + length]
            told = model.family.logprobs(window[None, :-1], cond)[0].gather(1, window[1:, None])[:, 0]
            fresh = told[read - start - 1 :]
            total -= float(fresh.double().sum())
            read += len(fresh)
    return total, len(ids) - 1
