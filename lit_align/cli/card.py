"""The model card of an exported policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_align import __version__

CARD = """\
---
{head}---

# {name}

{base}, aligned online with {algorithm} by lit_align {version}: the model answered prompts, an
annotator scored the answers, the model learned from them, and again.

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

The model has learned what one annotator likes. Whether that is what people want has to be measured by someone who did not train it.
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
    given = settings.pop("policy")
    policy, data = given.get("init_args", {}), config["data"].get("init_args", {})
    base, responses = str(policy.get("path", given["class_path"])), data.get("responses_per_prompt")
    head = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lit_align", "online-alignment"],
    }
    if not Path(base).is_dir():  # a name on the hub
        head["base_model"] = base
    return CARD.format(
        head=yaml.safe_dump(head, sort_keys=False),
        name=Path(str(config["run"])).name,
        base=base,
        algorithm=config["model"]["class_path"].rpartition(".")[-1],
        version=__version__,
        prompts=_named(data.get("prompts")),
        annotator=_named(data.get("annotator")),
        rollouts=rollouts,
        size=f"{data.get('prompts_per_rollout')} prompts" + (f" x {responses} responses" if responses else ""),
        steps=steps,
        temperature=policy.get("temperature", 1.0),
        seed=config["seed_everything"],
        use=(ADAPTER if adapter else WHOLE).format(base=base),
        settings=yaml.safe_dump(settings, sort_keys=False),
    )


def _named(part: Any) -> str:
    """``JsonlPrompts(path=prompts.jsonl)``, of what is set."""
    if not isinstance(part, dict) or "class_path" not in part:
        return str(part) if part else "none"
    arguments = {name: value for name, value in part.get("init_args", {}).items() if value is not None}
    return part["class_path"].rpartition(".")[-1] + "(" + ", ".join(f"{name}={_named(value)}" for name, value in arguments.items()) + ")"
