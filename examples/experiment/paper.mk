# "Small LLMs: Pruning vs. Training from Scratch" (arXiv 2606.14150): Llama-3.1-8B's architecture,
# trained on 200 billion tokens of DCLM, pruned by half, and retrained on 50 billion. Rows of 8192.
# Needs a cluster (see what `make --dry-run` prints), a tokenizer and the text as a folder.
WORK ?= build/paper
TEXT ?= dclm/
TEXT_FILES ?=
TOKENIZER ?= --tokenizer tokenizer/
SHAPE ?= $(HERE)llama-3.1-8b.json
SEQ_LEN ?= 8192
METHODS ?= minitron-depth minitron-width flap
RATIOS ?= 0.5
SPARSE ?= wanda sparsegpt
PARENT_ROWS ?= 24414063
BUDGETS ?= 1220704 3662110 6103516
EVAL_FROM ?= 30517600
EVAL_ROWS ?= 256
SEEDS ?= 0
TOTAL ?= yes
TRAIN ?= --recipe paper --batch-size 512 --save-every 250
EVAL ?= --suite paper
CALIBRATION ?= $(W)/rows:30518000:30518128
COST_FROM ?= --reference paper
