# One command each. All of them first bring .venv and the pages' assets up to date (scripts/bootstrap, instant when
# nothing changed), so each works in a fresh clone.
SHELL := /bin/bash
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help ready up demo test check bench wheel clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

ready: ## install everything, run nothing
	@scripts/bootstrap

up: ready ## run the hub in the foreground
	@$(BIN)/streamrp2p up

demo: ready ## a creator, friends, viewers and a payout on this machine
	@$(BIN)/streamrp2p demo

check: ready ## lint, format, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## check, then all tests: JOBS=1 for one after the other, ARGS for pytest
	$(BIN)/pytest -n $(or $(JOBS),2) --dist loadgroup $(ARGS)

bench: ready ## measure: ONLY=ledger|money|relay|api, JSON=1 for one object a line
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json)

wheel: ready ## dist/*.whl: the friend's node; with [hub], everything
	@$(BIN)/python -m hatchling build -t wheel

clean: ## remove what was installed and cached; the data in .data stays
	rm -rf .venv .tools dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf api/web/node_modules api/web/static/vendor
