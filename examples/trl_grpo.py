"""Fine-tune a language model to steer a deployment: SFT on a good policy's decisions, then GRPO with rewards from the OpenEnv environment, by TRL.

    pip install -c constraints.txt -c constraints-trl.txt -e '.[openenv,trl]'
    python examples/trl_grpo.py --model FOLDER_OR_GGUF --sft-steps 50 --grpo-steps 100 --out out/trl

A sample is a moment of a *training* episode: the prompt that `llm:` policies send (objectives, columns, how things stand), and the decisions that
led there. The reward of an answer: the environment is brought to that moment, the answer's knobs are set and held for HOLD windows, and their
rewards are averaged; an answer that cannot be read gets -1. Everything above `main` needs neither torch nor TRL. Rewards lie in -1..1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from inferencegym.decision.knobs import Knobs, KnobsSurface
from inferencegym.envs import actors, catalogue
from inferencegym.envs.episode import record
from inferencegym.envs.openenv.baseline import InProcess
from inferencegym.envs.openenv.client import EpisodeClient
from inferencegym.envs.openenv.llm_prompt import answer, situation, system_prompt
from inferencegym.envs.openenv.llm_shots import Watched, guide_of
from inferencegym.ground.errors import ConfigError, InferenceGymError, MissingExtraError
from inferencegym.ground.rng import stream

FAMILY = "llmserve"
#: Windows that an answer is held for before it is judged: a queue that an answer lets grow is late some windows later.
HOLD = 4
#: Moments that are drawn from one episode.
PER_EPISODE = 8
UNREADABLE = -1.0
_SURFACE = KnobsSurface()


class Session(Protocol):
    """The words of `InProcess` and of `EpisodeClient`, which is a server's."""

    def reset(self, *, task_id: str, seed: int, split: str) -> dict[str, Any]: ...
    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, Any]]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment of an episode, and what its guide did then."""

    task: str
    split: str
    scenario: int
    before: tuple[Knobs, ...]
    """The decisions that led there."""
    prompt: list[dict[str, str]]
    guide: str
    """The guide's answer, as JSON."""

    def row(self) -> dict[str, Any]:
        """A row of a TRL dataset: `prompt`, and the columns that the reward needs (text, so that any table can hold them)."""
        before = json.dumps([knobs.given() for knobs in self.before])
        return {
            "prompt": self.prompt,
            "task": self.task,
            "split": self.split,
            "scenario": self.scenario,
            "before": before,
        }


