"""The definition, literally: plain loops per sequence and head build the relation, and dense softmax follows it.

Shares nothing with the fast paths but the shape of the buckets, the hash codes and the start directions.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sortyard.ops.bucket_attention.relation_value import BucketRelation, SequenceRelation, assemble_relation
from sortyard.ops.bucket_attention.shapes import RoundsShape, TreeShape, resolve_shape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.lsh_hash import lsh_codes
from sortyard.ops.lsh_tree.reference import Node, content_tree, position_tree
from sortyard.ops.segments import Segments


def attend_relation(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    relation: BucketRelation,
) -> Float[Tensor, "B H T K"]:
    """Dense attention from a relation: one softmax over [keys | mean keys + log count].

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        relation: Exact pairs and summaries.

    Returns:
        One output a query; zeros where a query has nothing to read.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    query, key, value = (x.to(wide) for x in (q, k, v))
    members = relation.members.to(wide)
    share = members / members.sum(-1, keepdim=True).clamp_min(1)
    times = relation.near if relation.multiplicity is None else relation.multiplicity
    exact = query @ key.transpose(-1, -2) * q.shape[-1] ** -0.5 + times.to(wide).log()
    summary = query @ (share @ key).transpose(-1, -2) * q.shape[-1] ** -0.5 + relation.counts.to(wide).log()
    logits = torch.cat([exact, summary], -1)
    empty = logits.isneginf().all(-1, keepdim=True)
    weights = logits.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return (weights @ torch.cat([value, share @ value], -2)).to(q.dtype)


