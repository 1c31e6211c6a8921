# Every target is one call of demo/bootstrap.py: make itself handles no path, so spaces in paths are harmless.
# PYTHON: another Python >= 3.10; ARGS: further arguments, e.g. make test ARGS="-k itc -x".
PYTHON ?= python3

.PHONY: help demo demo-short test

help:
	@echo "make demo        install, make the data, pre-train and evaluate; prints one table"
	@echo "make demo-short  the same with a few steps a stage, as a check"
	@echo "make test        install, run the test suite"
	@echo "MMBLIP2_HOME=DIR puts the environment and the results into DIR"

demo demo-short test:
	@"$(PYTHON)" demo/bootstrap.py $@ $(ARGS)
