# Everything lives in .venv; `make demo` needs only the base install, `make .venv` brings the rest.
PYTHON ?= python3
BIN := .venv/bin
TOP := stream_worker encoders training tests deploy

.PHONY: help .venv demo test check bench soak breaks fuzz peers lock proto clean
help:            ## this list
	@grep -hE '^[a-z.]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ \t/'

.venv: .venv/.dev  ## everything: worker, readers, training (torch, about 6 GB) and the tools for tests

.venv/.uv: requirements/tools.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tools.txt
	touch $@

.venv/.base: .venv/.uv requirements/base.txt pyproject.toml
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/base.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

.venv/.dev: .venv/.base requirements/dev.txt
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/dev.txt
	touch $@

demo: .venv/.base  ## simulated devices -> in-process log -> findings, live in the terminal
	$(BIN)/ecg-worker demo

test: .venv/.dev  ## every test, against a real Kafka broker and a real Redis
	$(BIN)/python -m pytest

check: .venv/.dev  ## style, types, import contracts
	$(BIN)/ruff check $(TOP)
	$(BIN)/ruff format --check $(TOP)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev  ## the figures, as ratios against a named reference in one run
	$(BIN)/python -m tests.benchmarks

MINUTES ?= 30
soak: .venv/.dev  ## workers under mixed faults for MINUTES, then the audit; the last line is JSON
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

breaks: .venv/.dev  ## break the code once for each test of docs/reliability.md, in a copy: each must fail (half an hour)
	$(BIN)/python -m tests.breaks

N ?= 400000
SECONDS ?= 600
fuzz: .venv/.dev  ## inputs that break a reader: N executions a target, SECONDS at most for each
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target build/atheris --require-hashes -r requirements/fuzz.txt \
		|| echo "no atheris for this machine: hypothesis alone"
	PYTHONPATH=build/atheris $(BIN)/python -m tests.fuzz --runs $(N) --seconds $(SECONDS)

peers: .venv/.dev  ## other stream libraries at the windows job, beside the worker
	test -x build/peers/bin/python || $(BIN)/uv venv --quiet build/peers
	$(BIN)/uv pip install --quiet --python build/peers/bin/python --require-hashes -r requirements/peers.txt
	$(BIN)/python -m tests.benchmarks peers

lock: .venv/.uv  ## renew the hashed requirements
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --quiet -o requirements/base.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header --quiet -c requirements/base.txt -o requirements/dev.txt

proto: .venv/.dev  ## regenerate the Protobuf module from its .proto
	cd stream_worker/proto && ../../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. ecg_chunk.proto

clean:           ## remove what was built here
	rm -rf .venv build dist
