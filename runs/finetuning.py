"""Teachers, fine-tuning and old news: the trainings behind two sections of docs/training.md, and what they are worth on test scenarios.

    python runs/finetuning.py [--only azure_conversation,bursty_workload,medium] [--out out/finetuning] [--quick]

Writes docs/results/finetuning.{json,md}. Trainings lie in OUT/NAME, as `inferencegym train` leaves them, and are kept; one that was interrupted goes on.
One seed each: what seeds differ by is in docs/results/learned.md. `azure_conversation` needs the trace (docs/workloads.md). All of it took half
an hour on two busy cores; `--quick` (minutes) trains far too little and writes to OUT only: it shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inferencegym
from inferencegym.envs.actors import actor
from inferencegym.envs.catalogue import task
from inferencegym.envs.grade import load_anchors
from inferencegym.learn import checkpoint
from inferencegym.learn.config import TrainConfig, defaults, load
from inferencegym.learn.delay import Delayed
from inferencegym.learn.evaluate import evaluate
from inferencegym.learn.randomise import Randomise
from inferencegym.learn.results import standing
from inferencegym.learn.statistics import interquartile_mean
from inferencegym.learn.train import CONFIG, POLICY, Result, train
from inferencegym.policies.trained import read, shipped

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
NAME = "finetuning"
SCENARIOS, QUICK_SCENARIOS = 50, 4
DELAYS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Training:
    """One row: what is trained how, and what it begins with."""

    name: str
    task: str
    algorithm: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    randomise: Randomise = field(default_factory=Randomise)
    after: str = ""
    """Name of the training whose network it begins with."""

    @property
    def words(self) -> str:
        """The row's first cell."""
        given = [f"{name} = {value}" for name, value in self.settings.items()]
        given += [f"{name} {low:g} to {high:g}" for name in ("rate", "delay") if (low := getattr(self.randomise, name)[0]) != (high := getattr(self.randomise, name)[1])]  # fmt: skip
        return f"`{self.algorithm}`{f' from {self.after}' if self.after else ''}: {', '.join(given)}"


def taught(name: str, where: str, steps: int, teacher: str, labels: int, **more: Any) -> Training:
    """A network taught by somebody; the learner drives from the second round on."""
    return Training(name, where, "imitate", steps, {"teacher": teacher, "labels": labels, "episodes": 16, "beta": 0.0}, **more)  # fmt: skip


def tuned(name: str, where: str, steps: int, after: str, step_size: float) -> Training:
    """A taught network that goes on with advantages measured on forks."""
    return Training(name, where, "forks", steps, {"episodes": 16, "step_size": step_size}, after=after)


TRAININGS = (
    taught("azure-clairvoyant", "azure_conversation", 9_600, "clairvoyant", 24),
    taught("azure-clairvoyant-varied", "azure_conversation", 2_880, "clairvoyant", 24, randomise=Randomise(rate=(0.8, 1.6))),
    taught("azure-slo-feedback", "azure_conversation", 960, "slo-feedback", 120),
    tuned("azure-tuned", "azure_conversation", 13_797, "azure-clairvoyant", 2.0),
    taught("bursty-slo-feedback", "bursty_workload", 1_920, "slo-feedback", 120),
    taught("bursty-clairvoyant", "bursty_workload", 1_920, "clairvoyant", 24),
    tuned("bursty-tuned", "bursty_workload", 58_269, "bursty-slo-feedback", 3.0),
    Training("medium-old-news", "medium", "cma", 76_000_000, randomise=Randomise(delay=(0, 3))),
)  # fmt: skip


def config(training: Training, out: Path, quick: bool) -> TrainConfig:
    """Its settings. `quick`: a round, or a generation, of next to nothing."""
    found = defaults(training.task, training.algorithm).with_(steps=training.steps, **training.settings)
    if training.randomise.varies:
        found = found.with_(randomise=training.randomise)
    if training.after:
        found = found.with_(start=f"file:{out / training.after / POLICY}")
    if not quick:
        return found
    least = {"imitate": {"episodes": 1, "labels": 4}, "forks": {"episodes": 1, "measured_windows": 8}, "cma": {}}
    return found.with_(steps=1, validation_scenarios=1, **least[training.algorithm])


def trained(training: Training, out: Path, quick: bool) -> Result:
    """What lies there, or what comes out of training, or of going on."""
    folder = out / training.name
    wanted = config(training, out, quick)
    begun = (folder / checkpoint.NAME).exists()
    if begun and load(folder / CONFIG) != wanted:
        raise SystemExit(f"{folder} holds a training with other settings; remove it, or give another --out")
    result = train(wanted, folder, resume=begun)
    print(
        f"{training.name}: {result.steps:,} steps, {result.cpu_s:.0f} CPU s, validation {result.best:.3f}", flush=True
    )
    return result


