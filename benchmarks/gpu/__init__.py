"""How fast sampling and training are on one GPU: random weights of real shapes, forced lengths, bfloat16; nothing is downloaded.

    python -m benchmarks.gpu all     --size 0.5b
    python -m benchmarks.gpu rollout --size 7b
    python -m benchmarks.gpu train   --size 7b --sequences 64 --tokens 1024
    python -m benchmarks.gpu all     --toy

``check`` (which comes before everything): a small model in float32 draws the same tokens from the same noise by replayed steps as by plain
ones, and the probe finds layouts. ``rollout``: `CacheSampler` beside ``generate`` of transformers, in turns, and the decode roof, which is
reading all weights and caches once for a token of every sequence. ``train``: RLOO and online DPO in Lightning's Trainer and in TRL's
trainers, rollout and training timed apart, and model FLOP utilisation (7b: LoRA with activations checkpointed; 0.5b: all weights,
float32 under bf16-mixed). ``all`` is all of them.

TRL is found where Python finds it. Where nothing can be installed, carry it: ``pip install --no-deps --target peer trl==1.16.0``
elsewhere, and ``PYTHONPATH=peer`` here. Without it the line says that the peer is missing.

``--limit`` is shared out among the parts, none of which begins another repetition when its share is over; after ``--end`` seconds the run
is broken off, and its line has what there is by then. Peaks of an H200 are the
defaults of ``--flops`` and ``--bandwidth``. The result, with the goals and whether they were met, is a line of JSON at the end of
``--out``.
"""
