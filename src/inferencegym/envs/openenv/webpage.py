"""OpenEnv's page with a tab of ours in front: choose task, split and seed, let a rule play on, and watch. One episode for all its visitors.

OpenEnv calls `build` through its hook for pages (`gradio_builder`); its own form stays as the second tab.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from openenv.core.env_server.types import EnvironmentMetadata

import inferencegym
from inferencegym.decision.policy import Policy
from inferencegym.envs.openenv import tasks
from inferencegym.envs.openenv.baseline import RULES, SURFACES, spoken
from inferencegym.envs.openenv.environment import ENVIRONMENTS, PlantEnvironment
from inferencegym.envs.splits import SPLITS
from inferencegym.ground.errors import InferenceGymError
from inferencegym.policies.catalogue import policy, policy_names

#: Decisions that one click may ask for, and how many are suggested.
MOST = {"llmserve": 200, "pagedkv": 4000}
SUGGESTED = {"llmserve": 10, "pagedkv": 500}
#: Pictures shown while a rule plays on.
FRAMES = 10
_START = "<p style='padding:24px 8px'>Choose a task and press <b>Begin</b>.</p>"
_PYTHON = """### Connect to this environment

```python
from inferencegym.envs.openenv.client import {client}

with {client}.from_url("{url}") as env:
    observation, done = env.reset(task_id="{task}", seed=0), False
    while not done:
        observation, reward, done, info = env.step({action})
    print(env.grade()["score"])
```

Every session of yours is an episode of your own; only this page's episode is shared by its visitors. Routes: [/docs](/docs).
"""


class Player:
    """Plays on in the page's episode, through OpenEnv's manager of it, so that its own tab and listeners see the same."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._actor: Policy | None = None
        self._for: tuple[str, str | None] = ("", None)

    @property
    def environment(self) -> PlantEnvironment:
        """The page's environment."""
        environment: PlantEnvironment = self._manager.env
        return environment

    def drawn(self) -> str:
        """The episode as it stands, as wide as the tab."""
        return f"<div style='--ig-width:100%'>{self.environment.render_web({}) or _START}</div>"

    async def begin(self, task: str, split: str, seed: float | None) -> str:
        """A new episode; without a seed, the next one."""
        asked = {"task_id": task, "split": split}
        try:
            await self._manager.reset_environment(asked | ({} if seed is None else {"seed": int(seed)}))
        except InferenceGymError as error:
            return _told(error)
        return self.drawn()

    async def play(self, name: str, steps: float | None) -> AsyncIterator[str]:
        """A rule takes decisions, at most MOST a click; the drawing every few of them."""
        environment, family = self.environment, self.environment.family
        state = environment.state
        if state.episode_id is None:
            yield _START
            return
        if (name, state.episode_id) != self._for or self._actor is None:
            try:
                if name not in policy_names(SURFACES[family]):
                    raise InferenceGymError(f"there is no rule '{name}'")
                self._actor = policy(name, SURFACES[family])
            except InferenceGymError as error:
                yield _told(error)
                return
            self._actor.start(state.seed or 0)
            self._for = (name, state.episode_id)
        wanted = min(max(int(steps or 1), 1), MOST[family])
        every = max(1, -(-wanted // FRAMES))
        seen = environment.seen()
        for i in range(wanted):
            if environment.state.done:
                break
            action = self._actor.act(np.array(seen.encoded, np.float32), np.array(seen.action_mask, np.int8))
            await self._manager.step_environment(spoken(action))
            seen = environment.seen()
            if (i + 1) % every == 0:
                yield self.drawn()
        yield self.drawn()


def _told(error: InferenceGymError) -> str:
    from html import escape

    return f"<p style='color:#b3261e;padding:24px 8px'>{escape(str(error))}</p>"


def describe(metadata: EnvironmentMetadata, family: str) -> str:
    """Fill in what OpenEnv does not ask a class of environments for (changes `metadata`); the code to connect with."""
    made = ENVIRONMENTS[family]
    metadata.description, metadata.version = made.description, inferencegym.__version__
    metadata.author = "The InferenceGym authors"
    metadata.readme_content = metadata.readme_content or tasks.instructions(family)
    host = os.environ.get("SPACE_HOST")
    return _PYTHON.format(
        client="PagedKVEnv" if family == "pagedkv" else "LLMServeEnv",
        url=f"https://{host}" if host else f"http://localhost:{os.environ.get('PORT', '7860')}",
        task=tasks.DEFAULTS[family],
        action='"admit_free"' if family == "pagedkv" else '{"batch_cap": 128}',
    )


def build(
    manager: Any, fields: Any, metadata: EnvironmentMetadata, chat: bool, title: str, quick_start: str | None
) -> Any:
    """OpenEnv's hook: the page as Gradio blocks."""
    import gradio as gr
    from openenv.core.env_server.gradio_ui import build_gradio_app

    del quick_start
    family: str = manager.env.family
    player = Player(manager)
    code = describe(metadata, family)
    one_at_a_time = {"concurrency_id": "env", "concurrency_limit": 1}

    async def play(name: str, steps: float | None) -> AsyncIterator[str]:
        async for drawing in player.play(name, steps):
            yield drawing

    with gr.Blocks(title=title) as episode:
        with gr.Row(equal_height=False):
            task = gr.Dropdown(list(tasks.offered(family)), value=tasks.DEFAULTS[family], label="task", scale=2)
            split = gr.Dropdown(list(SPLITS), value="validation", label="split")
            seed = gr.Number(value=0, precision=0, minimum=0, label="seed (scenario)")
            begin = gr.Button("Begin", variant="primary", scale=0, min_width=110)
        with gr.Row(equal_height=False):
            rule = gr.Dropdown(list(policy_names(SURFACES[family])), value=RULES[family], label="who plays", scale=2)
            steps = gr.Number(
                value=SUGGESTED[family], precision=0, minimum=1, maximum=MOST[family], label="decisions at a click"
            )
            go = gr.Button("Play on", scale=0, min_width=110)
        drawing = gr.HTML(_START)
        begin.click(player.begin, inputs=[task, split, seed], outputs=drawing, **one_at_a_time)
        go.click(play, inputs=[rule, steps], outputs=drawing, **one_at_a_time)
        # Whoever comes sees the episode as it stands.
        episode.load(player.drawn, outputs=drawing)
    form = build_gradio_app(manager, fields, metadata, chat, title=metadata.name, quick_start_md=code)
    return gr.TabbedInterface([episode, form], ["Episode", "Step by step"], title=metadata.name)
