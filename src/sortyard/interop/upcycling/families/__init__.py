"""The architectures whose checkpoints can be upcycled, by transformers' `model_type`."""

from collections.abc import Mapping
from typing import Any

from sortyard.errors import InputError
from sortyard.interop.upcycling.families.bert import BertFamily, ElectraFamily, RobertaFamily
from sortyard.interop.upcycling.families.distilbert import DistilBertFamily
from sortyard.interop.upcycling.families.family import Family
from sortyard.interop.upcycling.families.modernbert import ModernBertFamily

FAMILIES: Mapping[str, Family] = {
    "bert": BertFamily(),
    "roberta": RobertaFamily(),
    "xlm-roberta": RobertaFamily(),
    "electra": ElectraFamily(),
    "distilbert": DistilBertFamily(),
    "modernbert": ModernBertFamily(),
}


def family_of(config: Any, *, where: str) -> Family:
    """Find the family of a checkpoint.

    Args:
        config: a transformers configuration.
        where: what to call the checkpoint in a message.

    Returns:
        Its family.

    Raises:
        InputError: there is none, or the model looks ahead only or reads positions in another way.
    """
    kind = config.model_type
    if kind == "sortyard":
        raise InputError(f"{where}: is a sortyard model already; upcycle the dense checkpoint that it came from")
    if kind not in FAMILIES:
        raise InputError(
            f"{where}: a {kind} checkpoint cannot be upcycled; these can: {', '.join(FAMILIES)} (MiniLM is bert)"
        )
    if getattr(config, "is_decoder", False):
        raise InputError(f"{where}: is a decoder (is_decoder: true); only bidirectional encoders can be upcycled")
    positions = getattr(config, "position_embedding_type", None)
    if positions not in (None, "absolute"):
        raise InputError(f"{where}: position_embedding_type {positions} is not supported; it must be absolute")
    return FAMILIES[kind]
