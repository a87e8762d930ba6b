# "Small LLMs: Pruning vs. Training from Scratch" (arXiv 2606.14150): Llama-3.1-8B's architecture,
# trained on 200 billion tokens of DCLM, pruned by half, and retrained on 50 billion. Rows of 8192.
# Needs a cluster (see what `make --dry-run` prints), a tokenizer and the text as a folder.
WORK ?= build/paper
TEXT ?= dclm/
TEXT_FILES ?=
TOKENIZER ?= --tokenizer tokenizer/
SHAPE ?= $(HERE)llama-3.1-8b.json
SEQ_LEN ?= 8192
METHODS ?= minitron-depth minitron-width flap wanda sparsegpt
RATIOS ?= 0.5
SPARSE ?= wanda
PARENT_ROWS ?= 24414063
BUDGETS ?= 1220704 3662110 6103516
EVAL_FROM ?= 30517600
EVAL_ROWS ?= 256
SEEDS ?= 0
TOTAL ?= yes
TOTAL_BUDGETS ?= 6103516
TRAIN ?= --recipe paper --batch-size 512 --save-every 250
EVAL ?= --suite paper
CALIBRATION ?= $(W)/rows:30518000:30518128
COST_FROM ?= --reference paper
# one process per GPU of one machine; see docs/training.md for several
TRAINER ?= torchrun --nproc_per_node=8 $$$$(which prunecli)
# 989 TFLOP/s are an H100's dense bfloat16 peak. That training reaches 40 % of it is assumed, not
# measured
SHARE_OF_PEAK ?= 0.4
COST ?= --unit H100 --flops-per-second $(shell python3 -c 'print(989e12 * $(SHARE_OF_PEAK))')
