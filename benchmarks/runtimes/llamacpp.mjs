// llama.cpp's own reading of a GGUF: node run.mjs MODEL.gguf '[token ids]' COUNT
// prints {"logprobs": of each given token after those before it, "greedy": COUNT tokens after all}.
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [path, given, count] = process.argv.slice(2);
const tokens = JSON.parse(given);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: path });
const context = await model.createContext({
    contextSize: 512,
    flashAttention: false, // it keeps values in 16 bits
    threads: 1,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
});

const read = context.getSequence();
const whole = { generateNext: { logits: true, options: { temperature: 1, topK: 0, topP: 1, minP: 0 } } };
const results = await read.controlledEvaluate(tokens.map((token) => [token, whole]));
const logprobs = results.slice(0, -1).map(({ next }, i) => {
    let largest = -Infinity;
    for (const logit of next.logits.values()) largest = Math.max(largest, logit);
    let sum = 0;
    for (const logit of next.logits.values()) sum += Math.exp(logit - largest);
    return next.logits.get(tokens[i + 1]) - largest - Math.log(sum);
});

await read.clearHistory();
const greedy = [];
for await (const token of read.evaluate(tokens, { temperature: 0, yieldEogToken: true })) {
    greedy.push(token);
    if (greedy.length >= Number(count)) break;
}
console.log(JSON.stringify({ logprobs, greedy }));
process.exit(0);
