"""Does a caption name the digit in a picture? And is the answer unsure where the picture is noisy, or not there?

python -m examples.image_and_text
"""

from __future__ import annotations

import random
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import ViTConfig, ViTModel

from bayes_adapters import Batch, Bernoulli, Frames, Targets, predict
from bayes_adapters.backbones import text_backbone
from bayes_adapters.systems import build
from bayes_adapters.training import batches, fit

SIZE, WIDTH, UPPER = 32, 128, Targets(["query", "value"], layers=[4, 5])
WORDS = ["zero", "one", "two", "three", "four"]
NAMES = ("DejaVuSans-*", "DejaVuSansMono*", "DejaVuSerif-*", "STIXGeneral*", "cm[br]*", "cmss*")
FILES = [file for name in NAMES for file in sorted(Path(matplotlib.get_data_path(), "fonts/ttf").glob(f"{name}.ttf"))]


def draw(fits: bool, files: list[Path], noise: float | None, rng: random.Random) -> tuple[int, Tensor, int]:
    """Return the digit that a caption names, a picture with noise (None: a blank one), and the digit in it."""
    seen, other = rng.sample(range(len(WORDS)), 2)
    page, place = Image.new("L", (SIZE, SIZE)), (16 + rng.randint(-3, 3), 16 + rng.randint(-3, 3))
    font = ImageFont.truetype(rng.choice(files), rng.randint(20, 27))
    ImageDraw.Draw(page).text(place, str(seen), fill=0 if noise is None else 255, font=font, anchor="mm")
    pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).reshape(SIZE, SIZE) / 255
    return seen if fits else other, pixels + (noise or 0.0) * torch.randn(SIZE, SIZE), seen


def vision_encoder(examples: list[tuple[int, Tensor, int]], steps: int) -> ViTModel:
    """Train a small ViT to name digits; for pictures of your own take a pretrained one, or CLIP's."""
    sizes = {"image_size": SIZE, "patch_size": 8, "num_channels": 1, "hidden_size": WIDTH, "intermediate_size": 256}
    vit, head = ViTModel(ViTConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)), nn.Linear(WIDTH, len(WORDS))
    optimizer = AdamW([*vit.parameters(), *head.parameters()], lr=1e-3)
    pixels, digits = torch.stack([p for _, p, _ in examples])[:, None], torch.tensor([seen for *_, seen in examples])
    for _ in range(steps):
        some = torch.randint(len(digits), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(vit(pixels[some]).last_hidden_state.mean(1)), digits[some]).backward()
        optimizer.step()
    return vit.eval()


def main(epochs: int = 3, count: int = 1600) -> None:
    """Train for a minute on ``count`` examples, then ask about clear, noisy and missing pictures."""
    rng, _ = random.Random(0), torch.manual_seed(0)
    known, levels = [f for f in FILES if f not in FILES[::3]], (0.0, 0.2, 0.5, 1.0, None)
    train = [draw(i % 2 == 0, known, levels[i // 2 % 5], rng) for i in range(count)]
    eyes, (backbone, tokenizer) = vision_encoder(train, steps=100 * epochs), text_backbone()

    def collate(some: list[tuple[int, Tensor, int]]) -> Batch:
        pixels = torch.stack([p for _, p, _ in some])[:, None]
        with torch.no_grad():
            frames = eyes(pixels).last_hidden_state  # (B, patches + 1, WIDTH)
        there = pixels.flatten(1).any(1, keepdim=True).expand(frames.shape[:2])
        tokens = tokenizer([f"a picture of the digit {WORDS[named]}" for named, *_ in some], return_tensors="pt")
        fits = torch.tensor([float(named == seen) for named, _, seen in some])
        return Batch(dict(tokens), fits, {"image": Frames(frames, there)})

    model, guide = build("caliber-x", backbone, Bernoulli(), context_dim=WIDTH, modality="image", targets=UPPER)
    steps, optimizer = batches(train, 32, collate), lambda p: AdamW(p, lr=3e-3)
    fit(model, guide, steps, recipe=None, epochs=epochs, kl_weight=1e-4, optimizer=optimizer)
    for noise in levels:
        batch = collate([draw(i % 2 == 0, FILES[::3], noise, rng) for i in range(min(count, 100))])
        answer = predict(model, guide, batch, num_samples=16)
        right = torch.as_tensor(answer.probs.round() == batch.targets).float().mean()
        print(f"noise {noise}:  right {right:.2f}, total uncertainty {answer.total.mean():.2f} nats")


if __name__ == "__main__":
    main()
