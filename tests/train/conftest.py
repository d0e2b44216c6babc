try:
    import torch
except ImportError:  # the extra `train` is not installed; what needs no torch is tested all the same
    collect_ignore = ["test_training.py", "test_drafters.py"]
else:
    torch.set_num_threads(1)
