# Tier 2: what mini.mk has, and higher ratios of two methods, N = M for two, and more seeds for the
# total budget. Runs that mini.mk has made are not made again. Half of eight layers are four; the
# ratios of minitron-depth leave three, two and one.
RATIOS.minitron-depth ?= 0.5 0.625 0.75 0.875
RATIOS.minitron-width ?= 0.5 0.625 0.75 0.8125
BUDGETS.minitron-depth-0.5 ?= 2750 13750 55000
BUDGETS.wanda-0.5 ?= 2750 13750 55000
TOTAL_SEEDS ?= 0 1 2 3 4
include $(STUDY)mini.mk
