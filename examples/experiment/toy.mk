# Minutes on two cores, no network. The text is Python's documentation; the parent has 0.2 M
# parameters.
WORK ?= build/experiment
TEXT ?= builtin:calibration
TEXT_FILES ?=
TOKENIZER ?= --train-tokenizer 512
SHAPE ?= $(HERE)toy.json
SEQ_LEN ?= 64
METHODS ?= flap minitron-depth
RATIOS ?= 0.5
SPARSE ?=
PARENT_ROWS ?= 2048
BUDGETS ?= 256 512
EVAL_FROM ?= 2600
EVAL_ROWS ?= 64
SEEDS ?= 0
TOTAL ?= yes
TRAIN ?= --batch-size 16 --lr 3e-3
EVAL ?=
CALIBRATION ?= $(W)/rows:2700:2732
COST_FROM ?= $(wildcard $(W)/parent/prunecli.json $(W)/cut/*/prunecli.json)