def samples(
    task_name: str, count: int, *, split: str = "train", guide: str | None = None, seed: int = 0
) -> list[Sample]:
    """`count` moments of the guide's episodes (default: the policy that ships), PER_EPISODE from each; the same ones every time."""
    task = catalogue.task(task_name)
    if task.surface.name != _SURFACE.name:
        raise ConfigError("task", f"'{task_name}' has no knobs", allowed=", ".join(catalogue.task_names(FAMILY)))
    rng, system = stream(seed, f"trl.{split}"), system_prompt(_SURFACE, task)
    found: list[Sample] = []
    player = actors.actor(guide or guide_of(task), task)
    for scenario in range(-(-count // PER_EPISODE)):
        guided = Watched(player, task)
        record(task, guided, split=split, scenario=scenario)
        seen = guided.decisions
        actions = tuple(Knobs.of(one.action) for one in seen)
        latest = len(seen) - HOLD
        for at in sorted(rng.choice(latest, min(PER_EPISODE, count - len(found), latest), replace=False).tolist()):
            one = seen[at]
            turns = [
                {"role": "system", "content": system},
                {"role": "user", "content": situation(_SURFACE, one.observation, one.mask)},
            ]
            said = answer(_SURFACE, actions[at], one.observation)
            found.append(Sample(task_name, split, scenario, actions[:at], turns, said))
    return found


def judged(
    session: Session, text: str, *, task: str, split: str, scenario: int, before: Iterable[dict[str, Any]]
) -> float:
    """An answer's reward: the mean over the HOLD windows after it, in the environment's own figures."""
    try:
        knobs = _SURFACE.parse(text)
    except ConfigError:
        return UNREADABLE
    session.reset(task_id=task, seed=scenario, split=split)
    for given in before:
        session.step(given)
    total, windows, over = 0.0, 0, False
    while windows < HOLD and not over:
        _, reward, over, _ = session.step(knobs.given())
        total, windows = total + reward, windows + 1
    return total / windows


def reward_function(open_session: Callable[[], Session]) -> Callable[..., list[float]]:
    """What GRPOTrainer takes as `reward_funcs`: completions and the dataset's columns in, a reward each out."""
    session = open_session()

    def environment_reward(
        completions: Sequence[Any],
        task: Sequence[str],
        split: Sequence[str],
        scenario: Sequence[int],
        before: Sequence[str],
        **others: Any,
    ) -> list[float]:
        del others
        texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
        return [
            judged(session, text, task=t, split=p, scenario=int(s), before=json.loads(b))
            for text, t, p, s, b in zip(texts, task, split, scenario, before, strict=True)
        ]

    return environment_reward


def opened(url: str | None) -> Session:
    """The environment in this process, or a session of an OpenEnv server of ours (`inferencegym env`)."""
    return InProcess(FAMILY) if url is None else EpisodeClient(url, FAMILY)


# --- what needs torch and TRL ------------------------------------------------------------------------------------------


def loaded(source: str, rows: Sequence[Sample]) -> tuple[Any, Any]:
    """(model, tokenizer) in float32: an HF folder or hub name, a .gguf file, or `tiny`: random weights and a tokenizer made of the prompts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if source == "tiny":
        return _tiny(rows)
    path = Path(source)
    more: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    where = str(path.parent) if more else source
    tokenizer = AutoTokenizer.from_pretrained(where, **more)
    if more:
        from transformers import GgufConfig

        more["quantization_config"] = GgufConfig(gguf_file=path.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **more)
    if more:
        # Its weights are plain float32 now; as long as it says that they are quantized, trainers refuse it.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _tiny(rows: Sequence[Sample]) -> tuple[Any, Any]:
    """A Llama of two layers that knows nothing: for the mechanics alone."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet
    )
    raw.train_from_iterator(
        [turn["content"] for one in rows for turn in one.prompt] + [one.guide for one in rows], trainer
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def tried(
    model: Any, tokenizer: Any, rows: Sequence[Sample], reward: Callable[..., list[float]], tokens: int
) -> dict[str, float]:
    """Greedy answers to moments that nothing was trained on: mean reward, share that can be read, the guide's mean reward."""
    import torch

    model.eval()
    texts = []
    for one in rows:
        asked = tokenizer.apply_chat_template(
            one.prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            made = model.generate(**asked, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        texts.append(tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))
    table = [one.row() for one in rows]
    columns = {name: [row[name] for row in table] for name in ("task", "split", "scenario", "before")}
    rewards, theirs = reward(completions=texts, **columns), reward(completions=[one.guide for one in rows], **columns)
    read = sum(value != UNREADABLE for value in rewards)
    return {"reward": sum(rewards) / len(rows), "readable": read / len(rows), "guide_reward": sum(theirs) / len(rows)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="bursty_workload", help="a task of LLMServe")
    parser.add_argument("--model", default="tiny", help="an HF folder or name, a .gguf file, or tiny")
    parser.add_argument(
        "--env-url", help="an OpenEnv server (`inferencegym env`); default: the environment in this process"
    )
    parser.add_argument("--samples", type=int, default=64, help="moments to train on")
    parser.add_argument("--tries", type=int, default=8, help="moments of validation scenarios to try before and after")
    parser.add_argument("--sft-steps", type=int, default=0)
    parser.add_argument("--grpo-steps", type=int, default=4)
    parser.add_argument("--generations", type=int, default=4, help="answers to one prompt, which GRPO compares")
    parser.add_argument("--tokens", type=int, default=96, help="most tokens of an answer")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="of SFT")
    parser.add_argument(
        "--grpo-learning-rate",
        type=float,
        default=1e-6,
        help="of GRPO: a large one unlearns the form of an answer at once",
    )
    parser.add_argument("--out", type=Path, default=Path("out/trl"))
    given = parser.parse_args(arguments)
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
    except ImportError as error:
        raise MissingExtraError("trl", "fine-tuning a language model") from error

    rows = samples(given.task, given.samples)
    held_out = samples(given.task, given.tries, split="validation")
    reward = reward_function(lambda: opened(given.env_url))
    model, tokenizer = loaded(given.model, rows)
    common: dict[str, Any] = {
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": 0, "use_cpu": not _gpu(),
        "bf16": _gpu(), "gradient_checkpointing": False,
    }  # fmt: skip
    report: dict[str, Any] = {
        "model": given.model,
        "task": given.task,
        "before": tried(model, tokenizer, held_out, reward, given.tokens),
    }
    print(json.dumps(report), flush=True)
    if given.sft_steps:
        pairs = [{"prompt": one.prompt, "completion": [{"role": "assistant", "content": one.guide}]} for one in rows]
        sft = SFTConfig(str(given.out / "sft"), max_steps=given.sft_steps, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_length=4096, learning_rate=given.learning_rate, **common)  # fmt: skip
        trainer = SFTTrainer(model, args=sft, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
        trainer.train()
        report["sft_loss"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        report["after_sft"] = tried(model, tokenizer, held_out, reward, given.tokens)
        print(json.dumps(report), flush=True)
    if given.grpo_steps:
        grpo = GRPOConfig(
            str(given.out / "grpo"), max_steps=given.grpo_steps, per_device_train_batch_size=given.generations, num_generations=given.generations,
            max_completion_length=given.tokens, temperature=1.0, learning_rate=given.grpo_learning_rate, **common,
        )  # fmt: skip
        trainer = GRPOTrainer(model, reward_funcs=reward, args=grpo, train_dataset=Dataset.from_list([one.row() for one in rows]), processing_class=tokenizer)  # fmt: skip
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "reward" in entry]
        report["grpo_reward"] = [entry["reward"] for entry in logged]
        # No spread among the answers to a prompt, no gradient.
        report["grpo_reward_std"] = [entry["reward_std"] for entry in logged]
        report["after_grpo"] = tried(model, tokenizer, held_out, reward, given.tokens)
    given.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(given.out / "model")
    tokenizer.save_pretrained(given.out / "model")
    (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report), flush=True)


def _gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


if __name__ == "__main__":
    try:
        main()
    except InferenceGymError as problem:
        sys.exit(f"error: {problem}")
