"""Trains a LoRA with the package peft for `benchmark_bricks.py`, where peft is installed.

    python benchmark_peft.py CASE

Reads requests `{"steps": N}` as JSON lines, trains so many steps on fresh random tokens, and
answers with the seconds they took and the peak memory of the process.
"""

import argparse
import json
import resource
import sys
import time


def main() -> None:
    """Trains as asked on standard input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", type=json.loads, help="sizes, as JSON")
    case = parser.parse_args().case
    import torch  # type: ignore[import-not-found]  # noqa: TID251  (an environment of its own)
    from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found]
    from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore[import-not-found]

    config = LlamaConfig(
        vocab_size=case["vocabulary"],
        hidden_size=case["width"],
        num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"],
        intermediate_size=case["feed_forward_width"],
        max_position_embeddings=case["sequence"],
        use_cache=False,
    )
    torch.manual_seed(0)
    projections = [f"{name}_proj" for name in "qkvo"]
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=projections, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM(config), lora).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4)
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        shape = (steps, case["batch"], case["sequence"])
        tokens = torch.randint(0, case["vocabulary"], shape)
        start = time.perf_counter()
        for batch in tokens:
            loss = model(input_ids=batch, labels=batch).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
