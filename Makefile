# Every target is one call of demo/bootstrap.py: make itself handles no path, so spaces in paths are harmless.
# PYTHON: another Python >= 3.10; ARGS: further arguments, e.g. make test ARGS="-k itc -x".
PYTHON ?= python3

.PHONY: help demo demo-short demo-blip demo-blip-short flickr8k flickr8k-short test lint

help:
	@echo "make demo        install, make the data, pre-train and evaluate BLIP-2; prints one table"
	@echo "make demo-blip   the same for BLIP: pre-training, retrieval, captions, questions"
	@echo "make demo-short, make demo-blip-short: a few steps a stage, as a check"
	@echo "make flickr8k DATA=DIR   real photos, real frozen parts: four trainings, 3 to 4 hours; DIR has the photos"
	@echo "make flickr8k-short DATA=DIR: a few steps of that, as a check"
	@echo "make test        install, run the test suite"
	@echo "make lint        install ruff and mypy too, run both (ARGS goes to ruff: make lint ARGS=--fix)"
	@echo "MMBLIP2_HOME=DIR puts the environment and the results into DIR"

demo demo-short demo-blip demo-blip-short flickr8k flickr8k-short test lint:
	@"$(PYTHON)" demo/bootstrap.py $@ $(ARGS)
