"""Trains the original PyTorch ModuleFormer for `benchmark_training.py`, where torch is installed.

    python benchmark_original.py DIRECTORY CASE

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
    parser.add_argument("directory", help="where the package moduleformer lies")
    parser.add_argument("case", type=json.loads, help="sizes, as JSON")
    arguments = parser.parse_args()
    case = arguments.case
    sys.path.insert(0, arguments.directory)
    import torch  # type: ignore[import-not-found]  # noqa: TID251  (an environment of its own)
    from moduleformer import (  # type: ignore[import-not-found]
        ModuleFormerConfig,
        ModuleFormerForCausalLM,
    )

    config = ModuleFormerConfig(
        vocab_size=case["vocabulary"],
        n_embd=case["width"],
        n_layer=case["layers"],
        n_head=case["heads"],
        att_hidden=case["attention_width"],
        ffd_hidden=case["feed_forward_width"],
        gating_size=case["router_width"],
        n_att_experts=case["attention_experts"],
        n_mlp_experts=case["feed_forward_experts"],
        k_att=2,
        k_mlp=2,
        block_size=case["sequence"],
        history_length=case["sequence"],
        aux_loss_type="mi",
        aux_loss_weight=0.01,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = ModuleFormerForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        shape = (steps, case["batch"], case["sequence"])
        tokens = torch.randint(0, case["vocabulary"], shape)
        start = time.perf_counter()
        for batch in tokens:
            loss = model(input_ids=batch, labels=batch).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
