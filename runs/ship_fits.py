"""Rebuild the descriptions shipped in src/inferencegym/workload/fits from the fit files of the data folder.

    python runs/ship_fits.py --data ../shared/data

Figures are taken over as they are. Added here, each said in the description's notes: the weight of the slow part of
Azure's gaps and the minute-by-minute wander of Mooncake's rate (both so that the counts of 60 s vary as the data's
do), and the chance chain of BurstGPT's API log.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np

from inferencegym.workload.fitting import calibrated_copula, wander_of_counts
from inferencegym.workload.shipped import FOLDER
from inferencegym.workload.spec import (
    Campaigns,
    Copula,
    GridLengths,
    Hours,
    Mix,
    PrefixTree,
    Spec,
    Ticks,
    Traffic,
    Wander,
    dump,
)


def grid(raw: dict) -> GridLengths:
    return GridLengths(
        prompt_probs=tuple(raw["prompt_probs"]),
        prompt_q=tuple(raw["prompt_q"]),
        output_probs=tuple(raw["output_probs"]),
        output_q=tuple(tuple(row) for row in raw["output_q_by_bin"]),
    )


def azure(raw: dict, name: str, kind: str) -> Spec:
    arrivals, fit = raw["arrivals"], raw["arrivals"]["C_iat_copula"]
    data = raw["goodness_of_fit"]["arrivals"]["data"]
    slow = calibrated_copula(
        Copula(
            probs=tuple(fit["probs"]),
            gap_q_s=tuple(fit["iat_q_s"]),
            weights=tuple(part["weight"] for part in fit["ar_components"]),
            phis=tuple(part["phi"] for part in fit["ar_components"]),
        ),
        idc_60s=data["idc_60s"],
        duration_s=arrivals["duration_s"],
    )
    was, now = fit["ar_components"][-1]["weight"], slow.weights[-1]
    return Spec(
        name=name,
        source=f"{raw['source']}, first 80 % of one hour ({raw['fitted_on']['rows']:,} requests)",
        licence=raw["licence"],
        attribution=raw["attribution"],
        notes=(
            f"The slow part of the gaps' memory has weight {now:g} (the autocorrelations alone say {was:g}), "
            "so that counts in 60 s vary as the data's do.",
        ),
        fitted_on=raw["fitted_on"],
        measured=figures(raw["goodness_of_fit"], raw["lengths"].get("corr") or raw["corr"])
        | {"rate_rps": arrivals["rate_mean_rps"]}
        | data,
        traffic=(Traffic(kind=kind, gaps=slow, lengths=grid(raw["lengths"]["joint"])),),
    )


def figures(goodness: dict, correlation: dict) -> dict:
    lengths, arrivals = goodness["lengths"], goodness["arrivals"]
    return {
        "ks_prompt": lengths["ks_prompt"],
        "ks_output": lengths["ks_output"],
        "ks_gaps": arrivals["C_iat_copula"]["ks_iat"],
        "correlation": correlation,
    }


def mooncake(raw: dict, which: str, name: str, kind: str) -> Spec:
    one, good = raw["traces"][which], raw["traces"][which]["goodness_of_fit"]
    arrivals, reuse = one["arrivals"], one["prefix_reuse"]
    counts = np.array(arrivals["requests_per_minute"], dtype=float)
    wander = wander_of_counts(counts, 60.0, idc=good["idc_60s_data"])
    notes = ["Stamps lie on ticks, as the source's; set gaps.spread to spread each batch over its tick."]
    if wander is not None:
        notes.append(
            "The rate wanders minute by minute, gamma, so that counts in 60 s vary as the data's do; "
            "batches are Poisson around it."
        )
    return Spec(
        name=name,
        source=f"{one['source']} ({one['fitted_on']['rows']:,} requests)",
        licence=raw["licence"],
        attribution=raw["attribution"],
        notes=tuple(notes),
        fitted_on=one["fitted_on"],
        measured={
            "rate_rps": arrivals["rate_mean_rps"],
            "ks_prompt": good["ks_prompt"],
            "ks_output": good["ks_output"],
            "ks_requests_per_tick": good["ks_requests_per_tick"],
            "correlation": one["lengths"].get("corr") or good["corr_data"],
            "idc_60s": good["idc_60s_data"],
            "hit_rate_tokens": good["infinite_cache_hit_rate_tokens_data"],
            "hit_rate_blocks": good["infinite_cache_hit_rate_blocks_data"],
        },
        traffic=(
            Traffic(
                kind=kind,
                gaps=Ticks(tick_s=arrivals["tick_s"]),
                rate_rps=arrivals["rate_mean_rps"],
                rate=() if wander is None else (wander,),
                lengths=grid(one["lengths"]["joint"]),
                prefixes=PrefixTree(
                    block_tokens=reuse["block_tokens"],
                    matched_probs=tuple(reuse["matched_fraction_probs"]),
                    matched_q=tuple(tuple(row) for row in reuse["matched_fraction_q_by_prompt_bin"]),
                    lag_probs=tuple(reuse["lag_to_most_recent_holder_s"]["probs"]),
                    lag_q_s=tuple(reuse["lag_to_most_recent_holder_s"]["q"]),
                    first_block_shares=tuple(reuse["first_block_share"]),
                ),
            ),
        ),
    )


def burstgpt(raw: dict) -> Spec:
    talk, api = raw["arrivals"]["conversation"], raw["arrivals"]["api"]
    week = tuple(count for day in talk["mean_per_hour_by_day_of_week_and_hour"] for count in day)
    truth = raw["goodness_of_fit"]["arrivals"]["fully_synthetic"]
    measured = dict(zip(truth["columns"], truth["data"], strict=True))
    whole = raw["goodness_of_fit"]["arrivals"]["whole_file_published_vs_synthetic"]["published_61_days"]

    def mix(log: str) -> tuple[Mix, ...]:
        return tuple(
            Mix(
                kind=f"{log} {name.split('|')[0]}",
                share=one["share_of_rows"],
                lengths=grid(one["joint"]),
                failed_share=one["failure_rate"],
            )
            for name, one in raw["classes"].items()
            if name.endswith(f"|{log}")
        )

    def first(log: str) -> GridLengths:
        return mix(log)[0].lengths

    campaigns = Campaigns(
        active_share_by_hour=tuple(api["active_probability_by_hour"]),
        active_memory=0.8,
        log_count_by_hour=tuple(api["log_count_mu_by_hour"]),
        log_residual_probs=tuple(api["log_count_residual"]["probs"]),
        log_residual_q=tuple(api["log_count_residual"]["q"]),
        residual_memory=api["log_count_lag1"],
        most_per_hour=api["log_count_residual"]["cap_count"],
        mean_per_hour=measured["api_mean_per_hour"],
    )
    return Spec(
        name="burstgpt",
        source="HPMLL/BurstGPT BurstGPT_1: hourly counts of 49 days, 640 rows, published figures of the whole file",
        licence=raw["licence"],
        attribution=raw["attribution"],
        notes=(
            "Starts at midnight of the log's first day. Two logs at once: conversation (a weekly profile) and API "
            "(rare, heavy campaigns).",
            "Lengths of the API log rest on published medians and 90th percentiles; their dependence is assumed.",
            "Whether an hour sees API calls follows a normal score with memory 0.8, which keeps active hours together.",
        ),
        fitted_on={"hours": 1176, "rows": 640},
        measured={"mean_total_tokens": 733.9}
        | {name: value for name, value in measured.items() if not name.startswith("ks_")}
        | whole,
        traffic=(
            Traffic(
                kind="conversation",
                lengths=first("conversation"),
                mix=mix("conversation"),
                whole_seconds=True,
                rate_rps=measured["conv_mean_per_hour"] / 3600.0,
                rate=(
                    Hours(levels=week),
                    Wander(
                        every_s=3600.0,
                        gamma_shape=talk["hour_multiplier_gamma_shape"],
                        memory=talk["log_residual_acf_lags_1_2_3_6_24"][0],
                    ),
                    Wander(every_s=60.0, gamma_shape=talk["minute_multiplier_gamma_shape"]),
                ),
            ),
            Traffic(
                kind="api",
                lengths=first("api"),
                mix=mix("api"),
                whole_seconds=True,
                rate_rps=measured["api_mean_per_hour"] / 3600.0,
                rate=(
                    campaigns,
                    Wander(
                        every_s=60.0,
                        gamma_shape=api["minute_multiplier_gamma_shape"],
                        memory=api["minute_multiplier_lag1"],
                    ),
                ),
            ),
        ),
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    data = options.parse_args().data

    def fit(name: str) -> dict:
        return json.loads((data / f"{name}_fit.json").read_text())

    specs = [
        azure(fit("azure_conv"), "azure-conversation", "conversation"),
        azure(fit("azure_code"), "azure-code", "code"),
        mooncake(fit("mooncake"), "conversation", "mooncake-conversation", "conversation"),
        mooncake(fit("mooncake"), "arxiv_head", "mooncake-arxiv-head", "mixed"),
        burstgpt(fit("burstgpt")),
    ]
    FOLDER.mkdir(exist_ok=True)
    for spec in specs:
        path = FOLDER / f"{spec.name}.json"
        path.write_text(dump(spec), encoding="utf-8")
        assert msgspec.json.decode(path.read_bytes())["name"] == spec.name
        print(f"{path.name:32} {path.stat().st_size:>8,} bytes")


if __name__ == "__main__":
    main()
