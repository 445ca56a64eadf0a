PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create .venv with the tested versions (instant when up to date)
	@.ci/install.sh

demo: setup ## translate the shipped clips, eagerly and with OpenVINO, and compare
	@$(PYTHON) scripts/demo.py

test: lint ## lint, type-check and run the quick tests
	@$(PYTHON) -m pytest tests -q -m "not soak and not fault and not bench"

lint: setup ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

bench: setup ## measure Fairseq, OpenVINO and the alternatives (15 minutes)
	@.venv/bin/fairseq-openvino benchmark

clean: ## remove .venv, caches and build files
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
