# The study's every step, for CI: minutes on two cores, no network. The models learn next to nothing,
# so the numbers mean nothing.
WORK ?= build/study/smoke
STORE ?= $(W)/sidecars
TEXT ?= builtin:calibration
TEXT_FILES ?=
TOKENIZER ?= --train-tokenizer 512
SHAPE ?= $(HERE)toy.json
SEQ_LEN ?= 64
PARENT_ROWS ?= 1024
BUDGETS ?= 256
BUDGETS.minitron-depth-0.5 ?= 64 256
METHODS ?= minitron-depth wanda
RATIOS ?= 0.5
SPARSE ?=
EVAL_FROM ?= 1400
EVAL_ROWS ?= 64
SEEDS ?= 0 1
TOTAL ?= yes
TOTAL_BUDGETS ?= 256
SAME_COMPUTE ?= minitron-depth-0.5
COMPUTE_SEEDS ?= 0
TAUGHT ?= minitron-depth-0.5
CHANCE ?= minitron-depth-0.5
TRAIN ?= --batch-size 16 --lr 3e-3
CALIBRATION ?= builtin:calibration --sampler concat-random --nsamples 16 --seq-len $(SEQ_LEN)
COST_FROM ?= $(wildcard $(W)/parent/prunecli.json $(W)/cut/*/prunecli.json)
