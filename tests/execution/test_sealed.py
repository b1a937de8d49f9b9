"""Values that travel through processes which have no use for them."""

import pickle
import subprocess
import sys

from rayreid.execution.sealed import Sealed


class Loud:
    """Says when it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_a_value_is_itself_before_it_travels():
    value = object()
    assert Sealed(value).open() is value


def test_a_value_is_unpickled_where_it_is_opened_and_not_before(capsys):
    arrived = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(Sealed(Loud())))))  # and passed on unopened
    assert capsys.readouterr().out == ""
    arrived.open()
    arrived.open()
    assert capsys.readouterr().out == "unpickled\n"


def test_a_process_that_passes_it_on_imports_neither_torch_nor_the_stages(tmp_path):
    from rayreid.stages import finetune

    (tmp_path / "sealed").write_bytes(pickle.dumps(Sealed(finetune.plan)))
    passing = (
        "import pickle, sys; sealed = pickle.load(open(sys.argv[1], 'rb')); "
        "assert not {'torch', 'rayreid.stages'} & set(sys.modules); print(sealed.open().__name__)"
    )
    done = subprocess.run([sys.executable, "-c", passing, str(tmp_path / "sealed")], capture_output=True, text=True)
    assert done.stdout == "plan\n", done.stderr
