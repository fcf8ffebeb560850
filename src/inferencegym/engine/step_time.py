"""From facts and factors to step-time tables: an analytic model of one engine step. Seconds inside, picoseconds out.

The formula is that of docs/profiles.md: linear layers as a blend of memory and compute time, output layer, decode
attention linear in the context, prefill attention by chunk, elementwise work, all-reduces, launch overheads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inferencegym.engine.latency import StepTimes
from inferencegym.engine.profile import Profile, check_speedup
from inferencegym.ground.facts import KV_BYTES, Gpu, Model
from inferencegym.ground.units import GIB, PS_PER_S

Floats = npt.NDArray[np.float64]

#: Of a PCIe or host link, what bulk copies reach (engine reference, section 7: about 80 %).
PCIE_SHARE = 0.8
SWAP_FIXED_S = 30e-6
#: Between these token counts a step the speed-up of a weight format goes from its small-batch to its large-batch value.
FEW_TOKENS, MANY_TOKENS = 64, 1024
#: Up to so many tokens a curve is computed point by point.
DENSE = 256


@dataclass(frozen=True, slots=True)
class Terms:
    """The parts of a step's time as functions of what it computes, seconds: what tables hold and fits evaluate."""

    model: Model
    gpu: Gpu
    profile: Profile
    tensor_parallel: int = 1
    weight_format: str = "bf16"
    kv_format: str = "bf16"
    cpu_offload_gib: float = 0.0

    def linear(self, tokens: Floats) -> Floats:
        """Linear layers, elementwise work, all-reduces and fixed overheads for so many tokens."""
        m, f, t = self.model, self.profile.factors, self.tensor_parallel
        shared = m.layers * m.attention_params + m.dense_ffn_params
        main = self._blend(shared * 2.0 / t, 2.0 * tokens * shared / t, f.hbm_share, f.flop_share)
        if m.experts:
            chosen = distinct_experts(tokens, m.experts, m.experts_active, f.expert_skew)
            all_experts = m.moe_layers * m.expert_params / t
            # A matrix product works in tiles: every expert that is read costs some rows more than it has tokens.
            flops = 2.0 * all_experts * (tokens * m.experts_active + chosen * f.expert_pad_tokens)
            main = main + self._blend(all_experts * chosen * 2.0, flops, f.expert_hbm_share, f.expert_flop_share)
        main = main / self._speedup(tokens)
        width = m.ffn if not m.experts else m.expert_ffn * (m.experts_active + m.shared_experts)
        heads = (m.heads + 2 * m.kv_heads) * m.head_dim
        touched = m.hidden * f.hidden_passes + width / t * f.ffn_passes + heads / t * f.attention_passes
        elementwise = tokens * m.layers * 2.0 * touched / self.gpu.hbm_bytes_per_s
        fixed = f.step_s + f.host_s + m.layers * f.layer_s + m.moe_layers * f.expert_layer_s
        offload = self.cpu_offload_gib * GIB / (self.gpu.pcie_bytes_per_s * PCIE_SHARE)
        return main + elementwise + self.all_reduces(tokens) + fixed + offload

    def _blend(self, moved_bytes: Floats | float, flops: Floats, hbm_share: float, flop_share: float) -> Floats:
        p = self.profile.factors.p
        memory = moved_bytes / (self.gpu.hbm_bytes_per_s * hbm_share)
        compute = flops / (self.gpu.bf16_flops * flop_share)
        blended: Floats = (memory**p + compute**p) ** (1.0 / p)
        return blended

    def _speedup(self, tokens: Floats) -> Floats:
        few, many = check_speedup(self.profile, self.weight_format)
        place = np.log(np.maximum(tokens, 1.0) / FEW_TOKENS) / np.log(MANY_TOKENS / FEW_TOKENS)
        share = np.clip(place, 0.0, 1.0)
        speed: Floats = few * (1 - share) + many * share
        return speed

    def all_reduces(self, tokens: Floats) -> Floats:
        """Two all-reduces a layer and one at the end, of the hidden state in bf16."""
        if self.tensor_parallel == 1:
            return np.zeros(tokens.shape)
        return (2 * self.model.layers + 1) * self.all_reduce(tokens * self.model.hidden * 2.0)

    def all_reduce(self, message_bytes: Floats) -> Floats:
        """One all-reduce among a replica's GPUs: from the profile's measured table if it has one for so many GPUs.

        Else the link's latency and speed; without NVLink the nearest measured group, by the bytes each GPU moves;
        without any measurement a tenth of PCIe's speed, which is what such hosts show.
        """
        t, f, tables = self.tensor_parallel, self.profile.factors, self.profile.all_reduce
        if t in tables:
            return read_table(tables[t], message_bytes)
        moved = 2.0 * (t - 1) / t * message_bytes
        if self.gpu.link_bytes_per_s is None:
            if tables:
                nearest = min(tables, key=lambda gpus: abs(np.log2(gpus / t)))
                return read_table(tables[nearest], message_bytes) * ((t - 1) / t) / ((nearest - 1) / nearest)
            return f.link_latency_s + moved / (0.1 * self.gpu.pcie_bytes_per_s)
        return f.link_latency_s + moved / (self.gpu.link_bytes_per_s * f.link_share)

    def head(self, samples: Floats) -> Floats:
        """Output layer for so many emitting requests (bf16 in every weight format)."""
        weights = np.where(samples > 0, self.model.head_params * 2.0, 0.0) / self.tensor_parallel
        f = self.profile.factors
        flops = 2.0 * samples * self.model.head_params / self.tensor_parallel
        return self._blend(weights, flops, f.hbm_share, f.flop_share)

    def decodes(self, number: Floats) -> Floats:
        """What decodes cost beside their tokens and their KV: launches, and the windows of sliding layers."""
        m, f = self.model, self.profile.factors
        windows = number * self.window_tokens() * self.kv_token_s(m.window_layers)
        fixed: Floats = np.where(number > 0, m.layers * f.decode_layer_s, 0.0)
        return fixed + number * m.layers * f.sequence_layer_s + windows

    def window_tokens(self) -> float:
        """Tokens a sliding layer reads; counted in full from the first token on."""
        return float(self.model.window) if self.model.window_layers else 0.0

    def kv_token_s(self, layers: int) -> float:
        """Decode attention to one token of context in so many layers: reading its KV, or MLA's arithmetic if longer."""
        m, f = self.model, self.profile.factors
        per_layer = m.kv_numbers_per_token(self.tensor_parallel) / m.layers * KV_BYTES[self.kv_format]
        reading = per_layer / (self.gpu.hbm_bytes_per_s * f.kv_share)
        # MLA decodes in the latent space: every head multiplies with the whole latent, twice.
        flops = 2.0 * m.heads / self.tensor_parallel * (2 * m.mla_latent - m.mla_rope) if m.mla_latent else 0.0
        return layers * max(reading, flops / (self.gpu.bf16_flops * f.past_attention_share))

    def chunk_coefficients(self) -> Floats:
        """StepTimes.chunk in seconds: per past pair, per new pair, half length (tokens), per past and per new token."""
        m, f, t = self.model, self.profile.factors, self.tensor_parallel
        full = m.layers - m.window_layers
        # Scores and values: 2 FLOP for every head and number of its width; MLA's keys carry the rope's numbers too.
        pair_flops = 2.0 * (2 * m.head_dim + m.mla_rope) * m.heads / t
        past_pair = pair_flops / (self.gpu.bf16_flops * f.past_attention_share)
        new_pair = pair_flops / (self.gpu.bf16_flops * f.attention_share)
        per_layer = m.kv_numbers_per_token(t) / m.layers * KV_BYTES[self.kv_format]
        past_token = per_layer / (self.gpu.hbm_bytes_per_s * f.kv_share)
        windows = m.window_layers * self.window_tokens() * past_pair
        return np.array([full * past_pair, full * new_pair, f.attention_half_tokens, full * past_token, windows])


