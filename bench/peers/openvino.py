"""OpenVINO alone: the model read and saved, nothing quantized; in float32, or in bfloat16 where the CPU has it."""

from __future__ import annotations

import openvino as ov
from bench.peers import job

CAPABILITY = {"Float32": "FP32", "BFloat16": "BF16"}


def main() -> None:
    """Run the flow. Exits with a message where the CPU lacks the precision."""
    work = job.read()
    core, precision = ov.Core(), work.options["precision"]
    if CAPABILITY[precision] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise SystemExit(f"this CPU does not compute {precision} in hardware")
    ov.save_model(core.read_model(work.model), work.out / "model.xml", compress_to_fp16=False)
    work.answer("model.xml", "openvino", precision)


if __name__ == "__main__":
    main()
