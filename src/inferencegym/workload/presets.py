"""Descriptions that benchmarks and examples ask for by a function, as they take a parameter. Rates are requests per
second.
"""

from __future__ import annotations

from inferencegym.workload.spec import Class, LognormalLengths, Sessions, Spec, Traffic


def benchmark_sessions(rate_rps: float) -> Spec:
    """Conversations that share growing prefixes and four system prompts, in three priority classes: everything an
    engine can offer.
    """
    return Spec(
        name="benchmark-sessions",
        source="made for benchmarks: no trace behind it",
        traffic=(
            Traffic(
                kind="chat",
                rate_rps=rate_rps,
                lengths=LognormalLengths(
                    prompt_median=120.0, prompt_sigma=0.9, output_median=150.0, output_sigma=0.7,
                    most_prompt_tokens=4_096, most_output_tokens=1_024,
                ),
                sessions=Sessions(
                    mean_turns=4.0, think_median_s=12.0, think_sigma=0.8, system_prompts=4, system_tokens=512,
                    most_context_tokens=8_192, block_tokens=64,
                ),
                classes=(
                    Class(name="interactive", share=0.3, priority=0),
                    Class(name="standard", share=0.5, priority=1),
                    Class(name="batch", share=0.2, priority=2),
                ),
            ),
        ),
    )  # fmt: skip
