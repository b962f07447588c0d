"""Dialogues for tests: random ones, their files, and configurations that train on them."""

import json
import random
from pathlib import Path
from typing import Any

from twinstep.config import Config, CorpusConfig, EmbeddingConfig, TrainConfig

WORDS = ["tree", "state", "über", "世界", "🙂", "12", "it's", "\n", "<b>", "print(x)", "  ", "\tend"]
Messages = list[dict[str, Any]]


def write_text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randrange(1, 9)))


def conversations(count: int, seed: int = 0) -> list[Messages]:
    """Of one to three exchanges, some with a system message, some with parts of Python."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        messages: Messages = [{"role": "system", "content": write_text(draw)}] if number % 5 == 0 else []
        for _ in range(draw.randrange(1, 4)):
            content: Any = write_text(draw)
            if draw.random() < 0.3:
                content = [
                    {"type": "text", "text": write_text(draw)},
                    {"type": "python", "text": "1 + 1"},
                    {"type": "python_output", "text": "2" * draw.randrange(2)},
                    {"type": "text", "text": write_text(draw)},
                ]
            messages.append({"role": "user", "content": write_text(draw)})
            messages.append({"role": "assistant", "content": content})
        found.append(messages)
    return found


def write(path: Path, found: list[Messages]) -> Path:
    lines = (json.dumps({"messages": messages, "id": n}) + "\n" for n, messages in enumerate(found))
    path.write_text("".join(lines))
    return path


def config(path: Path, batch_size: int = 4, accumulation: int = 1, seed: int = 0, **corpus: Any) -> Config:
    """An embedding model's run on dialogues, in bytes."""
    settings = {"sequence_len": 64, "special_tokens": "chat", **corpus}
    return Config(
        model=EmbeddingConfig(),
        data=CorpusConfig(data=str(path), chat=True, **settings),
        train=TrainConfig(batch_size=batch_size, accumulation=accumulation, seed=seed),
    )
