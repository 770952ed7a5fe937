"""The model card of an exported policy or reward model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_align import __version__

CARD = """\
---
{head}---

# {name}

{story}

| | |
|---|---|
| base model | {base} |
| algorithm | {algorithm} |
| prompts | {prompts} |
| annotator | {annotator} |
| rollouts | {rollouts} of {size} |
| optimizer steps | {steps} |
| temperature | {temperature} |
| seed | {seed} |

## Settings of the algorithm

```yaml
{settings}```

## Use

{use}
## Limits

{limits}
"""

POLICY_STORY = """\
{base}, aligned online with {algorithm} by lit_align {version}: the model answered prompts, an
annotator scored the answers, the model learned from them, and again."""
POLICY_LIMITS = """\
The model has learned what one annotator likes. Whether that is what people want has to be measured by someone who did not train it."""
REWARD_STORY = """\
{base} with a head of one number, trained by lit_align {version} to say which of two responses is better:
the first wins with probability sigmoid(difference of their scores)."""
REWARD_LIMITS = """\
A score means nothing by itself, only differences between responses to one prompt do. A policy that is trained for it finds what it
likes and people don't: measure with another judge."""

REWARD = """\
Prompt and response are read as one text (messages: as the chat, by the template), with nothing added after it.

```yaml
data:
  init_args:
    annotator:
      class_path: lit_align.annotators.RewardModelAnnotator
      init_args:
        path: FOLDER
```
"""
WHOLE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")
```
"""
ADAPTER = """\
This folder holds a LoRA adapter alone. It needs its base model, {base}:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, tokenizer = AutoModelForCausalLM.from_pretrained("{base}"), AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "FOLDER")
```
"""


def model_card(config: Mapping[str, Any], rollouts: int, steps: int, adapter: bool = False) -> str:
    """Markdown, from a run's config and how far the run came; ``adapter`` if the folder holds no more than that."""
    settings = dict(config["model"].get("init_args", {}))
    scores = "policy" not in settings
    given = settings.pop("network" if scores else "policy")
    trained, data = given.get("init_args", {}), config["data"].get("init_args", {})
    base, responses = str(trained.get("path", given["class_path"])), data.get("responses_per_prompt")
    algorithm = config["model"]["class_path"].rpartition(".")[-1]
    story = (REWARD_STORY if scores else POLICY_STORY).format(base=base, algorithm=algorithm, version=__version__)
    head = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if scores else "text-generation",
        "tags": ["lit_align", "online-alignment"],
    }
    if not Path(base).is_dir():  # a name on the hub
        head["base_model"] = base
    return CARD.format(
        head=yaml.safe_dump(head, sort_keys=False),
        name=Path(str(config["run"])).name,
        base=base,
        algorithm=algorithm,
        story=story,
        limits=REWARD_LIMITS if scores else POLICY_LIMITS,
        prompts=_named(data.get("prompts")),
        annotator=_named(data.get("annotator")),
        rollouts=rollouts,
        size=f"{data.get('prompts_per_rollout')} prompts" + (f" x {responses} responses" if responses else ""),
        steps=steps,
        temperature="none" if scores else trained.get("temperature", 1.0),
        seed=config["seed_everything"],
        use=REWARD if scores else (ADAPTER if adapter else WHOLE).format(base=base),
        settings=yaml.safe_dump(settings, sort_keys=False),
    )


def _named(part: Any) -> str:
    """``JsonlPrompts(path=prompts.jsonl)``, of what is set."""
    if not isinstance(part, dict) or "class_path" not in part:
        return str(part) if part else "none"
    arguments = {name: value for name, value in part.get("init_args", {}).items() if value is not None}
    return part["class_path"].rpartition(".")[-1] + "(" + ", ".join(f"{name}={_named(value)}" for name, value in arguments.items()) + ")"
