"""How fast the package is, beside its peers, on one list of workloads: ``python -m benchmarks``.

directions.py  what is timed: forward, backward, layouts, dtypes, threads
workloads.py   on what: maps and boxes
peer.py        what an implementation is to us: one small interface
peers.py       against whom: ourselves, torchvision, mmcv, plain PyTorch
runtimes.py    ONNX Runtime and OpenVINO
device.py      where, and by which clock
roofline.py    the bytes that must move, whoever moves them
runner.py      checks that they agree, then times them in turns
report.py      what comes out: JSON and tables; plot.py draws it
models.py      whole detectors, before and after roialign.accelerate(): ``python -m benchmarks --models``
tune_gpu.py    the kernels' block sizes, measured: ``python -m benchmarks.tune_gpu``
compare.py     two reports side by side: ``python -m benchmarks.compare A.json B.json``
"""
