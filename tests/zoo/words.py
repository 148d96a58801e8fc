"""Tokenizers and text encoders, tiny and made here: no word of them comes from a hub."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny import parts, sd3, text

#: How Qwen's and Llama's tokenizers cut a text: words with the space before them, digits one by
#: one, signs, ends of lines.
PIECES = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n+|\s")
#: Qwen's template of a conversation, without its tools and system prompt.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_pairs(special, known="", first=None, **options):
    """A tokenizer of byte pairs. Each word of the text `known` is one token; others are spelt.

    The first of the special tokens pads; `first` is put before every text.
    """
    cut = pre_tokenizers.Split(PIECES, "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator([known], trainer)
    if first:
        words.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, special.index(first))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=special[0], **options)


def qwen_words(known=""):
    """Qwen's conversation, in which a template may be `known`."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_pairs(special, known, chat_template=CHAT)


def llama_words(known=""):
    """Llama 3's conversation: a text begins with its own token."""
    special = ["<|pad|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    return byte_pairs([*special, "<|eot_id|>"], known, first="<|begin_of_text|>")


def gemma_words():
    return byte_pairs(["<pad>", "<bos>", "<eos>"], first="<bos>")


def decoder(tokenizer, **changes):
    """What the small language models have in common: 16 numbers a token."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def qwen3(tokenizer):
    torch.manual_seed(5)
    return Qwen3Model(Qwen3Config(**decoder(tokenizer, head_dim=8))).eval()


def qwen3_writer(tokenizer):
    """The whole language model, as FLUX.2 Klein loads it."""
    torch.manual_seed(5)
    return Qwen3ForCausalLM(Qwen3Config(**decoder(tokenizer, head_dim=8))).eval()


def llama(tokenizer):
    torch.manual_seed(5)
    return LlamaModel(LlamaConfig(**decoder(tokenizer))).eval()


def gemma(tokenizer):
    torch.manual_seed(5)
    return Gemma2Model(Gemma2Config(**decoder(tokenizer, head_dim=8))).eval()


def qwen_vl(tokenizer):
    """Qwen 2.5 with eyes, as Qwen-Image reads with it."""
    torch.manual_seed(5)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = Qwen2_5_VLConfig(
        text_config=decoder(tokenizer, rope_parameters=rope),
        vision_config={**eyes, "out_hidden_size": 16},
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen3_vl(tokenizer):
    """Qwen 3 with eyes, as Ideogram 4 reads with it: it needs all of its 36 layers."""
    torch.manual_seed(5)
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]}
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    layers = {"num_hidden_layers": 36, "head_dim": 8, "rope_parameters": rope}
    config = Qwen3VLConfig(
        text_config=decoder(tokenizer, **layers),
        vision_config={**eyes, "out_hidden_size": 16, "deepstack_visual_indexes": []},
    )
    return Qwen3VLModel(config).eval()


def t5():
    """The encoder and the tokenizer of Stable Diffusion 3's T5: letters, 32 numbers each."""
    pipe = sd3()[0]
    return pipe.text_encoder_3, pipe.tokenizer_3


def umt5():
    """T5 of many languages, with T5's letters."""
    torch.manual_seed(5)
    words = t5()[1]
    config = UMT5Config(
        d_model=32, d_ff=32, d_kv=8, num_heads=2, num_layers=1, vocab_size=len(words)
    )
    return UMT5EncoderModel(config).eval(), words


def clip(kind=CLIPTextModel, **changes):
    """CLIP's encoder and its tokenizer. What it pools, 16 numbers, is read at the text's end."""
    words = parts()["tokenizer"]
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    return text(kind, **ends, **changes), words
