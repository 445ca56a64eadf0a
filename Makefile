PYTHON := .venv/bin/python

# NAME:PROGRAM/PRECISION of the engines of .venv-peers
PEERS := optimum-intel-f32:optimum_intel.py/f32 optimum-intel-bf16:optimum_intel.py/bf16 \
	optimum-intel-int8:optimum_intel.py/int8 openvino-genai-bf16:genai.py/bf16 \
	openvino-genai-int8:genai.py/int8 faster-whisper-f32:fasterwhisper.py/f32 \
	faster-whisper-int8:fasterwhisper.py/int8 whisper.cpp-f16:whisper_cpp.py/f16 \
	whisper.cpp-q8_0:whisper_cpp.py/q8_0

.DEFAULT_GOAL := help
.PHONY: help setup peers demo test test-ray soak test-fault lint bench bench-whisper bench-long bench-text bench-architectures \
	architectures covost covost-train clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create .venv with the tested versions (instant when up to date)
	@.ci/install.sh

peers: ## create .venv-peers with the other engines for Whisper (instant when up to date)
	@.ci/install_peers.sh

demo: setup ## translate the shipped clips with both engines; subtitle a recording (WHISPER=SOURCE AUDIO=FILE)
	@$(PYTHON) scripts/demo.py $(if $(WHISPER),--whisper "$(WHISPER)") $(if $(AUDIO),--audio "$(AUDIO)")

test: lint ## lint, type-check and run the quick tests
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests -q -n auto --dist loadfile -m "not soak and not fault and not bench"

soak: setup ## run the slow tests: large models, 10,000 random searches, memory
	@$(PYTHON) -m pytest tests -q -m "soak or bench"

test-fault: setup ## kill, refuse, flip and cut: the full form of what tests/README.md lists
	@$(PYTHON) -m pytest tests -q -m fault

test-ray: setup ## create .venv-ray and test jobs on a local Ray, Dask and Spark (10 minutes)
	@.ci/install_ray.sh
	@OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest tests/test_ray*.py -q

lint: setup ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

bench: setup ## measure Fairseq, OpenVINO and the alternatives (30 minutes; FLAGS="--rounds 3" adds flags)
	@.venv/bin/fairseq-openvino benchmark --trained examples/covost/mini $(FLAGS)

bench-whisper: setup peers ## measure Whisper against every other engine (20 minutes; FLAGS as for bench)
	@.venv/bin/fairseq-openvino benchmark --whisper base --trained examples/covost/mini \
		$(foreach peer,$(PEERS),--peer "$(subst :,=.venv-peers/bin/python scripts/peers/,$(subst /, ,$(peer)))") $(FLAGS)

covost-train: setup ## synthesize, train and pack the models of examples/covost (2 h): ROOT=DIR
	@PATH="$(CURDIR)/.venv/bin:$$PATH" sh examples/covost/train.sh "$(ROOT)"

bench-long: setup peers ## measure long recordings (1 h): MODEL=base=DIR CORPUS=TSV OUTPUT=DIR [FLAGS]
	@$(PYTHON) scripts/longform.py $(MODEL) --corpus $(CORPUS) --output $(OUTPUT) $(FLAGS)

bench-text: setup ## measure text translation against CTranslate2 and eager Fairseq (15 minutes; FLAGS)
	@$(PYTHON) scripts/translation.py --output benchmark/text $(FLAGS)

bench-architectures: setup ## measure every architecture at true size beside eager Fairseq (25 minutes; FLAGS as for bench)
	@.venv/bin/fairseq-openvino benchmark --models conformer-rel_pos,conformer-rope,conformer-abs,convtransformer,berard,xm \
		--utterances 1,3,8,32 --engines eager,ours-f32,ours-bf16,ours-int8 --rounds 3 --timeout 600 \
		--output benchmark-architectures $(FLAGS)
	@for suffix in md json; do cp benchmark-architectures/benchmark.$$suffix \
		examples/covost/results/benchmark-architectures.$$suffix; done

architectures: setup ## write the table of architectures: parity and identical hypotheses (1 h; FLAGS="--sizes tiny")
	@$(PYTHON) scripts/architectures.py $(FLAGS)

covost: setup ## evaluate the shipped models: eager Fairseq, OpenVINO f32, bf16 and INT8 (30 minutes; WORK=DIR)
	@$(PYTHON) examples/covost/evaluate.py $(or $(WORK),covost-work) $(FLAGS)

clean: ## remove .venv, .venv-peers, .venv-ray, caches and build files
	@rm -rf .venv .venv-peers .venv-ray build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
