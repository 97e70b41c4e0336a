// Runs an ONNX file in onnxruntime's WebAssembly, as a browser does: node web.mjs MODEL IMAGES COUNT SHAPE LOGITS
import { readFileSync, writeFileSync } from "node:fs";
import ort from "onnxruntime-web";

const [model, images, count, shape, logits] = process.argv.slice(2);
const sizes = shape.split(",").map(Number);
const bytes = readFileSync(images);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
const input = new ort.Tensor("float32", values, [Number(count), ...sizes]);
const started = performance.now();
const { output } = await session.run({ input });
const elapsed = performance.now() - started;
writeFileSync(logits, Buffer.from(output.data.buffer, output.data.byteOffset, output.data.byteLength));
console.log(`onnxruntime-web ${ort.env.versions.web}: ${count} images in ${elapsed.toFixed(0)} ms, node ${process.version}`);