def distinct_experts(tokens: Floats, experts: int, active: int, skew: float) -> Floats:
    """How many experts of a layer so many tokens choose at least once.

    The i-th most popular expert is chosen like i to the -skew; 0 is evenly.
    """
    popularity = np.arange(1.0, experts + 1.0) ** -skew
    chosen = popularity / popularity.sum() * active
    while (chosen > 1.0).any():
        # Nobody chooses an expert twice: what is above 1 goes to the others.
        sure = chosen >= 1.0
        chosen = np.where(sure, 1.0, chosen * (active - sure.sum()) / chosen[~sure].sum())
    never = np.log1p(-np.minimum(chosen, 1.0 - 1e-15))
    at = tokens
    if len(tokens) > DENSE:
        # A smooth curve: a whole table is drawn through points 1 % apart, which is a hundred times quicker.
        at = np.concatenate([np.arange(DENSE), np.geomspace(DENSE, max(tokens.max(), DENSE + 1.0), 500)])
    distinct = -np.expm1(np.multiply.outer(at, never)).sum(axis=-1)
    return distinct if at is tokens else np.interp(tokens, at, distinct)


def read_table(points: Sequence[tuple[float, float]], at: Floats) -> Floats:
    """Straight lines between points in logarithms; the first's value below it, in proportion to size above the last."""
    sizes, seconds = np.array(points).T
    inside = np.exp(np.interp(np.log(np.maximum(at, sizes[0])), np.log(sizes), np.log(seconds)))
    scaled: Floats = inside * np.maximum(at / sizes[-1], 1.0)
    return scaled


