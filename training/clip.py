"""The two tiny CLIPs: a byte-pair tokenizer, and two towers each, trained by contrast.

The first one's text tower conditions the UNet, and the whole model scores prompts. Both text towers
condition the flow-matching transformer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from training.compositions import (
    COLOURS,
    COUNTS,
    GARMENTS,
    GROUNDS,
    MIX,
    SIZE,
    draw_scene,
    render,
    siblings,
)
from training.loop import fit
from training.photographs import load_photographs

LENGTH = 16  # tokens of a prompt, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"
#: Folders and shapes of the text towers: of the CLIP that scores prompts, and of the second.
TOWERS = {"clip": "text_tower", "clip_2": "text_tower_2"}
TEXT = {
    "clip": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3},
    "clip_2": {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4},
}


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Trains CLIP's byte-pair encoding on the captions' words, and saves it in `folder`.

    Each word becomes one token; any other text falls back on bytes.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [
        *COLOURS,
        *GARMENTS,
        *(g + "s" for g in GARMENTS),
        "dresses",
        *GROUNDS,
        *COUNTS,
        *["a", "an", "on", "left", "of", "above", "ground"],
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(words * 2, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    # CLIP's own order: bytes, bytes that end a word, merges, specials. Then every byte is known in
    # both places.
    merges = [tuple(m) for m in learned["merges"]]
    vocabulary = [
        *alphabet,
        *(byte + "</w>" for byte in alphabet),
        *("".join(m) for m in merges),
        START,
        END,
    ]
    folder.mkdir(parents=True, exist_ok=True)
    index = {token: i for i, token in enumerate(vocabulary)}
    made = CLIPTokenizer(vocab=index, merges=merges, model_max_length=LENGTH)
    made.save_pretrained(folder)
    # transformers before 5 reads the two files of the original format.
    (folder / "vocab.json").write_text(json.dumps(index, ensure_ascii=False))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in merges)
    )
    return made


def make_model(tokenizer: CLIPTokenizer, name: str = "clip") -> CLIPModel:
    """An untrained CLIP; `name` chooses its text tower from TEXT."""
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shared = {"num_attention_heads": 4, "projection_dim": 128}
    text = {
        **TEXT[name],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }
    return CLIPModel(
        CLIPConfig(
            text_config={**shared, **text, **ends},
            vision_config={**shared, **vision},
            projection_dim=128,
        )
    )


def make_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    size = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return CLIPProcessor(images, tokenizer)


def train(
    runs: Path, out: Path, *, name: str, steps: int, batch: int, lr: float, seed: int
) -> None:
    """Trains the CLIP of `name`, and saves what the generators need of it in `out`."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(out / "tokenizer")
    model = make_model(tokenizer, name)
    loss = make_loss(model, tokenizer, batch=batch, seed=seed)
    fit(name, model, loss, steps=steps, lr=lr, runs=runs, seed=seed, weight_decay=0.1)
    model.half()
    save_tower(model, out / TOWERS[name])
    if name == "clip":
        model.save_pretrained(out / "clip")
        make_processor(tokenizer).save_pretrained(out / "clip")
        save_text_encoder(model, out / "text_encoder")


def make_loss(
    model: CLIPModel, tokenizer: CLIPTokenizer, *, batch: int, seed: int
) -> Callable[[int], dict[str, torch.Tensor]]:
    """The contrastive loss of a training step, which depends on the step's number only."""
    photographs = load_photographs("train")
    kinds, shares = list(MIX), list(MIX.values())

    def loss(step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([seed, step])
        scenes = [
            s
            for _ in range(batch // 4)
            for s in siblings(rng, draw_scene(rng, str(rng.choice(kinds, p=shares))), 4)
        ]
        pixels = (
            torch.from_numpy(np.stack([render(rng, s, photographs) for s in scenes])).permute(
                0, 3, 1, 2
            )
            / 127.5
            - 1
        )
        captions = [s.caption for s in scenes]
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt")
        logits = model(pixel_values=pixels, **tokens).logits_per_text
        # Two pictures may share a caption: each is then as right as the other.
        same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
        target = same / same.sum(1, keepdim=True)
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        hits = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return {
            "loss": (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2,
            "rank1": hits,
        }

    return loss


def save_tower(model: CLIPModel, folder: Path) -> None:
    """Saves the text tower with its projection, as Stable Diffusion 3 wants it."""
    tower = CLIPTextModelWithProjection(model.config.text_config).to(model.dtype)
    held = model.state_dict()
    tower.load_state_dict({key: held[key] for key in tower.state_dict()})
    tower.save_pretrained(folder)


def save_text_encoder(model: CLIPModel, folder: Path) -> None:
    """Saves the text tower as Stable Diffusion 1 wants it."""
    text = CLIPTextModel(model.config.text_config).half()
    text.load_state_dict(
        {k.removeprefix("text_model."): v for k, v in model.text_model.state_dict().items()}
    )
    text.save_pretrained(folder)
    # Under the names of Stable Diffusion's own file, which every transformers reads: 5 writes names
    # that 4 takes for another model's.
    named = {f"text_model.{k}": v.contiguous() for k, v in text.state_dict().items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
