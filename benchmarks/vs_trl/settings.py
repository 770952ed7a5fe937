"""How each side is set, for every table. Of TRL's settings those that were fastest for it on a CPU."""

TRL = (
    "fp32 (`bf16=False`; the default is mixed bfloat16), `gradient_checkpointing=False` (with it online DPO samples without a cache), "
    "all rows of a step in one batch, one update per rollout, `optim='adamw_torch_fused'`, no logs, no saves, no data workers, `top_k=0`, "
    "`top_p=1`, temperature 1"
)
OURS = (
    "`OnlineDataModule` with `CacheSampler` (fixed data: `DemonstrationDataModule`, `PreferenceDataModule`), "
    "`Trainer(precision='32-true')`, all rows of a step in one micro-batch, no gradient checkpointing, no logger, fused AdamW"
)
BOTH = f"TRL: {TRL}.\n\nlit_align: {OURS}."
