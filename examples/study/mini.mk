# The paper in miniature: seven methods, three seeds, on two cores. The parent has half a million
# parameters beside its embedding and sees 14 tokens for each; text of few constructions and a small
# vocabulary, so that so small a model learns something. A seed draws initial weights of the twins,
# order of rows, and calibration text. There is one parent.
WORK ?= build/study/mini
STORE ?= docs/study/sidecars
CORPUS ?= $(W)/text
TEXT ?= $(CORPUS)/definitions-train.jsonl
TEXT_FILES ?= $(TEXT)
TEXT_KEY ?= $(firstword $(shell sha256sum <$(STUDY)corpus.json))
TOKENIZER ?= --train-tokenizer 1024
SHAPE ?= $(STUDY)parent.json
SEQ_LEN ?= 128
# M = 7 million tokens, half of all rows; N = M/4, for two methods M/20 too
PARENT_ROWS ?= 55000
BUDGETS ?= 13750
BUDGETS.minitron-depth-0.5 ?= 2750 13750
BUDGETS.wanda-0.5 ?= 2750 13750
METHODS ?= minitron-depth minitron-width flap sheared-llama wanda sparsegpt
RATIOS ?= 0.5
SPARSE ?= wanda
SEEDS ?= 0 1 2
# S_{M+N} for a coarse method and a fine one, and scratch at equal compute
TOTAL ?= minitron-depth-0.5 wanda-0.5
TOTAL_BUDGETS ?= 13750
TOTAL_SEEDS ?= $(SEEDS)
SAME_COMPUTE ?= minitron-depth-0.5 minitron-width-0.5
COMPUTE_SEEDS ?= 0
# beyond the paper
TAUGHT ?= minitron-depth-0.5 minitron-width-0.5
CHANCE ?= minitron-depth-0.5
TRAIN ?= --batch-size 16 --lr 3e-4,1e-3,3e-3,1e-2
# random weights need longer trials than a twentieth of the steps, 42, and than a tenth: 3e-2 was best
# there for some, and at the end worse by 0.7 nats. In trials of 172 steps, losses of one model were
# 5.43 at 1e-3, 5.04 at 3e-3, 5.01 at 1e-2 and 5.82 at 3e-2
TRAIN.twin ?= --batch-size 16 --lr 3e-3,1e-2 --sweep-steps 172
# other text of the same kind, and prose
HELD_TEXTS ?= definitions-validation definitions-test prose-test
PARENT_TRAIN ?= --eval-data $(W)/held/definitions-validation:0:256
HELD ?= --data $(W)/held/definitions-test:0:384 --data $(W)/held/prose-test:0:256
TASK_TEXT ?= $(CORPUS)/definitions-test.jsonl
EVAL ?= --tasks halves4 --include-path $(W)/tasks
CALIBRATION ?= $(CORPUS)/definitions-calibration.jsonl --sampler concat-random --nsamples 256 --seq-len $(SEQ_LEN)
# learned masks, and weights meanwhile: on 15 % of N
OPTIONS.sheared-llama ?= --nsamples 2048 --tokens 262144 --batch-size 16 --lr 1e-3
COST_FROM ?= $(wildcard $(W)/parent/prunecli.json $(W)/cut/*/prunecli.json)

$(foreach part,train validation test calibration,$(CORPUS)/%-$(part).jsonl):
	$(STUDY)corpus.py $* $(@D) >&2
$(TEXT): $(CORPUS)/prose-train.jsonl
