"""The examples of `docs/method.md` are run, so that its numbers are those of the code."""

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "method.md"


def test_the_examples_of_the_page_give_the_numbers_that_it_shows():
    names: dict[str, object] = {}
    runner, report = doctest.DocTestRunner(verbose=False), []
    # One fence after the other, as a fence's last line is no output; later examples use the names of earlier ones.
    for fence in re.finditer(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        line = PAGE.read_text()[: fence.start()].count("\n") + 1
        example = doctest.DocTestParser().get_doctest(fence[1], {}, PAGE.name, str(PAGE), line)
        example.globs = names
        runner.run(example, out=report.append, clear_globs=False)
    assert runner.tries > 60
    assert runner.failures == 0, "".join(report)
