"""Train a tokenizer from text, or load one: the same text gives the same tokenizer, id for id."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sortyard.errors import InputError
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.sampling import Say, sample_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
_USUAL_ALPHABET = 1000
_RARE_SHARE = 1e-4
_WORDS_PER_TEXT = 1000


def _say_nothing(_: str) -> None:
    return None


def train_tokenizer(
    texts: Iterable[str], options: TokenizerOptions, *, say: Say = _say_nothing
) -> "PreTrainedTokenizerFast":
    """Train a tokenizer with BERT's special tokens and templates.

    Of more text than `options.max_characters` an even sample is held and learned from.

    Args:
        texts: documents, read once; order does not matter.
        options: the algorithm and its sizes; `options.path` is ignored here.
        say: told how far it is, how much of the text is used, and which characters are left out, where any are.

    Returns:
        A fast tokenizer that writes `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`.

    Raises:
        InputError: there is no text at all.
    """
    iterator = sample_texts(texts, max_characters=options.max_characters, say=say)
    first = next((text for text in iterator if text.strip()), None)
    if first is None:
        raise InputError("tokenizer: there is no text to train on; give a corpus that holds at least one document")
    texts = chain([first], iterator)
    core = _train_wordpiece(texts, options, say) if options.algorithm == "wordpiece" else _train_bpe(texts, options)
    _set_templates(core)
    return _wrap(core, model_max_length=options.model_max_length)


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """Load a fast tokenizer from a folder.

    Raises:
        InputError: there is no such folder, it holds no fast tokenizer, or it lacks [CLS], [SEP] or padding tokens.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"tokenizer.path: {folder} is not a folder; give the folder that holds tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the Rust core raises bare Exception for a malformed tokenizer.json
        raise InputError(f"tokenizer.path: {folder} holds no tokenizer that loads: {error}") from error
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer.path: {folder} holds a slow tokenizer; convert it to a tokenizer.json first")
    missing = [name for name in ("pad_token", "cls_token", "sep_token") if getattr(tokenizer, name) is None]
    if missing:
        raise InputError(f"tokenizer.path: the tokenizer in {folder} has no {', '.join(missing)}; add them first")
    return tokenizer


def _train_wordpiece(texts: Iterable[str], options: TokenizerOptions, say: Say) -> Tokenizer:
    """Wordpiece by pair merging, made reproducible.

    The trainer numbers the `##x` pieces in the order of a hash map, and breaks ties between merges by those numbers, so
    its result differs from run to run. Giving it the whole sorted alphabet in advance fixes the numbers; the vocabulary
    is then moved into a fresh tokenizer, where only the true special tokens are special.
    """
    core = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=CONTINUATION))
    core.normalizer = normalizers.BertNormalizer(lowercase=options.lowercase)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = _count_words(texts, core)
    alphabet = _alphabet(words, limit=options.vocab_size // 4, say=say)
    words = Counter({word: count for word, count in words.items() if alphabet.issuperset(word)})
    inner = sorted({CONTINUATION + character for word in words for character in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=[*SPECIAL_TOKENS, *inner],
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    core.train_from_iterator(_repeat(words), trainer)
    vocabulary = core.get_vocab()
    core = _rebuilt(core, models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=CONTINUATION))
    core.decoder = decoders.WordPiece(prefix=CONTINUATION)
    return core


def _rebuilt(core: Tokenizer, model: models.Model) -> Tokenizer:
    fresh = Tokenizer(model)
    fresh.normalizer, fresh.pre_tokenizer = core.normalizer, core.pre_tokenizer
    fresh.add_special_tokens(list(SPECIAL_TOKENS))
    return fresh


def _count_words(texts: Iterable[str], core: Tokenizer) -> Counter[str]:
    spans: Counter[str] = Counter()
    for text in texts:
        spans.update(core.normalizer.normalize_str(text).split())
    words: Counter[str] = Counter()
    for span, count in spans.items():
        for word, _ in core.pre_tokenizer.pre_tokenize_str(span):
            words[word] += count
    return words


def _alphabet(words: Counter[str], *, limit: int, say: Say) -> set[str]:
    """Return the most frequent characters: 1000, or as many as leave out no more than 1 in 10,000, within the limit.

    So a script of few letters does not spend its vocabulary on the rare signs of others, and Chinese has its own.
    """
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    ranked = sorted(characters, key=lambda character: (-characters[character], character))
    total = left = characters.total()
    size = 0
    while size < min(limit, len(ranked)) and (size < _USUAL_ALPHABET or left > _RARE_SHARE * total):
        left -= characters[ranked[size]]
        size += 1
    if left:
        more = "a larger tokenizer.vocab_size takes in more of them, " if size == limit else ""
        say(
            f"tokenizer leaves out the {len(ranked) - size:,} rarest characters, {100 * left / total:.2g} % of the "
            f"text: words with one of them are read as [UNK] ({more}tokenizer.algorithm: bpe takes in all)"
        )
    return set(ranked[:size])


def _repeat(words: Counter[str]) -> Iterator[str]:
    for word, count in sorted(words.items()):
        while count > 0:
            yield " ".join([word] * min(count, _WORDS_PER_TEXT))
            count -= _WORDS_PER_TEXT


def _train_bpe(texts: Iterable[str], options: TokenizerOptions) -> Tokenizer:
    core = Tokenizer(models.BPE())
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if options.lowercase else [])]
    core.normalizer = normalizers.Sequence(steps)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return core


def _set_templates(core: Tokenizer) -> None:
    core.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )


def _wrap(core: Tokenizer, *, model_max_length: int) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    )
