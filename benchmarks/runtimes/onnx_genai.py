"""ONNX Runtime's own reading of a folder: `onnx_genai.py FOLDER WORK '[token ids]' COUNT`.

Its builder makes the ONNX file, in float32; prints {"logprobs": of each given token after those
before it, "greedy": COUNT tokens after all}.
"""

import json
import subprocess
import sys

import numpy as np
import onnxruntime_genai


def main() -> None:
    """Build, read the tokens one by one, and go on greedily."""
    folder, work, given, count = sys.argv[1:]
    tokens = json.loads(given)
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder, "-o", work]
    more = ["-p", "fp32", "-e", "cpu", "-c", f"{work}/cache"]
    subprocess.run([*builder, *more], check=True, stdout=sys.stderr)
    model = onnxruntime_genai.Model(work)
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(tokens) + int(count), do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    logprobs = []
    generator.append_tokens(tokens[:1])
    for token in tokens[1:]:
        logits = np.asarray(generator.get_logits(), dtype=np.float64).reshape(-1)
        largest = logits.max()
        logprobs.append(float(logits[token] - largest - np.log(np.exp(logits - largest).sum())))
        generator.append_tokens([token])
    while not generator.is_done():
        generator.generate_next_token()
    greedy = [int(token) for token in generator.get_sequence(0)][len(tokens) :]
    print(json.dumps({"logprobs": logprobs, "greedy": greedy}))


if __name__ == "__main__":
    main()
