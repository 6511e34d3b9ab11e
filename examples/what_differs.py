"""What torchvision.ops and roialign answer where they differ, each case in a process of its own since some crash."""

import subprocess
import sys

SETUP = """
import warnings; warnings.simplefilter("ignore")
import torch, {library} as library
from {library} import roi_align, MultiScaleRoIAlign
ramp = torch.arange(64.0).reshape(1, 1, 8, 8)
def boxes(*rows): return torch.tensor(rows)
"""

CASES = {
    "batch index 7 of 1 image": "print(roi_align(ramp, boxes([7.0, 0, 0, 4, 4]), 1))",
    "batch index 1e9 of 1 image": "print(roi_align(ramp, boxes([1e9, 0, 0, 4, 4]), 1))",
    "NaN in a box": "print(roi_align(ramp, boxes([0, float('nan'), 0, 4, 4]), 1, sampling_ratio=2))",
    "infinite box, adaptive": "print(roi_align(ramp, boxes([0, 0, 0, float('inf'), 4]), 1))",
    "1e5-pixel box, adaptive": "print(roi_align(ramp, boxes([0, 0, 0, 1e5, 1e5]), 1))",
    "box inverted along x, adaptive, aligned": "print(roi_align(ramp, boxes([0, 4.0, 1, 1, 4]), 1, aligned=True))",
    "float16: ones under a 512-pixel box": """
        ones = torch.ones(1, 1, 512, 512).half()
        print(roi_align(ones, boxes([0, 0, 0, 512, 512.0]).half(), 7)[0, 0, 3, 3].item())""",
    "bfloat16": "print(roi_align(ramp.bfloat16(), boxes([0, 0, 0, 4, 4]).bfloat16(), 1))",
    "float32 map, float64 boxes": "print(roi_align(ramp, boxes([0, 0, 0, 4, 4]).double(), 1))",
    "double backward": """
        x = ramp.clone().requires_grad_()
        y = roi_align(x, boxes([0, 0, 0, 4.0, 4]), 1)
        (g,) = torch.autograd.grad((y ** 2).sum(), x, create_graph=True)
        print(torch.autograd.grad(g.sum(), x)[0].sum())""",
    "gradient to the boxes": """
        b = boxes([0, 0, 0, 4.0, 4]).requires_grad_()
        x = ramp.clone().requires_grad_()
        roi_align(x, b, 1).sum().backward()
        print(b.grad)""",
    "forward-mode derivative of sum(map)": """
        f = lambda x: roi_align(x, boxes([0, 0, 0, 4.0, 4]), 1)
        print(torch.func.jvp(f, (ramp,), (torch.ones_like(ramp),))[1])""",
    "pyramid: second batch of another size": """
        pool = MultiScaleRoIAlign(["0"], 1, 2)
        pool({"0": ramp}, [boxes([0, 0, 64.0, 64])], [(64, 64)])
        print(pool({"0": ramp}, [boxes([0, 0, 16.0, 16])], [(16, 16)]))""",
    "pyramid: level misspelt": """
        pool = MultiScaleRoIAlign(["0", "p3"], 1, 2)
        print(pool({"0": ramp, "1": ramp}, [boxes([0, 0, 64.0, 64])], [(64, 64)]))""",
}


def program(library: str, case: str) -> str:
    lines = [line.strip() for line in case.strip().splitlines()]
    return SETUP.format(library=library) + "\n".join(lines)


def answer(library: str, case: str) -> str:
    command = [sys.executable, "-c", program(library, case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return f"the process dies of signal {-done.returncode}"
    text = done.stdout if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    return " ".join(text.split())


def main() -> None:
    for name, case in CASES.items():
        print(name)
        for library in ("torchvision.ops", "roialign"):
            print(f"    {library:16} {answer(library, case)}")


if __name__ == "__main__":
    main()
