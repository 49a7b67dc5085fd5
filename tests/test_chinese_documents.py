"""The Chinese documents: they say what their English twins say, and GitHub shows their formulas."""

import re

import pytest
from test_documents import PAPERS, commands_of, text_of

CHINESE = [name for name in PAPERS if name.endswith("_zh.md")]
EXCERPTS = ("docs/results_zh.md", "docs/sampling_zh.md")


def twin(name):
    """The English document of a Chinese one."""
    return name.replace("_zh.md", ".md")


def of_table(name):
    """The flags in the first column of a document's tables, below their heads."""
    found = set(re.findall(r"(?<=`)--\w+", " ".join(re.findall(r"^\| (`--.*?) \| ", text_of(name), re.MULTILINE))))
    return found - {"--test_mode"}


@pytest.mark.parametrize("name", CHINESE)
def test_a_chinese_document_has_the_numbers_flags_and_commands_of_its_twin(name):
    """The two that are excerpts, some of them."""
    measured = [set(re.findall(r"[\d.,]+ ± [\d.]+", text_of(of))) for of in (name, twin(name))]
    called = [{(script, *arguments) for script, arguments in commands_of(of)} for of in (name, twin(name))]
    assert measured[0] <= measured[1] and called[0] <= called[1], (measured[0] - measured[1], called[0] - called[1])
    if name not in EXCERPTS:
        assert measured[0] == measured[1] and called[0] == called[1]
    if name == "docs/sampling_zh.md":
        assert of_table(name) == of_table(twin(name)) and len(of_table(name)) > 30


@pytest.mark.parametrize("name", CHINESE)
def test_a_space_parts_a_formula_from_full_width_punctuation(name):
    """After such a mark GitHub shows $x$ as it is written, and not as a formula."""
    assert re.findall(r".{,9}[\u3000-\u303f\uff00-\uffef]\$.{,9}", text_of(name)) == []


def test_theory_has_the_same_displayed_formulas_in_both_languages():
    displayed = [re.findall(r"```math\n(.*?)```", text_of(f"docs/theory{of}.md"), re.DOTALL) for of in ("", "_zh")]
    assert displayed[0] == displayed[1] and len(displayed[0]) > 20
