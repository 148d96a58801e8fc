# The commands that a newcomer needs. Each makes the environment first when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

FEW := --count 64 --batch-size 32# what the comparison draws; the fine solutions are the same in all its parts, and are drawn once

WORKERS := $(shell $(PYTHON) -c "import os; print(min(4, os.cpu_count() + 1))")# one more than processors: some tests wait

.PHONY: book chromium colab look pdf site test coverage experiment pictures guidance frontier full bench inception lock clean
.DELETE_ON_ERROR:

book: .venv/.ready ## execute the chapters and build the HTML into _build/book/_build/html
	$(BIN)/python book/build.py

colab: .venv/.ready ## plain notebooks of the chapters for Colab, into _build/colab, each run as on Colab with a changed parameter
	$(BIN)/python book/colab.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m colab --numprocesses auto

look: book ## open every page in a browser without a network: light, dark, phone, keyboard, axe, links, search; screenshots into _build/look
	$(BIN)/python book/look.py

pdf: book ## print the book into _build/book/asddim.pdf, and check its figures, references and links
	$(BIN)/python book/pdf.py

coverage: COV = --cov
coverage: test ## the same, and the share of branches that the tests reach; counting them takes a third longer

test: .venv/.ready ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(COV) --numprocesses $(WORKERS) --dist loadgroup --durations=10

site: .venv/.ready ## tests of the book's pages in a browser: the editor, the live model, the blind test, what `make look` finds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m site --numprocesses auto --maxprocesses 4 --dist loadgroup

chromium: .venv/.ready ## a Chromium for the tests of pages, where the system has none
	$(BIN)/python -m playwright install --with-deps chromium