@torch.no_grad()
def reference_relation(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    spec: BucketSpec,
    *,
    segments: Segments,
    causal: bool,
    global_tokens: Bool[Tensor, "B T"] | None,
) -> BucketRelation:
    """The relation by plain loops over sequences, heads, chunks and nodes.

    Args:
        q: Queries.
        k: Keys.
        spec: The attention's settings.
        segments: The batch's sequences.
        causal: Whether a query sees only keys at or before it.
        global_tokens: Tokens that every query reads, besides the first ones.

    Returns:
        The relation.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    parts = {}
    for number, tokens in enumerate(torch.split(segments.token_index, list(segments.lengths))):
        row, at = int(tokens[0]) // segments.length, tokens % segments.length
        marked = {i for i in range(len(at)) if i < spec.num_global_tokens}
        if global_tokens is not None:
            marked |= {i for i, t in enumerate(at.tolist()) if bool(global_tokens[row, t])}
        parts[number] = _sequence_relation(
            q[row][:, at].to(wide), k[row][:, at].to(wide), spec, marked=marked, causal=causal
        )
    return assemble_relation(segments, parts, heads=q.shape[1], multiset=spec.multiset)


def _sequence_relation(
    q: Float[Tensor, "H n K"], k: Float[Tensor, "H n K"], spec: BucketSpec, *, marked: set[int], causal: bool
) -> SequenceRelation:
    H, n, _ = q.shape
    shape = resolve_shape(spec, n, causal)
    if isinstance(shape, TreeShape):
        heads = [_tree_head(q[h], k[h], spec, shape, marked=marked, causal=causal) for h in range(H)]
        return SequenceRelation(*(torch.stack(parts) for parts in zip(*heads, strict=True)))
    if isinstance(shape, RoundsShape):
        near = _rounds_heads(q, k, spec, shape, marked=marked, causal=causal)
    else:
        near = torch.ones(H, n, n, dtype=torch.long, device=q.device)
        near = near.tril() if causal else near
    return SequenceRelation(near, near[:, :0] > 0, near[..., :0])


def _tree_head(
    q: Float[Tensor, "n K"],
    k: Float[Tensor, "n K"],
    spec: BucketSpec,
    shape: TreeShape,
    *,
    marked: set[int],
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n = len(q)
    if causal:
        root = position_tree(n, bucket_size=shape.bucket_size)
    else:
        queries = q if spec.split == "queries" else None
        root = content_tree(k, levels=shape.levels, power_steps=spec.power_steps, seed=spec.seed, queries=queries)
    nodes = root.all_nodes()
    number = {id(node): m for m, node in enumerate(nodes)}
    near, counts = (torch.zeros(n, size, dtype=torch.long, device=q.device) for size in (n, len(nodes)))
    members = torch.zeros(len(nodes), n, dtype=torch.bool, device=q.device)
    for m, node in enumerate(nodes):
        members[m, node.keys] = True
    for start in range(0, n, spec.query_chunk):
        own_from = start // shape.bucket_size * shape.bucket_size
        chosen_by = (
            q[max(0, start - spec.query_chunk + 1) : start + 1] if causal else q[start : start + spec.query_chunk]
        )
        adds_spread = spec.score == "spread" and not causal
        border = own_from if causal else n
        leaves, far = _descend(chosen_by.mean(0), k, root, shape, border=border, adds_spread=adds_spread)
        bucketed = {j for leaf in leaves for j in leaf.keys}
        for i in range(start, min(n, start + spec.query_chunk)):
            last = i if causal else n - 1
            exact = bucketed | {j for j in range(n) if abs(i - j) <= spec.local_window} | marked
            exact |= set(range(own_from, i + 1)) if causal else set()
            exact = {j for j in exact if j <= last}
            near[i, sorted(exact)] = 1
            for node in far:
                counts[i, number[id(node)]] = len(set(node.keys) - exact)
    return near, members, counts


def _descend(
    query: Float[Tensor, " K"],
    keys: Float[Tensor, "n K"],
    root: Node,
    shape: TreeShape,
    *,
    border: int,
    adds_spread: bool,
) -> tuple[list[Node], list[Node]]:
    """Near leaves and summarised nodes; `border` is the first position that is not in the past."""
    level: list[Node] = [root] if max(root.keys) < border else []
    astride: list[Node] = [] if level else [root]
    far: list[Node] = []
    floor = max(1e-6 * _spread(keys), torch.finfo(keys.dtype).tiny)

    def score(node: Node) -> float:
        logit = float(keys[node.keys].mean(0) @ query) / math.sqrt(keys.shape[-1])
        return logit + math.log(max(_spread(keys[node.keys]), floor)) if adds_spread else logit

    while True:
        opened = [child for node in [*level, *astride] for child in node.children]
        if not opened:
            return level, far
        candidates = [node for node in opened if max(node.keys) < border]
        astride = [node for node in opened if min(node.keys) < border <= max(node.keys)]
        scores = [score(node) for node in candidates]
        keep = shape.beam if opened[0].children else shape.near
        best = set(sorted(range(len(candidates)), key=lambda c: -scores[c])[:keep])
        level = [node for c, node in enumerate(candidates) if c in best]
        far += [node for c, node in enumerate(candidates) if c not in best]


def _spread(keys: Float[Tensor, "n K"]) -> float:
    """Mean squared distance to the mean."""
    return float((keys - keys.mean(0)).square().sum(-1).mean())


def _rounds_heads(
    q: Float[Tensor, "H n K"],
    k: Float[Tensor, "H n K"],
    spec: BucketSpec,
    shape: RoundsShape,
    *,
    marked: set[int],
    causal: bool,
) -> Tensor:
    """How often each pair of each head counts."""
    H, n, _ = q.shape
    times = torch.zeros(H, n, n, dtype=torch.long, device=q.device)
    sized = replace(spec, bucket_size=shape.bucket_size, num_buckets=None) if spec.hash == "kmeans" else spec
    for r in range(spec.num_hash_rounds):
        query_codes, key_codes = (
            lsh_codes(x[None], sized, round_index=r, keys=k[None], causal=causal)[0].tolist() for x in (q, k)
        )
        for h in range(H):
            if causal:
                pairs = _past_pairs(query_codes[h], key_codes[h], spec, shape)
            else:
                pairs = _aligned_pairs(query_codes[h], key_codes[h], size=shape.bucket_size)
            for i, keys in pairs.items():
                times[h, i, keys] += 1
    for i in range(n):
        last = i if causal else n - 1
        local = [j for j in range(n) if abs(i - j) <= spec.local_window and j <= last]
        times[:, i, local] += 1
        times[:, i, [j for j in sorted(marked) if j <= last]] += 1
    return times if spec.multiset else times.clamp_max(1)


def _aligned_pairs(query_codes: list[int], key_codes: list[int], *, size: int) -> dict[int, list[int]]:
    n = len(query_codes)
    queries = sorted(range(n), key=lambda i: query_codes[i])
    keys = sorted(range(n), key=lambda j: key_codes[j])
    pairs = {}
    for start in range(0, n, size):
        chunk = queries[start : start + size]
        middle = chunk[len(chunk) // 2]
        alike = [i for i in queries if query_codes[i] == query_codes[middle]]
        left = sum(code < query_codes[middle] for code in key_codes)
        count = sum(code == query_codes[middle] for code in key_codes)
        centre = left + alike.index(middle) * count // len(alike)
        first = max(0, min(max(0, centre - size), n - 2 * size))
        for i in chunk:
            pairs[i] = keys[first : first + 2 * size]
    return pairs


def _past_pairs(
    query_codes: list[int], key_codes: list[int], spec: BucketSpec, shape: RoundsShape
) -> dict[int, list[int]]:
    drop = 16 - shape.code_bits if spec.hash == "gray" else 0
    return {
        i: [j for j in range(i + 1) if key_codes[j] >> drop == query_codes[i] >> drop][-shape.bucket_size :]
        for i in range(len(query_codes))
    }