def build_step_times(
    model: Model,
    gpu: Gpu,
    profile: Profile,
    *,
    tensor_parallel: int = 1,
    weight_format: str = "bf16",
    kv_format: str = "bf16",
    block_size: int = 16,
    cpu_offload_gib: float = 0.0,
    draft_cost: float = 0.0,
    max_tokens: int = 16384,
    max_seqs: int = 1024,
    factor: float = 1.0,
    extra_step_s: float = 0.0,
    link_bytes_per_s: float = 50e9,
    link_latency_s: float = 50e-6,
) -> StepTimes:
    """Tables for one replica.

    `factor` stretches every step and `extra_step_s` lengthens it: what a calibration against a live engine finds.
    `draft_cost` is the time of one draft token relative to a decode step's linear part. The link is that between
    prefill and decode replicas.
    """
    terms = Terms(model, gpu, profile, tensor_parallel, weight_format, kv_format, cpu_offload_gib)
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    seqs = np.arange(max(max_seqs, 2) + 1, dtype=np.float64)
    if profile.affine:
        linear, head, decode, kv_s, chunk = _affine(profile, tokens, seqs)
        prefill_s = 0.0
    else:
        linear, head, decode = terms.linear(tokens), terms.head(seqs), terms.decodes(seqs)
        kv_s, chunk = terms.kv_token_s(model.layers - model.window_layers), terms.chunk_coefficients()
        prefill_s = model.layers * profile.factors.prefill_layer_s
    scaled_chunk = chunk.copy()
    scaled_chunk[[0, 1, 3, 4]] *= factor * PS_PER_S
    block_bytes = model.kv_bytes_per_token(kv_format, tensor_parallel) * block_size
    context_bytes = model.kv_bytes_per_token(kv_format, tensor_parallel) * tensor_parallel
    return StepTimes(
        lin_ps=_ps(linear * factor + extra_step_s),
        head_ps=_ps(head * factor),
        dec_ps=_ps(decode * factor),
        draft_ps=_ps(draft_cost * (np.interp(seqs, tokens, linear) + head) * factor),
        scalars=_ps(
            np.array(
                [
                    kv_s * factor,
                    prefill_s * factor,
                    block_bytes / (gpu.pcie_bytes_per_s * PCIE_SHARE),
                    SWAP_FIXED_S,
                    context_bytes / link_bytes_per_s,
                    link_latency_s,
                    model.layers / PS_PER_S,
                    0.0,
                ]
            )
        ),
        chunk=scaled_chunk,
    )


def _affine(profile: Profile, tokens: Floats, seqs: Floats) -> tuple[Floats, Floats, Floats, float, Floats]:
    """A measured step time: step + tokens * token + decodes * decode (or a table) + context * kv + pairs * pair."""
    a = profile.affine
    decode = a.get("decode_s", 0.0)
    if isinstance(decode, list):
        known = np.arange(len(decode), dtype=np.float64)
        slope = decode[-1] - decode[-2]
        table = np.where(
            seqs < len(decode), np.interp(seqs, known, decode), decode[-1] + (seqs - len(decode) + 1) * slope
        )
    else:
        table = seqs * decode
    linear = np.where(tokens > 0, a.get("step_s", 0.0), 0.0) + tokens * a.get("token_s", 0.0)
    pair = a.get("prefill_pair_s", 0.0)
    chunk = np.array([pair, pair, 0.0, 0.0, 0.0])
    return linear, np.zeros(seqs.shape), table, float(a.get("kv_token_s", 0.0)), chunk


def _ps(seconds: Floats) -> npt.NDArray[np.int64]:
    return np.rint(seconds * PS_PER_S).astype(np.int64)