experiment: .venv/.ready ## the best guidance, the paper's ablation on 1,000 prompts, every grid beside every peer; goes on where it was stopped
	$(BIN)/python -m experiments evaluate --out results/tune --prompts bundled-tune --count 256 --steps 20 --methods ddim-trailing --guidance-scale 1.5,2,3,4,5
	for scale in 7.5 3; do for steps in 20 50 100; do \
	  $(BIN)/python -m experiments evaluate --out results/guidance-$$scale/steps-$$steps --guidance-scale $$scale --steps $$steps || exit 1; \
	done; done
	for part in ddim second-order fifty; do mkdir -p results/compare/$$part/images; done
	$(BIN)/python -m experiments compare $(FEW) --steps 5,8,10,20 --out results/compare/ddim
	for part in second-order fifty; do cp -n results/compare/ddim/images/*-k1000-* results/compare/ddim/images/profile-* results/compare/ddim/images/tuning.json results/compare/$$part/images; done
	$(BIN)/python -m experiments compare $(FEW) --steps 5,8,10 --solvers dpm++,unipc --out results/compare/second-order \
	  --grids trailing,leading,karras,logsnr,beta,equidistributed,dual-weighted
	$(BIN)/python -m experiments compare $(FEW) --steps 50 --grids trailing,leading,beta,dual-weighted --out results/compare/fifty
	$(BIN)/python -m experiments compare --count 200 --steps 5,10,20 --guidance-scale 3,7.5 --reference-steps 0 --grids leading,beta,gits,equidistributed --out results/compare/quality

SEEN := leading,karras,logsnr,beta,arctan,ays-sd15,gits,tors,noise,combined,equidistributed,dual-weighted,feature-weighted# what pictures are judged of

MEASURED := --calibrate-on 8 --calibrate-steps 32
PICTURES := $(MEASURED) --reference-steps 100 --steps 5,8,10,20
RIVALS := leading,beta,gits,tors,dual-weighted,feature-weighted,tuned
FLOW := --model bundled-flow --solvers euler --call '{"max_sequence_length": 1}'
SEEN_ON_FLOW := karras,exponential,beta,comfy-beta57,comfy-bong-tangent,comfy-linear-quadratic,gits,tors,noise,combined,equidistributed,dual-weighted,feature-weighted

pictures: .venv/.ready ## every grid's pictures beside the model's own fine ones and real ones, on both models, and tuned grids beside their peers; nine hours of a core, goes on where it was stopped; with --plan a line prints its cost
	$(BIN)/python -m experiments compare $(PICTURES) --count 256 --batch-size 32 --guidance-scale 3 --grids $(SEEN) --out results/pictures/bundled
	$(BIN)/python -m experiments evaluate $(FLOW) --out results/tune-flow --prompts bundled-tune --count 128 --batch-size 32 --steps 20 --methods ddim-trailing --guidance-scale 1.5,2,3,4,6,9
	$(BIN)/python -m experiments compare $(PICTURES) $(FLOW) --count 64 --batch-size 16 --guidance-scale 1,6,9 --grids $(SEEN_ON_FLOW) --out results/pictures/bundled-flow
	$(BIN)/python -m experiments compare $(MEASURED) --count 1000 --reference-steps 100 --steps 5,8,10 --guidance-scale 3 --grids $(RIVALS) --out results/pictures/thousand
	for part in twenty fifty; do mkdir -p results/pictures/$$part/images && cp -n results/pictures/thousand/images/*-k100-* results/pictures/$$part/images; done
	$(BIN)/python -m experiments compare $(MEASURED) --count 1000 --reference-steps 100 --steps 20 --guidance-scale 3 --grids leading,beta,dual-weighted,feature-weighted,tuned --out results/pictures/twenty
	$(BIN)/python -m experiments compare $(MEASURED) --count 1000 --reference-steps 100 --steps 50 --guidance-scale 3 --grids trailing --out results/pictures/fifty
	$(BIN)/python -m experiments compare $(MEASURED) --count 128 --batch-size 32 --reference-steps 0 --steps 5,10 --guidance-scale 1.5,2,3,5,7.5,10 --grids leading,beta,noise,gradient,combined,feature-weighted --out results/pictures/guidance
	$(BIN)/python -m experiments compare $(MEASURED) --count 128 --batch-size 32 --reference-steps 0 --steps 5,10 --guidance-scale 2,3 --grids tuned --out results/pictures/guidance-tuned
	$(BIN)/python -m experiments compare $(PICTURES) --count 256 --batch-size 32 --solvers dpm++ --guidance-scale 3 --grids leading,karras,logsnr,beta,dual-weighted,feature-weighted,tuned --out results/pictures/second-order
	$(BIN)/python -m experiments compare $(MEASURED) $(FLOW) --count 128 --batch-size 16 --reference-steps 100 --steps 5,8,10 --guidance-scale 6 --grids karras,beta,gits,dual-weighted,feature-weighted,tuned --out results/pictures/searched-flow
	mkdir -p results/pictures/fifty-flow/images && cp -n results/pictures/searched-flow/images/*-k100-* results/pictures/fifty-flow/images
	$(BIN)/python -m experiments compare $(MEASURED) $(FLOW) --count 128 --batch-size 16 --reference-steps 100 --steps 50 --guidance-scale 6 --grids trailing --out results/pictures/fifty-flow
	$(BIN)/python -m experiments compare $(MEASURED) $(FLOW) --count 128 --batch-size 16 --reference-steps 0 --steps 5,8,10 --guidance-scale 1,1.5,2,3,4,6 --grids beta --out results/pictures/guidance-flow
	$(BIN)/python -m experiments compare $(MEASURED) $(FLOW) --count 128 --batch-size 16 --reference-steps 0 --steps 5,8 --guidance-scale 3,4 --grids tuned --out results/pictures/searched-flow-lower
	$(BIN)/python -m tests.effort
	$(BIN)/asddim tune --model bundled-flow --steps 8 --guidance-scale 6 --call '{"max_sequence_length": 1}' --out results/tuned-flow

PLANS := results/guidance-plans
GUIDED := $(BIN)/python -m experiments compare --grids trailing --reference-steps 0
# Plans and scales are chosen on tuning prompts. $(1) names the records, $(2) has the model and its
# solver, $(3) three scales from moderate to high, $(4) lower ones, $(5) the usual high one, $(6) is
# --plan or nothing.
define GUIDANCE
	$(GUIDED) $(2) --steps 5,8,10,20 --guidance-scale $(3) --prompts bundled-tune --count 128 --guidance-plans capped-1,capped-1.5,capped-2 --out $(PLANS)/choice/$(1) $(6)
	$(GUIDED) $(2) --steps 5,8,10,20 --guidance-scale $(4) --prompts bundled-tune --count 128 --out $(PLANS)/choice/$(1)-scales $(6)
	$(GUIDED) $(2) --steps 5,8,20 --guidance-scale $(5) --prompts bundled-tune --count 128 $(MEASURED) --guidance-plans capped-measured-2,capped-measured-1.5 --out $(PLANS)/choice/$(1)-measured $(6)
	$(GUIDED) $(2) --steps 5,8 --guidance-scale $(3) --count 1000 --guidance-plans capped-2 --out $(PLANS)/thousand/$(1) $(6)
	$(GUIDED) $(2) --steps 10 --guidance-scale 3$(,)$(5) --count 1000 --guidance-plans capped-2 --out $(PLANS)/thousand/$(1)-ten $(6)
	$(GUIDED) $(2) --steps 20 --guidance-scale $(5) --count 1000 --guidance-plans capped-2 --out $(PLANS)/thousand/$(1)-twenty $(6)
	$(GUIDED) $(2) --steps 50 --guidance-scale 3$(,)$(5) --count 1000 --out $(PLANS)/thousand/$(1)-fifty $(6)
	$(GUIDED) $(2) --steps 5,8 --guidance-scale 2$(,)4 --count 1000 --out $(PLANS)/thousand/$(1)-scales $(6)
	$(GUIDED) $(2) --steps 5,8 --guidance-scale $(3) --prompts $(PLANS)/noises.csv --count 256 --guidance-plans capped-2 --out $(PLANS)/noises/$(1) $(6)

endef
# By DPM-Solver++ (2M): $(3) has a moderate and a very high scale, $(5) the usual high one.
define GUIDANCE_2M
	$(GUIDED) $(2) --solvers dpm++ --steps 5,8,10,20 --guidance-scale $(5) --prompts bundled-tune --count 128 --guidance-plans capped-1,capped-1.5,capped-2 --out $(PLANS)/choice/$(1) $(6)
	$(GUIDED) $(2) --solvers dpm++ --steps 5,8,10 --guidance-scale $(5) --count 1000 --guidance-plans capped-2 --out $(PLANS)/thousand/$(1) $(6)
	$(GUIDED) $(2) --solvers dpm++ --steps 5,20 --guidance-scale $(3) --count 128 --guidance-plans capped-2 --out $(PLANS)/others/$(1) $(6)

endef
GUIDED_UNET := --batch-size 32
GUIDED_FLOW := --batch-size 16 --model bundled-flow --call '{"max_sequence_length": 1}'
define GUIDANCES
	$(call GUIDANCE,unet,$(GUIDED_UNET),3$(,)7.5$(,)12,1.5$(,)2$(,)4$(,)5,7.5,$(1))
	$(call GUIDANCE,flow,$(GUIDED_FLOW) --solvers euler,3$(,)6$(,)9,1.5$(,)2$(,)4,6,$(1))
	$(GUIDED) $(GUIDED_UNET) --steps 5,8 --guidance-scale 7.5 --count 128 --guidance-plans interval-sdxl,linear,cosine,gated --out $(PLANS)/others/unet $(1)
	$(GUIDED) $(GUIDED_UNET) --steps 5,8 --guidance-scale 7.5 --count 1000 $(MEASURED) --guidance-plans capped-2,capped-measured-1.5 --out $(PLANS)/thousand/unet-measured $(1)
	$(call GUIDANCE_2M,unet-2m,$(GUIDED_UNET),3$(,)12,,7.5,$(1))
	$(call GUIDANCE_2M,flow-2m,$(GUIDED_FLOW),3$(,)9,,6,$(1))
endef
, := ,

guidance: .venv/.ready ## guidance plans beside constant guidance, on both models, of first order and with 2M; prints its cost first, goes on where it was stopped
	mkdir -p $(PLANS)
	$(BIN)/python -c "import pandas; pandas.read_csv('data/prompts.csv').drop_duplicates('prompt')[:32].loc[lambda t: t.index.repeat(8)].to_csv('$(PLANS)/noises.csv', index=False)"
	$(call GUIDANCES,--plan)
	$(call GUIDANCES)
	$(BIN)/python -m tests.factors
	$(BIN)/python -m tests.switch
	$(BIN)/python -m tests.bench guidance

RECIPES := results/recipes
SEARCHED := --count 192 --batch-size 16 --evaluations
FLOW_RECIPE := --model bundled-flow --guidance-scale 6 --call '{"max_sequence_length": 1}'
define RECIPE
	$(BIN)/asddim recipe --guidance-scale 7.5 $(SEARCHED) 10,16,20 --out $(RECIPES)/unet $(1)
	$(BIN)/asddim recipe $(FLOW_RECIPE) $(SEARCHED) 10,16,20 --out $(RECIPES)/flow $(1)
	$(BIN)/asddim recipe --aim cheaper --guidance-scale 7.5 $(SEARCHED) 100 --out $(RECIPES)/unet-cheaper-7.5 $(1)
	$(BIN)/asddim recipe --aim cheaper $(FLOW_RECIPE) $(SEARCHED) 100 --out $(RECIPES)/flow-cheaper-6 $(1)
	$(BIN)/asddim recipe --aim cheaper --guidance-scale 3 $(SEARCHED) 100 --out $(RECIPES)/unet-cheaper-3 $(1)

endef

frontier: .venv/.ready ## recipes for 10, 16 and 20 evaluations and the fewest that are not worse than 100, on both models, then their pictures of 1,000 unseen prompts; prints its cost first, goes on where it was stopped
	$(call RECIPE,--plan)
	$(call RECIPE)
	$(BIN)/python -m experiments recipes --leave-out current,capped --of $(RECIPES)/unet/10$(,)$(RECIPES)/unet/16$(,)$(RECIPES)/unet/20 --out $(RECIPES)/thousand/unet
	$(BIN)/python -m experiments recipes --leave-out current --model bundled-flow --call '{"max_sequence_length": 1}' --batch-size 16 --of $(RECIPES)/flow/10$(,)$(RECIPES)/flow/16$(,)$(RECIPES)/flow/20 --out $(RECIPES)/thousand/flow
	$(BIN)/python -m experiments recipes --leave-out "current,50 evaluations,20 evaluations" --of $(RECIPES)/unet-cheaper-7.5 --out $(RECIPES)/thousand/unet-cheaper-7.5
	$(BIN)/python -m experiments recipes --leave-out "current,32 evaluations" --of $(RECIPES)/unet-cheaper-3 --out $(RECIPES)/thousand/unet-cheaper-3
	$(BIN)/python -m tests.null

REFERENCE ?=# a folder of real pictures
full: _build/inception/.ready ## the paper's experiment on its own models, on one GPU with weights, captions and a REFERENCE folder fetched: clock, pictures, and the chapter that shows them; then grids tuned on DrawBench beside their peers
	@test -d "$(REFERENCE)" || { echo "REFERENCE is '$(REFERENCE)'; give a folder of real pictures: make full REFERENCE=coco/val2017"; exit 2; }
	for model in sd15 sdxl; do \
	  _build/inception/bin/python -m experiments clock --model $$model --device cuda --out results/clock/$$model.csv && \
	  _build/inception/bin/python book/build.py run experiment -p model=$$model -p prompts=coco -p count=1000 -p 'steps=[20, 50, 100]' -p device=cuda -p dtype=float16 \
	    -p clip=openai/clip-vit-large-patch14 -p reference=$(REFERENCE) -p tuning_prompts=drawbench -p out=results/$$model || exit 1; \
	done
	for model in sd15 sdxl sd3; do \
	  if [ $$model = sd3 ]; then grids=$(SEEN_ON_FLOW) solvers=euler; else grids=$(SEEN) solvers=ddim,dpm++; fi; \
	  _build/inception/bin/python -m experiments compare $(PICTURES) --model $$model --solvers $$solvers --grids $$grids,tuned --guidance-scale 7.5 --prompts coco --count 1000 \
	    --tuning-prompts drawbench --clip openai/clip-vit-large-patch14 --check-encoder facebook/dinov2-base --device cuda --dtype float16 --out results/pictures/$$model || exit 1; \
	done

bench: .venv/.ready ## step() against diffusers' DDIM, cost of estimators and grids, the network in bfloat16, 1,000 images
	$(BIN)/python -m tests.bench

inception: _build/inception/.ready ## FID's own Inception path, with random weights, in an environment that has torchvision
	_build/inception/bin/python -m pytest tests/test_inception.py

_build/inception/.ready: requirements.lock pyproject.toml
	test -x _build/inception/bin/python || $(PYTHON) -m venv _build/inception
	grep -v '^torch==' requirements.lock > _build/inception/rest.lock
	_build/inception/bin/pip install -q --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 torch-fidelity==0.4.0
	_build/inception/bin/pip install -q --disable-pip-version-check -r _build/inception/rest.lock
	_build/inception/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lock: ## pins everything that an environment made from pyproject.toml holds today
	$(PYTHON) -m venv _build/lock
	_build/lock/bin/pip install -q 'torch==2.13.0' -e '.[book,look,train,dev]'
	_build/lock/bin/pip freeze --exclude-editable --exclude torch > requirements.lock
	echo 'torch==2.13.0' >> requirements.lock
	{ printf 'name: asddim\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; sed 's/^/    - /' requirements.lock; } > environment.yml

.venv/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean: ## what the other commands made, but for records
	rm -rf _build dist .venv .pytest_cache .mypy_cache .ruff_cache
