"""A small book, which the project's tools make as they make the real one, for tests of its pages.

Each test opens or reads a page of it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import links

ROOT = Path(__file__).parents[1]
ADDRESS = "https://github.com/OWNER/NAME"
#: What the small book shares with the real one. Of the packages its reference has two modules.
SHARED = ("data/support.csv", "requirements.lock")
MODULES = ("asddim_lib/paper.py", "experiments/widgets.py")
TOOLS = ("*.py", "_config.yml", "references.bib", "_static", "js")
#: The boxes "guess before you look" of the real book, by chapter.
BOX = re.compile(r"^::::\{admonition\}[^\n]*\n:class: guess\n.*?^::::$", re.MULTILINE | re.DOTALL)
BOXES = {name: box for name, text in links.pages().items() for box in BOX.findall(text)}
CODE = """---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3}
---

"""
CONTENTS = """format: jb-book
root: chapters/start
parts:
  - caption: Learn
    chapters: [{file: chapters/ddim}, {file: chapters/editor}]
  - caption: Appendices
    chapters:
      - file: chapters/support
      - file: chapters/bibliography
      - file: chapters/api
      - file: chapters/status
"""
CONTRACT = """- {number: 1, label: eq-ddim, chapter: ddim, function: asddim_lib.paper.ddim_step}
- number: 2
  label: eq-variance
  chapter: ddim
  function: asddim_lib.paper.NoiseSchedule.variance
"""
START = """# A small book

It derives {eq}`eq-ddim` and {eq}`eq-variance`. Its words are in {doc}`ddim`: every timestep.

## How to cite

As it stands.
"""
DDIM = """# The step

Known since {cite:t}`song2021ddim`. Here one section names {py:func}`~asddim_lib.paper.ddim_step`
twice, {py:func}`asddim_lib.paper.ddim_step`:

$$
x = y
$$ (eq-ddim)

```{code-cell} ipython3
:tags: [parameters]
size = 5  # of the dots
```

```{code-cell} ipython3
:tags: [hide-input, remove-output]
import sys

import matplotlib.pyplot as plt
from experiments import plots
from experiments.widgets import explore
from IPython.display import Markdown, display

plots.use()
print("a library's notice", file=sys.stderr)
```

## Second

Again {py:func}`~asddim_lib.paper.ddim_step`, and a method,
{py:meth}`~asddim_lib.paper.NoiseSchedule.variance`:

$$
v = w
$$ (eq-variance)

```{code-cell} ipython3
---
tags: [hide-input]
mystnb: {image: {alt: A line from 0 to 1.}, figure: {caption: The line., name: line}}
---
plt.plot([0, 1], [0, 1], label="line")
plt.show()
```

```{code-cell} ipython3
---
tags: [hide-input]
---
def draw(size):
    figure, axis = plt.subplots(figsize=(2, 2))
    axis.plot([0], [0], "o", markersize=size)
    return figure, f"A dot of size {size}."


explore(draw, title="A dot", size=(size, 9, 20))
```

```{code-cell} ipython3
:tags: [hide-input]
Markdown("| equation | in |\\n| --- | --- |\\n| {eq}`eq-variance` | {doc}`ddim` |")
```

```{code-cell} ipython3
:tags: [hide-input]
display(Markdown("5 of 6"))
```

```{code-cell} ipython3
:tags: [hide-input, remove-output]
doubled = 2 * size
```

```{code-cell} ipython3
---
tags: [remove-input, hide-output]
mystnb: {code_prompt_show: "Table: all sizes"}
---
Markdown("| all | sizes |\\n| --- | --- |\\n| 5 | 9 |")
```

```{code-cell} ipython3
assert size == 5
```

```{code-cell} ipython3
shown = 1 + 1
print(shown, "is shown with its code")
```

## Exercises

**1.** Write one. {ref}`Solution <ddim-1>`

**2.** Write two. {ref}`Solution <ddim-2>`

(ddim-1)=
```{code-cell} ipython3
:tags: [hide-input, solution]
def one():
    return 1
```

```{code-cell} ipython3
:tags: [hide-input, check]
assert one() == 1
print("checked one")
```

(ddim-2)=
```{code-cell} ipython3
:tags: [hide-input, solution]
def two():
    return 2
```

```{code-cell} ipython3
:tags: [hide-input, check]
assert two() == 2
```
"""
EDITOR = "# Place the steps yourself\n\n{editor}\n"
SUPPORT = "# Support\n\n:::{container} support\n\n{table}\n\n:::\n\n{reasons}\n"
API = "# Reference\n\n{modules}\n"
STATUS = "# How it was made\n\n{chapters}\n\n{records}\n"
BIBLIOGRAPHY = "# Bibliography\n\n```{bibliography}\n```\n"


def make(folder: Path) -> None:
    """Writes the small book beside copies of the tools, and builds it."""
    book = folder / "book"
    (book / "chapters").mkdir(parents=True)
    for pattern in TOOLS:
        for file in (ROOT / "book").glob(pattern):
            copy = shutil.copytree if file.is_dir() else shutil.copyfile
            copy(file, book / file.name)
    for name in (*SHARED, *MODULES):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    for name in MODULES:
        package = ROOT / Path(name).parent
        (folder / package.name / "__init__.py").write_text(f"__path__ = [{str(package)!r}]\n")
    project = (ROOT / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(f'{project}\n[project.urls]\nRepository = "{ADDRESS}"\n')
    (book / "_toc.yml").write_text(CONTENTS)
    (book / "equations.yml").write_text(CONTRACT)
    # References of the boxes lead to pages that are not here.
    boxes = re.sub(r"\{\w+\}`([^`]+)`", r"\1", "\n\n".join(BOXES.values()))
    texts = {"start": START, "ddim": f"{CODE}{DDIM}\n## Boxes\n\n{boxes}\n"}
    texts |= {"editor": EDITOR, "support": SUPPORT, "api": API, "status": STATUS}
    texts |= {"bibliography": BIBLIOGRAPHY}
    for name, text in texts.items():
        (book / "chapters" / f"{name}.md").write_text(text)
    run(folder, "build.py")


def run(folder: Path, tool: str) -> str:
    """Runs one of the small book's tools, and returns what it prints. Raises where it fails."""
    done = subprocess.run(
        [sys.executable, str(folder / "book" / tool)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
