from rayreid.models.report import LoadReport


def test_faults_are_one_line_whatever_the_tensors_are_named():
    report = LoadReport("file.pth", "rayreid", ["head"], missing=["blocks.0"], unexpected=["a\nb"])
    assert "\n" not in report.faults() and r"a\nb" in report.faults()
