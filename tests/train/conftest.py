import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")
torch.set_num_threads(1)