def row(name: str, words: str, file: Path, where: str, scenarios: int, delays: tuple[int, ...]) -> dict[str, Any]:
    """What a policy is worth on test scenarios, with fresh news and old ones."""
    of = task(where)
    notes, _ = read(file)
    news = []
    for delay in delays:
        player = Delayed(actor(str(file), of), delay)
        episodes = evaluate([player], [where], scenarios=scenarios).episodes
        news.append({"decisions": delay, "values": [one.value for one in episodes], "crashed": sum(one.crashed for one in episodes)})  # fmt: skip
    anchors = load_anchors(of)
    assert anchors is not None, f"{where} has no anchors"
    found = standing([news[0]["values"]], anchors, range(scenarios))
    return {
        "name": name, "words": words, "task": where, "steps": notes.steps, "validation": notes.validation, "news": news,
        "standing": found.as_json(),
    }  # fmt: skip


def estimate(one: dict[str, float]) -> str:
    """A figure with its interval."""
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _static(rows: list[dict[str, Any]]) -> str:
    """Best static's value on the scenarios that trainings were validated on, which may differ in number."""
    return " or ".join(dict.fromkeys(f"{one['validation_static']:.3f}" for one in rows if "validation_static" in one))


def page(told: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Teachers, fine-tuning and old news", "",
        f"Made by `python runs/finetuning.py` with inferencegym {told['version']} last on {told['date']}: one seed, {told['scenarios']} test scenarios, interquartile means",
        "with 95 % intervals over scenarios. Steps are windows, on paging decisions; rules and planner are the stored anchors.",
    ]  # fmt: skip
    for where in dict.fromkeys(one["task"] for one in told["rows"]):
        rows = [one for one in told["rows"] if one["task"] == where]
        first = rows[0]["standing"]
        lines += [
            "", f"## {where}", "",
            f"Best static {estimate(first['best_static'])} (on validation {_static(rows)}), best rule (`{first['rule']}`) {estimate(first['best_rule'])},"
            f" clairvoyant {estimate(first['clairvoyant'])}.",
            "", "| training | steps to its best | validation | test | gap closed |", "|---|---|---|---|---|",
        ]  # fmt: skip
        for one in rows:
            closed = one["standing"]["closed"]
            share = (
                ""
                if closed is None
                else f"{100 * closed['value']:.0f} % [{100 * closed['low']:.0f}, {100 * closed['high']:.0f}]"
            )
            lines.append(f"| {one['name']}: {one['words']} | {one['steps']:,} | {one['validation']:.3f} | {estimate(one['standing']['learned'])} | {share} |")  # fmt: skip
        late = [one for one in rows if len(one["news"]) > 1]
        if late:
            ages = [news["decisions"] for news in late[0]["news"]]
            lines += ["", "In brackets the episodes that crashed.", "", "| news, decisions old | " + " | ".join(map(str, ages)) + " |", "|---" * (len(ages) + 1) + "|"]  # fmt: skip
            for one in late:
                cells = [f"{interquartile_mean(news['values']):.3f} ({news['crashed']})" for news in one["news"]]
                lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = list(dict.fromkeys(one.task for one in TRAININGS))
    parser.add_argument(
        "--only", default=",".join(tasks), help="tasks, with commas; rows of the others are kept as they were"
    )
    parser.add_argument("--out", type=Path, default=Path("out") / NAME)
    parser.add_argument("--quick", action="store_true", help="train next to nothing, and write to OUT only")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(tasks):
        parser.error(f"--only: {', '.join(sorted(unknown))}; known: {', '.join(tasks)}")
    given.out.mkdir(parents=True, exist_ok=True)
    scenarios = QUICK_SCENARIOS if given.quick else SCENARIOS
    results = given.out if given.quick else RESULTS
    file, rows = results / f"{NAME}.json", []
    for where in wanted:
        here = [one for one in TRAININGS if one.task == where]
        delays = DELAYS if any(one.randomise.delay[1] for one in here) else DELAYS[:1]
        for one in here:
            result = trained(one, given.out, given.quick)
            found = row(one.name, one.words, result.policy, where, scenarios, delays)
            rows.append(found | {"validation_static": result.best_static})
        rows.append(row("shipped", "what ships with the package", shipped(where), where, scenarios, delays))
    kept = json.loads(file.read_text())["rows"] if file.exists() and not given.quick else []
    rows += [one for one in kept if one["task"] not in wanted]
    told = {"version": inferencegym.__version__, "date": time.strftime("%Y-%m-%d"), "scenarios": scenarios, "rows": sorted(rows, key=lambda one: tasks.index(one["task"]))}  # fmt: skip
    file.write_text(json.dumps(told, indent=1) + "\n")
    file.with_suffix(".md").write_text(page(told))
    print(file.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
